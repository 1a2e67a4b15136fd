"""What batch-caption has done already: `<output>.state`, an SQLite file.

A caption is known by the bytes of its image and by the fingerprint of what made it (pipeline.fingerprint); a file by its
folder and name, its size and its time. So a renamed image keeps its caption, and only files that are new or whose size
or time changed are read again. Each batch is one transaction: a kill loses at most the batch in hand.

What was exported is known by content, so that what a person has changed since is told from what we wrote:

    captions   content, maker, row    `maker` is the fingerprint
    images     path, size, mtime_ns, content
    exports    path, content, rows    of a file that we wrote: its hash, and one of each of its rows where it has some

Journals of toolkit 0.1 have other fingerprints (`Fingerprint.former`), know files by name alone (`files`), and of what
was exported the paths alone (`written`). Their captions serve where they can: found by the images' bytes, and marked in
`uncompared`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from toolkit.data.images import PASSING
from toolkit.errors import OutputError

SCHEMA = """
CREATE TABLE IF NOT EXISTS captions (content TEXT, maker TEXT, row TEXT, PRIMARY KEY (content, maker)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS exports (path BLOB, content TEXT, rows BLOB, PRIMARY KEY (path, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uncompared (content TEXT, maker TEXT, PRIMARY KEY (content, maker)) WITHOUT ROWID;
"""
IN_MEMORY = Path(":memory:")

State = tuple[int, int]  # size and mtime_ns of a file
Done = tuple[str, State, str, dict[str, Any]]  # of an image: its place, state and content, and the row


class Fingerprint(NamedTuple):
    """What decides a caption besides the image.

    Attributes:
        now: a hash of all of it, with a version in front.
        former: the hash that toolkit 0.1 made of the weights, the options and its own version.
    """

    now: str
    former: str


class Journal:
    """One run's view of the state file; `begin` before captions are asked for.

    Attributes:
        anew: images captioned in this run of which a journal of toolkit 0.1 has a caption by other weights or options.

    Raises:
        OutputError: the file can't be written, or is no state file of batch-caption.
    """

    def __init__(self, path: Path, maker: Fingerprint = Fingerprint("", "")) -> None:  # noqa: B008 - it is frozen
        self.maker, self.anew = maker, 0
        self._lock = Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False)
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "captions" not in tables:
                raise OutputError(f"{path}: is a database of another program; move it, or name another --output.")
            self._db.executescript(SCHEMA)
            self._former = "written" in tables  # of toolkit 0.1
        except sqlite3.Error as error:
            raise OutputError(f"{path}: can't be used ({error}); delete it, or name another --output.") from None

    def begin(self, maker: Fingerprint, fresh: bool) -> None:
        """What makes the captions from here on; `fresh` forgets those that are there."""
        self.maker = maker
        if fresh:
            with self._lock, self._db:
                self._db.execute("DELETE FROM captions")
                self._db.execute("DELETE FROM uncompared")

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:  # threads that read images ask which are known
            return self._db.execute(query, values).fetchone()

    # ---- captions ---------------------------------------------------------------------------------------------------

    def content(self, place: str, state: State) -> str | None:
        """The content hash of a file that is as it was."""
        found = self._one(
            "SELECT content FROM images WHERE path = ? AND size = ? AND mtime_ns = ?", os.fsencode(place), *state
        )
        return found[0] if found else None

    def row(self, content: str) -> dict[str, Any] | None:
        for maker in self.maker:
            found = self._one("SELECT row FROM captions WHERE content = ? AND maker = ?", content, maker)
            row: dict[str, Any] = json.loads(found[0]) if found else {}
            if row and row["error"] not in PASSING:
                return row
        return None

    def is_compared(self, content: str) -> bool:
        """Whether a caption is known to be by the same tokenizer, image processor and settings of the model."""
        return self._one("SELECT 1 FROM uncompared WHERE content = ? AND maker = ?", content, self.maker.now) is None

    def add(self, done: Iterable[Done]) -> None:
        """The images of a batch, in one transaction."""
        with self._lock, self._db:
            for place, state, content, row in done:
                self._db.execute("REPLACE INTO images VALUES (?, ?, ?, ?)", (os.fsencode(place), *state, content))
                self._add_row(content, row)

    def _add_row(self, content: str, row: dict[str, Any]) -> None:
        key = (content, self.maker.now)
        stands = self._db.execute("SELECT 1 FROM captions WHERE content = ? AND maker = ?", key).fetchone()
        if (
            not stands
            and self._db.execute(
                "DELETE FROM captions WHERE content = ? AND maker = ?", (content, self.maker.former)
            ).rowcount
        ):  # the row is that one, from here on under the fingerprint of now
            self._db.execute("REPLACE INTO uncompared VALUES (?, ?)", key)
        elif not stands:
            others = "SELECT 1 FROM captions WHERE content = ? AND maker NOT LIKE '%:%'"
            self.anew += self._db.execute(others, (content,)).fetchone() is not None
        self._db.execute("REPLACE INTO captions VALUES (?, ?, ?)", (*key, json.dumps(row)))

    # ---- exports ----------------------------------------------------------------------------------------------------

    def exported(self, path: str) -> dict[str, bytes | None]:
        """The contents that we wrote to a path, each with the hashes of its rows; two where a run was cut short."""
        with self._lock:
            query = "SELECT content, rows FROM exports WHERE path = ?"
            return dict(self._db.execute(query, (os.fsencode(path),)).fetchall())

    def export(self, exports: Iterable[tuple[str, str, bytes | None]]) -> None:
        """Path, content and rows of files that are about to take their places; what was known of them stays known."""
        with self._lock, self._db:
            self._db.executemany(
                "REPLACE INTO exports VALUES (?, ?, ?)", ((os.fsencode(p), c, r) for p, c, r in exports)
            )

    def settle(self, exports: Iterable[tuple[str, str]]) -> None:
        """Path and content of files that stand: what stood there before is not ours any more."""
        with self._lock, self._db:
            values = [(os.fsencode(path), content) for path, content in exports]
            self._db.executemany("DELETE FROM exports WHERE path = ? AND content != ?", values)
            if self._former:
                self._db.executemany("DELETE FROM written WHERE path = ?", ((path,) for path, _ in values))

    def was_written(self, path: str) -> bool:
        """Whether toolkit 0.1 wrote this file; of what it wrote there the journal knows nothing."""
        return self._former and self._one("SELECT 1 FROM written WHERE path = ?", os.fsencode(path)) is not None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything that was ever said, whatever made it."""
        with self._lock:
            for (row,) in self._db.execute("SELECT row FROM captions"):
                yield json.loads(row)
