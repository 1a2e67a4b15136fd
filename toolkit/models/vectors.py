"""Vectors that a model has computed, kept by what they are of: float32, in an SQLite file.

    $XDG_CACHE_HOME/toolkit/clip/<model>.sqlite      ($XDG_CACHE_HOME is ~/.cache unless set)

Everything here may be deleted at any time. What is written is a transaction, so a kill loses at most the current batch.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

LIMIT = 4 * 2**30  # bytes of all models together, 2 million vectors of 512 numbers; then the file used longest ago goes
AT_ONCE = 500  # keys a query
PATIENCE = 60  # seconds to wait for another process that writes


def place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "toolkit", "clip")


class Picture(NamedTuple):
    """An image to encode.

    Attributes:
        content: a hash of it, if it is known already; then `read` is called only if its vector is not kept.
        read: gives its file's bytes, or the image itself; raises ImageError.
    """

    content: str | None
    read: Callable[[], bytes | Image.Image]


class VectorStore:
    """Key -> float32 vector, all of one length. Threads may share it.

    Where the file can't be used (a full disk, a folder that may not be written), vectors are kept in memory only.
    """

    def __init__(self, name: str) -> None:
        self._lock = Lock()
        path = place() / f"{name}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _tidy(path)
            self._db = _open(path)
        except sqlite3.DatabaseError:  # damaged
            with suppress(OSError):
                path.unlink()
            self._db = _open(":memory:")
        except OSError:
            self._db = _open(":memory:")

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors that are there, by key."""
        found: dict[str, np.ndarray] = {}
        wanted = list(dict.fromkeys(keys))
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"
            with self._lock, suppress(sqlite3.Error):
                found |= {key: np.frombuffer(blob, "<f4") for key, blob in self._db.execute(query, some)}
        return found

    def put(self, vectors: Mapping[str, np.ndarray]) -> None:
        rows = [(key, np.ascontiguousarray(vector, "<f4").tobytes()) for key, vector in vectors.items()]
        with self._lock, suppress(sqlite3.Error), self._db:
            self._db.executemany("REPLACE INTO vectors VALUES (?, ?)", rows)

    def close(self) -> None:
        self._db.close()


def _open(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
    database.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB)")
    with suppress(OSError):
        os.utime(path)
    return database


def _tidy(ours: Path) -> None:
    """Removes the files used longest ago, ours last of all, until the rest are below the limit."""
    files = [(path, path.stat()) for path in ours.parent.glob("*.sqlite")]
    total = sum(state.st_size for _, state in files)
    for path, state in sorted(files, key=lambda file: (file[0] == ours, file[1].st_mtime)):
        if total <= LIMIT:
            return
        with suppress(OSError):
            path.unlink()
        total -= state.st_size
