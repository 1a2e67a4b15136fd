"""What batch-caption has done already: `<output>.state`, an SQLite file.

A caption is known by the bytes of its image and by what made it (model and settings), a file by its name, size and
time; so a renamed image keeps its caption, and only files whose size or time changed are read again. Each batch is one
transaction: a kill loses at most the batch in hand.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.errors import OutputError

SCHEMA = """
CREATE TABLE IF NOT EXISTS captions (content TEXT, maker TEXT, row TEXT, PRIMARY KEY (content, maker)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (name BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Journal:
    """One run's view of the state file; `maker` says what decides a caption besides the image.

    Raises:
        OutputError: the file can't be written, or is no state file.
    """

    def __init__(self, path: Path, maker: str, fresh: bool = False) -> None:
        self.maker = maker
        try:
            self._db = sqlite3.connect(path)
            self._db.executescript(SCHEMA)
            if fresh:
                self._db.execute("DELETE FROM captions")
                self._db.commit()
        except sqlite3.Error as error:
            raise OutputError(f"{path}: can't be used ({error}); delete it, or name another --output.") from None

    def close(self) -> None:
        self._db.close()

    def content(self, name: str, stat: tuple[int, int]) -> str | None:
        """The content hash of a file that is as it was, by size and mtime_ns."""
        query = "SELECT content FROM files WHERE name = ? AND size = ? AND mtime_ns = ?"
        found = self._db.execute(query, (os.fsencode(name), *stat)).fetchone()
        return found[0] if found else None

    def row(self, content: str) -> dict[str, Any] | None:
        query = "SELECT row FROM captions WHERE content = ? AND maker = ?"
        found = self._db.execute(query, (content, self.maker)).fetchone()
        return json.loads(found[0]) if found else None

    def add(self, done: Iterable[tuple[str, tuple[int, int], str, dict[str, Any]]]) -> None:
        """Name, size and time, content and row of each image of a batch, in one transaction."""
        with self._db:
            for name, stat, content, row in done:
                self._db.execute("REPLACE INTO files VALUES (?, ?, ?, ?)", (os.fsencode(name), *stat, content))
                self._db.execute("REPLACE INTO captions VALUES (?, ?, ?)", (content, self.maker, json.dumps(row)))

    def wrote(self, path: Path) -> bool:
        """Whether an earlier run claimed this file."""
        return self._db.execute("SELECT 1 FROM written WHERE path = ?", (os.fsencode(path),)).fetchone() is not None

    def claim(self, paths: Iterable[Path]) -> None:
        with self._db:
            self._db.executemany("REPLACE INTO written VALUES (?)", ((os.fsencode(path),) for path in paths))
