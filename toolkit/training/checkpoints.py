"""The checkpoints of a training run: whole ones are known by the hashes of their files.

checkpoints/checkpoint-12/
    whole.json                        written last: size and hash of each of the other files
    model.safetensors  optimizer.pt   and what else Trainer writes
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runtime.files import flush, write_json
from toolkit.runtime.hashing import file_hash

WHOLE = "whole.json"
# What Trainer and peft write into a checkpoint. Nothing else in its folder is ever deleted.
FILES = (
    WHOLE, "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt",
    "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin",
)  # fmt: skip


def step_of(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdigit() else -1


def checkpoints(folder: Path) -> list[Path]:
    """Whole or not, the oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def mark_whole(checkpoint: Path) -> None:
    """Called once everything is written. Only a checkpoint that agrees with its mark is resumed from."""
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != WHOLE]
    for path in paths:
        flush(path)
    write_json(
        checkpoint / WHOLE, {p.relative_to(checkpoint).as_posix(): [p.stat().st_size, file_hash(p)] for p in paths}
    )


def marked(checkpoint: Path) -> dict[str, Any]:
    """The files that its mark lists: name -> [size, hash], or only the size in older ones; {} without a mark."""
    try:
        value = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: a file that is missing, or is not what was written; None if it is whole."""
    files = marked(checkpoint)
    if not files:
        return f"no readable {WHOLE}"
    for name, expected in sorted(files.items(), key=lambda item: str(item[1])):
        path = checkpoint / name
        size, digest = expected if isinstance(expected, list) else (expected, None)
        try:
            if path.stat().st_size != size:
                return f"{name} has another size"
            if digest is not None and file_hash(path) != digest:
                return f"{name} is damaged"
        except OSError:
            return f"{name} can't be read"
    return None


def best_step(checkpoint: Path) -> int | None:
    """The step of the best checkpoint so far, as this one remembers it."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_checkpoint(folder: Path, told: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest checkpoint that a run can resume from: it is whole, and so is the best one so far, which becomes the
    model if no better one follows.

    Args:
        told: is called with a sentence about each checkpoint that was whole once, but is damaged.
    """
    for path in reversed(checkpoints(folder)):
        wrong, best = fault(path), best_step(path)
        if wrong is None and best not in (None, step_of(path)):
            other = path.with_name(f"checkpoint-{best}")
            wrong = fault(other)
            wrong = wrong and f"the best one so far, {other.name}, is not whole: {wrong}"
        if wrong is None:
            return path
        if (path / WHOLE).exists():
            told(f"note: {path} is not used ({wrong})")
    return None


def files_of(folder: Path) -> list[Path]:
    """The files that a run wrote into the checkpoints of a folder; files that somebody else put there are left out."""
    return [path for checkpoint in checkpoints(folder) for path in _own(checkpoint)]


def _own(checkpoint: Path) -> list[Path]:
    named = {checkpoint / name for name in marked(checkpoint)} | {
        p for pattern in FILES for p in checkpoint.glob(pattern)
    }
    return sorted(path for path in named if path.is_file() or path.is_symlink())


def rotate(folder: Path, limit: int, best: int | None) -> None:
    """Deletes all checkpoints but the best and the newest `limit` others."""
    for checkpoint in [path for path in checkpoints(folder) if step_of(path) != best][:-limit]:
        remove_files(_own(checkpoint), folder)


def remove_files(paths: list[Path], folder: Path) -> None:
    """Deletes files, and the folders below `folder` that are empty then."""
    for path in sorted(paths, key=lambda path: path.name != WHOLE):
        path.unlink(missing_ok=True)
    remove_empty({parent for path in paths for parent in path.parents if folder in parent.parents})


def remove_empty(folders: set[Path]) -> None:
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        try:
            folder.rmdir()
        except OSError:  # something is in it that is not ours
            continue
