"""A dictionary that keeps a bounded part of itself in memory and the rest in a temporary SQLite database."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toolkit.errors import RunError

ENTRIES = 10_000  # held in memory, some MB of them
CACHE = 4 * 2**10  # KB of the database
CHUNK = 1000  # entries read at once


class Shelf:
    """String keys -> JSON values, in the order in which the keys came.

    A value may be changed in place, until another key is asked for.

    Raises:
        RunError: the disk is full.
    """

    def __init__(self) -> None:
        self._recent: dict[str, tuple[int, Any]] = {}  # key -> (number, value); not in the database, or newer
        self._count = 0
        self._database: sqlite3.Connection | None = None

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def get(self, key: str) -> Any:
        """The value, or None."""
        found = self._find(key)
        return None if found is None else found[1]

    def setdefault(self, key: str, value: Any) -> Any:
        """The value that is there, or else the one given, which is kept."""
        found = self._find(key)
        if found is not None:
            return found[1]
        self._count += 1
        self._keep(key, self._count, value)
        return value

    def items(self) -> Iterator[tuple[str, Any]]:
        if self._database is None:
            yield from ((key, value) for key, (_, value) in list(self._recent.items()))
        else:
            yield from ((_text(key), json.loads(value)) for _, key, value in self._rows("number, key, value"))

    def __iter__(self) -> Iterator[str]:
        if self._database is None:
            yield from list(self._recent)
        else:
            yield from (_text(key) for _, key in self._rows("number, key"))

    def in_order(self) -> Iterator[str]:
        """The keys, sorted; nothing may be added meanwhile."""
        if self._database is None:
            yield from sorted(self._recent)
            return
        self._write()
        rows, last = [(b"",)] if "" in self else [], b""
        while True:
            yield from (_text(key) for (key,) in rows)
            with _full_disk():
                rows = self._database.execute(
                    f"SELECT key FROM entries WHERE key > ? ORDER BY key LIMIT {CHUNK}", (last,)
                ).fetchall()
            if not rows:
                return
            (last,) = rows[-1]

    def _rows(self, columns: str) -> Iterator[Any]:
        last = 0
        while True:
            self._write()
            query = f"SELECT {columns} FROM entries WHERE number > ? ORDER BY number LIMIT {CHUNK}"
            with _full_disk():
                rows = self._database.execute(query, (last,)).fetchall() if self._database else []
            if not rows:
                return
            yield from rows
            last = rows[-1][0]

    def _find(self, key: str) -> tuple[int, Any] | None:
        found = self._recent.get(key)
        if found is None and self._database is not None:
            with _full_disk():
                row = self._database.execute(
                    "SELECT number, value FROM entries WHERE key = ?", (_bytes(key),)
                ).fetchone()
            if row is not None:
                self._keep(key, row[0], json.loads(row[1]))
                return self._recent[key]
        return found

    def _keep(self, key: str, number: int, value: Any) -> None:
        if len(self._recent) >= ENTRIES and key not in self._recent:
            self._write()
        self._recent[key] = (number, value)

    def _write(self) -> None:
        """Empties the memory into the database."""
        with _full_disk():
            if self._database is None:
                # Without a name: SQLite makes a file in the folder for temporary files, and deletes it at once.
                self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                self._database.execute("PRAGMA journal_mode = OFF")
                self._database.execute("PRAGMA synchronous = OFF")
                self._database.execute(f"PRAGMA cache_size = -{CACHE}")
                self._database.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, key BLOB UNIQUE, value TEXT)")
                self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                ((number, _bytes(key), json.dumps(value)) for key, (number, value) in self._recent.items()),
            )
        self._recent.clear()


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # half a character, from JSON's \ud83d


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RunError(
            f"{tempfile.gettempdir()}: the names of images can't be sorted there ({error}); set TMPDIR to a folder with "
            "more room."
        ) from None
