"""The files that a training run writes: listing, clearing and moving them, and nothing that lies beside them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, cast

from toolkit.errors import OutputError
from toolkit.runtime.files import beside, flush, write_json
from toolkit.runtime.hashing import file_hash
from toolkit.training.checkpoints import WHOLE, best_step, files_of, marked, remove_empty, remove_files

STARTED = "options.json"  # written first: what a resumed run must agree with
FINISHED = "finetune.json"  # written last: a folder with it is whole; metrics, and the run's files by content hash
REPLACED = "replaced.json"  # within a swap: the files of the model that is being replaced
LOG = "training.jsonl"
CHECKPOINTS = "checkpoints"
UNFINISHED = "unfinished"  # the model while it is being saved
# All that may be written into the folder besides checkpoints; of runs whose FINISHED lists no files this must do.
NAMES = (
    STARTED, f"{STARTED}.tmp", FINISHED, REPLACED, LOG, "README.md", "report.html", "config.json", "generation_config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "adapter_config.json", "base.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", f"{UNFINISHED}/*", f"{CHECKPOINTS}/runs/**/events.out.tfevents.*",
)  # fmt: skip


class RunSummary(TypedDict, total=False):
    """What `FINISHED` says of a run; one of an older toolkit's may lack some of it."""

    model: str
    steps: int
    epochs: float
    ranks: int
    seconds: float
    best_step: int | None
    validation: dict[str, float]  # metrics
    notes: list[str]
    extended: list[dict[str, Any]]  # how long the run was before each time that it was extended
    files: dict[str, str | None]  # name -> hash


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file, or something else is in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_summary(folder: Path) -> RunSummary | None:
    return cast(RunSummary | None, read_object(folder / FINISHED))


def written(folder: Path) -> list[Path]:
    """The files in a run's folder that are a run's by their names."""
    found = {path for name in NAMES for path in folder.glob(name) if path.is_file() or path.is_symlink()}
    return sorted(found | set(files_of(folder / CHECKPOINTS)))


def clear(folder: Path) -> None:
    """Deletes what a run wrote, and the folder if nothing else is in it. What says whose it is goes last."""
    first: list[Path] = []
    last: list[Path] = []
    for path in written(folder):
        (last if path.name in (STARTED, FINISHED) and path.parent == folder else first).append(path)
    remove_files(first, folder)
    remove_empty({folder / CHECKPOINTS, folder / UNFINISHED})
    remove_files(last, folder)
    remove_empty({folder})


def move_unfinished(place: Path, partial: Path) -> None:
    """A run that was begun in the folder of the finished model goes on beside it. Cut short, it is done again."""
    partial.mkdir(exist_ok=True)
    if not (partial / STARTED).exists():
        write_json(partial / STARTED, read_object(place / STARTED))
    paths = [path for path in written(place) if path != place / STARTED]
    for path in paths:
        _move(path, partial / path.relative_to(place))
    remove_empty(_folders(place, [path.relative_to(place).as_posix() for path in paths]))
    (place / STARTED).unlink()
    remove_empty({place})


def carry(place: Path, partial: Path, checkpoint: Path | None) -> None:
    """What a run needs that goes on from a finished one: its log, and a checkpoint with the best one before it."""
    partial.mkdir(parents=True, exist_ok=True)
    if (place / LOG).is_file():
        shutil.copyfile(place / LOG, partial / LOG)
    best = None if checkpoint is None else checkpoint.with_name(f"checkpoint-{best_step(checkpoint)}")
    for source in {path for path in (checkpoint, best) if path is not None and path.is_dir()}:
        for name in (*marked(source), WHOLE):
            target = partial / CHECKPOINTS / source.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / name, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(source / name, target)


def finish(partial: Path, model: list[str], summary: RunSummary, earlier: dict[str, str | None] | None = None) -> None:
    """Marks a run as whole, once all of it is on the disk.

    Args:
        model: names of the files in `partial` that are the model's.
        earlier: files of a finished run that stay as they are, but for these.
    """
    paths = [partial / name for name in (*model, STARTED, LOG)]
    paths += [path for path in written(partial) if path.parent != partial]
    hashes = {}
    for path in paths:
        name = path.relative_to(partial).as_posix()
        size_and_hash = marked(path.parent).get(path.name) if path.name != WHOLE else None
        hashes[name] = size_and_hash[1] if isinstance(size_and_hash, list) else file_hash(path)
        flush(path)
    flush(partial)
    write_json(partial / FINISHED, {**summary, "files": {**(earlier or {}), **hashes}})


def listed(folder: Path, finished: RunSummary | None) -> dict[str, str | None]:
    """The files of the run in a folder, by name, with their hashes; None for those of an older toolkit's."""
    if finished is None and read_object(folder / STARTED) is None:
        return {}
    files = (finished or {}).get("files")
    return files if isinstance(files, dict) else {p.relative_to(folder).as_posix(): None for p in written(folder)}


def is_cut(partial: Path) -> bool:
    """Whether a whole run, or what is left of one, lies there since a swap was cut short."""
    if partial.is_dir() and not any(partial.iterdir()):
        return True
    marks = [read_object(partial / name) for name in (FINISHED, REPLACED)]
    return any(mark is not None and isinstance(mark.get("files"), dict) for mark in marks)


def swap(partial: Path, place: Path, out: Path) -> list[str]:
    """A whole run takes its place; cut short, it is done again. Files that are not a run's stay where they are.

    Returns:
        What was changed since the replaced run wrote it, and is kept under these names.

    Raises:
        OutputError: something is in the way, which is not of a run.
    """
    record, kept = partial / REPLACED, []
    try:
        if (partial / FINISHED).exists():
            new = (read_object(partial / FINISHED) or {})["files"]
            old = (read_object(record) or {}).get("files")
            if old is None:
                old = listed(place, read_summary(place))
                _check_free(partial, place, [name for name in new if name not in old], out)
                write_json(record, {"files": old})
            kept = _swap(partial, place, new, old)
        record.unlink(missing_ok=True)
        remove_empty({partial / CHECKPOINTS, partial / UNFINISHED, partial})
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(
            f"--output-dir {out}: the model is whole in {partial}, but can't be moved ({reason}); mend that, and run the same "
            "command again."
        ) from None
    return kept


def _check_free(partial: Path, place: Path, names: list[str], out: Path) -> None:
    for name in names:
        if os.path.lexists(place / name):
            raise OutputError(
                f"--output-dir {out}: the model is whole in {partial}, but {place / name}, which is not of a run, is in its "
                "way; move that, and run the same command again."
            )


def _swap(partial: Path, place: Path, new: dict[str, str | None], old: dict[str, str | None]) -> list[str]:
    place.mkdir(parents=True, exist_ok=True)
    (place / FINISHED).unlink(missing_ok=True)
    kept = []
    for name in new:
        if (partial / name).exists():
            if old.get(name) and _differs(place / name, old[name]) and _differs(place / name, new[name]):
                kept.append(_set_aside(place, name))
            _move(partial / name, place / name)
    gone = [name for name in old if name not in new and name != FINISHED and not _differs(place / name, old[name])]
    remove_files([place / name for name in gone], place)
    remove_files([p for p in written(partial) if p not in (partial / FINISHED, partial / REPLACED)], partial)
    remove_empty(_folders(partial, new))
    for folder in filter(Path.is_dir, _folders(place, new)):
        flush(folder)
    _move(partial / FINISHED, place / FINISHED)
    flush(place)
    return kept


def _folders(folder: Path, names: Iterable[str]) -> set[Path]:
    """Those below `folder` that these files are in."""
    return {parent for name in names for parent in (folder / name).parents if folder in parent.parents}


def _differs(path: Path, digest: str | None) -> bool:
    """Whether something else stands there than what has this hash (None: whatever it has); nothing does not."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file():
        return True
    return digest is not None and file_hash(path) != digest


def _set_aside(place: Path, name: str) -> str:
    """Renames a file to the first free name of those that end in .old, .old2, ..."""
    number = 1
    while os.path.lexists(target := beside(place / name, ".old" if number == 1 else f".old{number}")):
        number += 1
    os.rename(place / name, target)
    return target.relative_to(place).as_posix()


def _move(source: Path, target: Path) -> None:
    """By rename; where the target is on another file system, by a copy that is renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, beside(target, ".tmp"))
        flush(beside(target, ".tmp"))
        os.replace(beside(target, ".tmp"), target)
    source.unlink(missing_ok=True)  # copied, or a second name of the same file, which a rename leaves alone
