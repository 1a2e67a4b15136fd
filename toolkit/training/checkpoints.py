"""The checkpoints of a training run: whole ones are known by the hashes of their files.

checkpoints/checkpoint-12/
    whole.json                        written last: size and hash of each of the other files
    model.safetensors  optimizer.pt   and what else Trainer writes
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runtime.files import flush, read_object, write_json
from toolkit.runtime.hashing import file_hash
from toolkit.runtime.swap import above, remove_empty

WHOLE = "whole.json"
AVERAGE = "average.safetensors"  # of --ema
MODEL = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "README.md",
)  # fmt: skip
# What Trainer and peft write into a checkpoint. Nothing else in its folder is ever deleted.
FILES = (
    WHOLE, *MODEL, AVERAGE, "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json",
    "training_args.bin",
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
    return read_object(checkpoint / WHOLE) or {}


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
    return (read_object(checkpoint / "trainer_state.json") or {}).get("best_global_step")


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
            wrong = wrong and f"the best one so far, {other.name}, is damaged: {wrong}"
        if wrong is None:
            return path
        if (path / WHOLE).exists():
            told(f"note: {path} is not used ({wrong})")
    return None


def files_of(folder: Path) -> list[Path]:
    """The files that a run wrote into the checkpoints of a folder; files that somebody else put there are left out."""
    return [path for checkpoint in checkpoints(folder) for path in _own(checkpoint)]


def _own(checkpoint: Path) -> list[Path]:
    """The mark first, which is also deleted first: without it no checkpoint is whole."""
    named = {checkpoint / name for name in marked(checkpoint)}
    named |= {path for pattern in FILES for path in checkpoint.glob(pattern)}
    return sorted((p for p in named if p.is_file() or p.is_symlink()), key=lambda p: (p.name != WHOLE, p))


def rotate(folder: Path, limit: int, best: int | None) -> None:
    """Deletes all checkpoints but the best and the newest `limit` others."""
    for checkpoint in [path for path in checkpoints(folder) if step_of(path) != best][:-limit]:
        paths = _own(checkpoint)
        for path in paths:
            path.unlink(missing_ok=True)
        remove_empty(above(paths, folder))
