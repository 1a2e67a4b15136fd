"""The files that a training run writes: listing, clearing and moving them, and nothing that lies beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypedDict, cast

from toolkit.runtime.files import flush, read_object, write_json
from toolkit.runtime.hashing import file_hash
from toolkit.runtime.swap import REPLACED, Files, Kind, above, link, move, remove_empty
from toolkit.training.checkpoints import MODEL, WHOLE, best_step, files_of, marked

STARTED = "options.json"  # written first: what a resumed run must agree with
FINISHED = "finetune.json"  # written last: a folder with it is whole; metrics, and the run's files by content hash
LOG = "training.jsonl"
CHECKPOINTS = "checkpoints"
UNFINISHED = "unfinished"  # the model while it is being saved
# All that may be written into the folder besides checkpoints; of runs whose FINISHED lists no files this must do.
NAMES = (
    STARTED, f"{STARTED}.tmp", FINISHED, REPLACED, LOG, *MODEL, "report.html", "base.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "preprocessor_config.json", "processor_config.json", f"{UNFINISHED}/*",
    f"{CHECKPOINTS}/runs/**/events.out.tfevents.*",
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
    data_sets: list[dict[str, Any]]  # of several caches: name, share, train images an epoch, metrics on its validation
    notes: list[str]
    extended: list[dict[str, Any]]  # how long the run was before each time that it was extended
    files: Files


def read_summary(folder: Path) -> RunSummary | None:
    return cast(RunSummary | None, read_object(folder / FINISHED))


def written(folder: Path) -> list[Path]:
    """The files in a run's folder that are a run's by their names."""
    found = {path for name in NAMES for path in folder.glob(name) if path.is_file() or path.is_symlink()}
    return [*sorted(found), *files_of(folder / CHECKPOINTS)]


def listed(mark: Path, folder: Path) -> Files:
    """The files that a finished run lists, or one of an older toolkit's has by their names; none where no run is."""
    if not mark.exists() and read_object(folder / STARTED) is None:
        return {}
    files = (read_object(mark) or {}).get("files")
    if not isinstance(files, dict):
        return {path.relative_to(folder).as_posix(): None for path in written(folder)}
    return {name: digest for name, digest in files.items() if ".." not in name.split("/") and not name.startswith("/")}


RUN = Kind(FINISHED, listed, written, last=(STARTED, FINISHED, REPLACED))


def move_unfinished(place: Path, partial: Path) -> None:
    """A run that was begun in the folder of the finished model goes on beside it. Cut short, it is done again."""
    partial.mkdir(exist_ok=True)
    if not (partial / STARTED).exists():
        write_json(partial / STARTED, read_object(place / STARTED))
    paths = [path for path in written(place) if path != place / STARTED]
    for path in paths:
        move(path, partial / path.relative_to(place))
    remove_empty(above(paths, place))
    (place / STARTED).unlink()
    remove_empty([place])


def carry(place: Path, partial: Path, checkpoint: Path | None) -> None:
    """What a run needs that goes on from a finished one: its log, and a checkpoint with the best one before it."""
    partial.mkdir(parents=True, exist_ok=True)
    if (place / LOG).is_file():
        shutil.copyfile(place / LOG, partial / LOG)
    best = None if checkpoint is None else checkpoint.with_name(f"checkpoint-{best_step(checkpoint)}")
    for source in {path for path in (checkpoint, best) if path is not None and path.is_dir()}:
        for name in (*marked(source), WHOLE):
            link(source / name, partial / CHECKPOINTS / source.name / name)


def finish(partial: Path, model: list[str], summary: RunSummary, earlier: Files | None = None) -> None:
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


def is_cut(partial: Path) -> bool:
    """Whether a whole run, or what is left of one, lies there since a swap was cut short."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    marks = [read_object(partial / name) for name in (FINISHED, REPLACED)]
    return not any(partial.iterdir()) or any(isinstance((mark or {}).get("files"), dict) for mark in marks)
