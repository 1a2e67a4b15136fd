"""Files that are finished by a rename, held by one run, or known by their size and time."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock


def beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def unfinished(path: Path) -> Path:
    """Where to write a file that others may be writing too: a node of a cluster that is given up for lost may go on, while
    another makes its shard again. What a kill leaves there is no one's, so somebody must tidy the folder."""
    return beside(path, f".{secrets.token_hex(4)}.tmp")


@contextmanager
def finishing(path: Path, temporary: Path | None = None, lasting: bool = True) -> Iterator[Path]:
    """Where to write a file, which appears under its own name when the block ends, and not at all if it fails.

    Its contents are on the disk before it has its name, and the name is when the block is left: what a finished file
    promises outlasts a power cut.

    Args:
        temporary: on the same file system. By default `<path>.tmp`, which the next run after a kill writes over.
        lasting: without it a power cut may take the file, which saves some milliseconds: for one of thousands that are
            soon made again.
    """
    temporary = temporary or beside(path, ".tmp")
    try:
        yield temporary
        if lasting:
            flush(temporary)
        os.replace(temporary, path)
        if lasting:
            flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def flush(path: Path) -> None:
    """Waits until a file's contents, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't, of folders above all
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, temporary: Path | None = None) -> None:
    with finishing(path, temporary) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file, or something else is in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def file_state(path: Path) -> tuple[int, int]:
    """(size, mtime_ns) of a file, (-1, -1) where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


def new_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock to acquire, which the system releases when the process ends, however it ends.

    Args:
        timeout: seconds to wait for another holder before `Timeout` is raised; -1 waits for ever.
    """
    return FileLock(path, timeout, thread_local=False, fallback_to_soft=False)
