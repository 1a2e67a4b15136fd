"""What batch-caption has done already: `<output>.state`, an SQLite file.

    captions   content, maker, row            by content hash of the image and model fingerprint (the column `maker`)
                                              behind the hash, with a colon, that of the prompt where there is one
    images     path, size, mtime_ns, content  the content hash of each file that was read
    exports    path, content, rows            of each file that we wrote: its hash, and a hash of each of its rows

So a renamed image keeps its caption, and only files that are new, or whose size or time changed, are read again. Each
batch is one transaction: a kill loses at most the current batch. By the hashes of exports, what a person has changed
since is told apart from what we wrote.

Journals of toolkit 0.1 have other fingerprints (`Fingerprint.former`), list files by name only (`files`), and exports by
path only (`written`). Their captions are used where the image's content is the same, and marked in `uncompared`.
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
from toolkit.records import CaptionResult

SCHEMA = """
CREATE TABLE IF NOT EXISTS captions (content TEXT, maker TEXT, row TEXT, PRIMARY KEY (content, maker)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS exports (path BLOB, content TEXT, rows BLOB, PRIMARY KEY (path, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uncompared (content TEXT, maker TEXT, PRIMARY KEY (content, maker)) WITHOUT ROWID;
"""
IN_MEMORY = Path(":memory:")

State = tuple[int, int]  # size and mtime_ns of a file
Done = tuple[str, State, str, CaptionResult]  # of an image: its place, state, key of `captions`, and captions


class Fingerprint(NamedTuple):
    """What decides a caption besides the image: the model and how it generates.

    Attributes:
        now: a hash of all of it, after a version number.
        former: the hash that toolkit 0.1 made of the weights, the options and its own version.
    """

    now: str
    former: str


class Journal:
    """One run's view of the state file; `begin` before captions are asked for.

    Attributes:
        anew: images captioned in this run for which toolkit 0.1 had a caption by other weights or options.

    Raises:
        OutputError: the file can't be written, or is not a state file of batch-caption.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint = Fingerprint("", "")) -> None:  # noqa: B008 - it is frozen
        self.fingerprint, self.anew = fingerprint, 0
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

    def begin(self, fingerprint: Fingerprint, fresh: bool) -> None:
        """Sets the fingerprint of all captions from now on; `fresh` forgets the captions that exist."""
        self.fingerprint = fingerprint
        if fresh:
            with self._lock, self._db:
                self._db.execute("DELETE FROM captions")
                self._db.execute("DELETE FROM uncompared")

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:  # the threads that read images ask too
            return self._db.execute(query, values).fetchone()

    # ---- captions ---------------------------------------------------------------------------------------------------

    def content(self, place: str, state: State) -> str | None:
        """The content hash of a file that has not changed."""
        found = self._one(
            "SELECT content FROM images WHERE path = ? AND size = ? AND mtime_ns = ?", os.fsencode(place), *state
        )
        return found[0] if found else None

    def result(self, content: str) -> CaptionResult | None:
        for fingerprint in self.fingerprint:
            found = self._one("SELECT row FROM captions WHERE content = ? AND maker = ?", content, fingerprint)
            result = CaptionResult.from_row(json.loads(found[0])) if found else None
            if result is not None and result.error not in PASSING:
                return result
        return None

    def is_compared(self, content: str) -> bool:
        """Whether a caption is known to come from the same tokenizer, image processor and settings of the model."""
        return (
            self._one("SELECT 1 FROM uncompared WHERE content = ? AND maker = ?", content, self.fingerprint.now) is None
        )

    def add(self, done: Iterable[Done]) -> None:
        """The images of a batch, in one transaction."""
        with self._lock, self._db:
            for place, state, content, result in done:
                image = (os.fsencode(place), *state, content.partition(":")[0])
                self._db.execute("REPLACE INTO images VALUES (?, ?, ?, ?)", image)
                self._add_result(content, result)

    def _add_result(self, content: str, result: CaptionResult) -> None:
        key = (content, self.fingerprint.now)
        stands = self._db.execute("SELECT 1 FROM captions WHERE content = ? AND maker = ?", key).fetchone()
        if (
            not stands
            and self._db.execute(
                "DELETE FROM captions WHERE content = ? AND maker = ?", (content, self.fingerprint.former)
            ).rowcount
        ):  # the former row, from now on under the new fingerprint
            self._db.execute("REPLACE INTO uncompared VALUES (?, ?)", key)
        elif not stands:
            others = "SELECT 1 FROM captions WHERE content = ? AND maker NOT LIKE '%:%'"
            self.anew += self._db.execute(others, (content,)).fetchone() is not None
        self._db.execute("REPLACE INTO captions VALUES (?, ?, ?)", (*key, json.dumps(result.to_row(kept=True))))

    # ---- exports ----------------------------------------------------------------------------------------------------

    def exported(self, path: str) -> dict[str, bytes | None]:
        """Content hashes of what we wrote to a path, each with the hashes of its rows; two after an interrupted run."""
        with self._lock:
            query = "SELECT content, rows FROM exports WHERE path = ?"
            return dict(self._db.execute(query, (os.fsencode(path),)).fetchall())

    def export(self, exports: Iterable[tuple[str, str, bytes | None]]) -> None:
        """Notes path, content and rows of files that are about to be written; what was noted before stays."""
        with self._lock, self._db:
            self._db.executemany(
                "REPLACE INTO exports VALUES (?, ?, ?)", ((os.fsencode(p), c, r) for p, c, r in exports)
            )

    def settle(self, exports: Iterable[tuple[str, str]]) -> None:
        """Forgets what was noted before of files that are written now."""
        with self._lock, self._db:
            values = [(os.fsencode(path), content) for path, content in exports]
            self._db.executemany("DELETE FROM exports WHERE path = ? AND content != ?", values)
            if self._former:
                self._db.executemany("DELETE FROM written WHERE path = ?", ((path,) for path, _ in values))

    def was_written(self, path: str) -> bool:
        """Whether toolkit 0.1 wrote this file; its content is not in the journal."""
        return self._former and self._one("SELECT 1 FROM written WHERE path = ?", os.fsencode(path)) is not None

    def results(self) -> Iterator[CaptionResult]:
        """All captions, by any fingerprint."""
        with self._lock:
            for (row,) in self._db.execute("SELECT row FROM captions"):
                yield CaptionResult.from_row(json.loads(row))


def places_in(path: Path) -> list[str]:
    """Where the images are that a state file knows; none if there is no state file."""
    if not path.is_file():
        return []
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return [os.fsdecode(place) for (place,) in database.execute("SELECT path FROM images")]
        finally:
            database.close()
    except sqlite3.Error:  # something else's
        return []
