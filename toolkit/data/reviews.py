"""A person's word on captions: `<captions>.review`, one JSON row an action, in the order in which they were taken.

    {"time": "2026-03-01T09:30:12.345+00:00", "id": "a.jpg", "action": "edit", "text": "A brown dog runs ."}
    {"time": "2026-03-01T09:30:15.101+00:00", "id": "a.jpg", "action": "undo", "text": null}
    {"time": ..., "id": "b.jpg", "action": "reject", "text": null, "caption": "A cat ."}

`id` is the image as the captions name it. Where images have several captions that are judged one by one, as in a cache,
`caption` is the one that the row is about, as it was given. `undo` takes back the last action on the same image (and
caption) that still stands; of several the last one counts. Rows are only ever appended, so all of this stays legible.

An append holds a lock on the file (flock), ends a line that a killed process has left unfinished, and is on the disk
before it returns. A line that is no row is passed over and counted; such a piece was never shown as done.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from toolkit.errors import InputError, OutputError
from toolkit.records import ImageRecord
from toolkit.runtime.files import beside, flush

ACTIONS = ("accept", "edit", "reject", "undo")
SUFFIX = ".review"
START = b'{"time": "'  # of every row

Key = tuple[str, str | None]  # id, and the caption if it is about one of several


@dataclass(frozen=True)
class Action:
    """One row.

    Attributes:
        text: the caption as accepted or edited; None for the other actions.
        caption: which one of the image's captions it is about; None if about the image.
        time: ISO 8601, UTC.
    """

    id: str
    action: str
    text: str | None = None
    caption: str | None = None
    time: str = ""

    @property
    def key(self) -> Key:
        return self.id, self.caption

    def to_row(self) -> dict[str, Any]:
        row = {"time": self.time, "id": self.id, "action": self.action, "text": self.text}
        return row if self.caption is None else {**row, "caption": self.caption}

    @classmethod
    def from_row(cls, row: Any) -> Action | None:
        """None for anything that is no row of a review."""
        if not isinstance(row, dict) or row.get("action") not in ACTIONS:
            return None
        given: list[Any] = [row.get(name) for name in ("id", "action", "text", "caption", "time")]
        action = cls(*given)
        needs_text = action.action in ("accept", "edit")
        optional = all(value is None or isinstance(value, str) for value in (action.text, action.caption, action.time))
        whole = isinstance(action.id, str) and optional and isinstance(action.text, str) == needs_text
        return action if whole else None


def review_of(captions: Path) -> Path:
    """The review beside a file of captions or a cache."""
    place = Path(os.path.realpath(captions)) if captions.name in ("", "..") else captions
    return beside(place, SUFFIX)


class Review:
    """The actions of one file, which other processes may append to at the same time.

    Attributes:
        rows: all actions, in order.
        unreadable: lines that are none.
        reading: changes when the file was replaced, so that row numbers of before mean nothing.

    Raises:
        OutputError: the file is not a review.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.reading = path, 0
        self._lock = Lock()
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self.rows: list[Action] = []
        self.unreadable = 0
        self._standing: dict[Key, list[Action]] = {}
        self._file: tuple[int, int] | None = None  # device and inode
        self._end = 0  # bytes that were read
        self._torn = False  # whether they end within a line
        self.reading += 1

    # ---- reading ----------------------------------------------------------------------------------------------------

    def standing(self) -> dict[Key, Action]:
        """The action that counts for each image or caption that has one."""
        with self._lock:
            return {key: actions[-1] for key, actions in self._standing.items() if actions}

    def refresh(self) -> None:
        """Reads what has been appended since."""
        if not os.path.lexists(self.path):
            with self._lock:
                if self._file is not None:
                    self._forget()
            return
        with self._lock, self._opened(os.O_RDONLY, fcntl.LOCK_SH) as handle:
            self._read(handle)

    @contextmanager
    def _opened(self, flags: int, lock: int) -> Iterator[int]:
        try:
            if os.path.lexists(self.path) and not stat.S_ISREG(os.stat(self.path).st_mode):
                raise self._refused("is not a regular file")
            handle = os.open(self.path, flags | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._refused(f"can't be opened ({error.strerror})") from None
        try:
            try:
                fcntl.flock(handle, lock)
            except OSError as error:
                raise self._refused(f"can't be locked ({error.strerror})") from None
            yield handle
        finally:
            os.close(handle)  # and with it the lock

    def _refused(self, why: str) -> OutputError:
        return OutputError(
            f"{self.path}: {why}, but that is where the review of {self.path.stem} is kept; move it away."
        )

    def _read(self, handle: int) -> None:
        found = os.fstat(handle)
        if self._file != (found.st_dev, found.st_ino) or found.st_size < self._end:
            self._forget()
            self._file = (found.st_dev, found.st_ino)
        with open(handle, "rb", closefd=False) as file:
            file.seek(self._end)
            data = file.read()
        self._end += len(data)
        for line in data.split(b"\n"):
            if line.strip():
                self._add(line)
        self._torn = not data.endswith(b"\n") if data else self._torn
        if self.unreadable and not self.rows and not (self._torn and data.startswith(START[: len(data)])):
            raise self._refused("is not a review")

    def _add(self, line: bytes) -> None:
        try:
            action = Action.from_row(json.loads(line))
        except (ValueError, RecursionError):
            action = None
        if action is None:
            self.unreadable += 1
            return
        self.rows.append(action)
        of_key = self._standing.setdefault(action.key, [])
        if action.action != "undo":
            of_key.append(action)
        elif of_key:
            of_key.pop()

    # ---- appending --------------------------------------------------------------------------------------------------

    def append(self, actions: Sequence[Action], seen: int | None = None) -> bool:
        """Appends actions with the time of now; they are on the disk when this returns.

        Args:
            seen: how many rows the person has seen; with it, nothing is appended if a later one is on the same key.

        Returns:
            Whether they were appended.

        Raises:
            OutputError: the file can't be written; nothing was appended.
        """
        with self._lock, self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as handle:
            self._read(handle)
            if seen is not None and {row.key for row in self.rows[seen:]} & {action.key for action in actions}:
                return False
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            rows = [json.dumps(replace(action, time=time).to_row(), ensure_ascii=False) + "\n" for action in actions]
            data = "".join(rows).encode("utf-8", "backslashreplace")  # a half of a character as its escape
            try:
                self._write(handle, b"\n" + data if self._torn else data)
            except OSError as error:
                os.ftruncate(handle, self._end)  # what nobody has been shown
                raise OutputError(f"{self.path}: can't be written ({error.strerror}); make room there.") from None
            self._read(handle)
            return True

    def _write(self, handle: int, data: bytes) -> None:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
        if self._end == 0:
            flush(self.path.parent)


# ---- captions with a person's word ----------------------------------------------------------------------------------


def read_review(path: Path, option: str) -> Review:
    """A review that must be there.

    Raises:
        InputError: no such file, or no review.
    """
    if not path.is_file():
        raise InputError(f"{option} {path}: no such file; name the {SUFFIX} file that `toolkit review` keeps.")
    try:
        review = Review(path)
    except OutputError:
        review = None
    if review is None or not review.rows:
        raise InputError(f"{option} {path}: is not a review; name the {SUFFIX} file that `toolkit review` keeps.")
    return review


@dataclass
class Reviewed:
    """Records with a person's word; complete once `apply` has been read to the end.

    Attributes:
        edited: captions that were replaced.
        dropped: captions that were rejected, of images that have others.
        rejected: images that were left out.
        unknown: ids in the review that are no image's.
    """

    words: dict[str, dict[str | None, Action]]
    edited: int = 0
    dropped: int = 0
    rejected: int = 0
    unknown: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, review: Review) -> Reviewed:
        words: dict[str, dict[str | None, Action]] = {}
        for (image, caption), action in review.standing().items():
            words.setdefault(image, {})[caption] = action
        return cls(words, unknown=set(words))

    def apply(self, records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        for record in records:
            known = record.image_id if record.image_id in self.words else record.path
            words = self.words.get(known)
            if words is None:
                yield record
                continue
            self.unknown.discard(known)
            captions = self._captions(record.captions, words)
            if captions is None or (record.captions and not captions):
                self.rejected += 1
            else:
                yield replace(record, captions=tuple(captions))

    def _captions(self, given: Sequence[str], words: dict[str | None, Action]) -> list[str] | None:
        """The captions that count; None for an image that was rejected."""
        whole = words.get(None)
        if whole is not None and whole.action == "reject":
            return None
        if whole is not None and whole.action == "edit":
            self.edited += 1
            return [str(whole.text)]
        if whole is not None and whole.text in given:  # chosen among several
            return [str(whole.text)]
        found: list[str] = []
        for caption in given:
            last = latest(caption, words)
            if last is None:
                self.dropped += 1
                continue
            self.edited += last != caption
            found.append(last)
        if given and not found:
            self.dropped -= len(given)  # counted as an image
        return found


def latest(caption: str, words: dict[str | None, Action]) -> str | None:
    """What became of one of an image's captions; None if it was rejected. An edited caption may have been edited again
    under its new text, after the cache was made anew."""
    seen = {caption}
    while (word := words.get(caption)) is not None and word.action in ("edit", "reject"):
        if word.action == "reject":
            return None
        caption = str(word.text)
        if caption in seen:
            break
        seen.add(caption)
    return caption
