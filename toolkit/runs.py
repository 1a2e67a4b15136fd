"""The folder of a training run: what it was started with, whether it may be gone on with, its whole checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from toolkit.cache import Cache
from toolkit.errors import OutputError
from toolkit.files import write_json
from toolkit.options import FinetuneOptions, to_json

FINISHED = "finetune.json"  # written last: a model folder with it is whole
STARTED = "options.json"  # written first: what a resumed run must agree with
INDIFFERENT = ("cache", "output_dir", "resume", "overwrite", "num_workers", "report_to", "save_total_limit")
WHOLE = "whole.json"  # written last into a checkpoint: its files and their sizes


def run_identity(options: FinetuneOptions, cache: Cache, ranks: int) -> dict[str, Any]:
    """What makes two runs give the same model: options, the fingerprints of the rows, how many processes train."""
    names = ("train", "validation")
    return {
        "options": {k: v for k, v in to_json(options).items() if k not in INDIFFERENT},
        "cache": {n: json.loads((cache.directory / n / "state.json").read_text())["_fingerprint"] for n in names},
        "ranks": ranks,
    }


def check_output(options: FinetuneOptions, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a finished run of the same options, or None where there is work; clears what may be replaced."""
    out = options.output_dir
    if out.exists() and not out.is_dir():
        raise OutputError(f"--output-dir {out}: a file; name a folder for the model.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / STARTED).is_file():
            raise OutputError(f"--output-dir {out}: holds files that are no run of toolkit's; name another folder.")
        if options.overwrite or (not options.resume and not (out / FINISHED).exists()):
            shutil.rmtree(out)
        else:
            before = json.loads((out / STARTED).read_text())
            changed = _differences(before, identity)
            if changed:
                raise OutputError(
                    f"--output-dir {out}: holds a run with other settings ({changed}); use those again, name another "
                    "folder, or replace it with --overwrite."
                )
            if (out / FINISHED).exists():
                return json.loads((out / FINISHED).read_text())
    return None


def start_output(out: Path, identity: dict[str, Any]) -> None:
    """Makes the folder, once nothing is left that could be found wrong beforehand."""
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_json(out / STARTED, identity)
    except OSError as error:
        raise OutputError(f"--output-dir {out}: can't be written ({error.strerror}); name another folder.") from None


def check_shared(out: Path) -> None:
    """Whether this process sees the folder that another one has made."""
    if not (out / STARTED).is_file():
        raise OutputError(
            f"--output-dir {out}: is not the same folder for all processes; name one that all of them see."
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = before["options"], now["options"]
    changed = [f"--{k.replace('_', '-')} {old.get(k)}, now {new[k]}" for k in new if old.get(k) != new[k]]
    if before["cache"] != now["cache"]:
        changed.append("another cache")
    if before.get("ranks", 1) != now["ranks"]:
        changed.append(f"{before.get('ranks', 1)} processes, now {now['ranks']}")
    return "; ".join(changed)


def mark_whole(checkpoint: Path) -> None:
    """Called once everything is written; a checkpoint without its mark, or other than marked, is not gone on from."""
    sizes = {str(p.relative_to(checkpoint)): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
    write_json(checkpoint / WHOLE, sizes)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: not cut short by a kill or a full disk, nor half deleted."""

    def whole(path: Path) -> bool:
        try:
            sizes = json.loads((path / WHOLE).read_text())
            return all((path / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError):
            return False

    found = [path for path in folder.glob("checkpoint-*") if whole(path)]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
