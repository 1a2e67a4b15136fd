"""Files that are finished by a rename, held by one run, or known by their size and time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def unfinished(path: Path) -> Path:
    """Where to write a file that others may be writing too: a node of a cluster that is given up for lost may go on, while
    another makes its piece again. What a kill leaves there is no one's, so somebody must tidy the folder."""
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


def file_state(path: Path) -> tuple[int, int]:
    """(size, mtime_ns) of a file, (-1, -1) where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


def lock_file(path: Path) -> Any:
    """The open, locked file, which whoever asked for it deletes in the end.

    Raises:
        BlockingIOError: another run holds it.
        FileExistsError: what stands there is no lock: ours are empty.
    """
    if not _may_be_lock(path):
        raise FileExistsError(errno.EEXIST, f"{path.name} beside it is no lock of toolkit's", str(path))
    # The workers of a run that was killed a moment ago may hold on to it until they are dead too.
    patience = time.monotonic() + 1.0
    while True:
        handle = open(path, "a")  # noqa: SIM115 (held open for as long as the lock is held)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(handle.fileno())):
                return handle
            handle.close()  # the run before us removed the file between our two steps
        except OSError as error:
            handle.close()
            if not isinstance(error, (BlockingIOError, FileNotFoundError)) or time.monotonic() > patience:
                raise
            time.sleep(0.05)


def _may_be_lock(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_size == 0
