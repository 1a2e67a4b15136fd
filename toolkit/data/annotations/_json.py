"""JSON and JSON Lines, value by value; what a file's objects look like, and what they say of an image."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from toolkit.data.annotations._columns import IMAGE_KEYS, Columns, caption_columns, known_column
from toolkit.data.annotations._gather import Notes, captions_in
from toolkit.data.annotations._text import first_line, head, open_file, read_lines, read_text
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.errors import InputError
from toolkit.runtime.files import file_state

WINDOW = 1 << 20  # bytes of JSON that are read at once
_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path) -> Iterator[tuple[int, str | None, Any]]:
    """The values of a JSON file one by one, each with its line; only the one at hand is held, and some MB of text.

    Yields (line, None, element) for each element of a list; of an object (line, key, element) for a value that is a
    list, (line, key, value) for any other.
    """
    with open_file(path) as file:
        source = _Source(path, file)
        try:
            if source.skip("[{") == "[":
                yield from _elements(source, None)
            else:
                source.at += 1
                while source.skip() != "}":
                    source.skip('"')
                    key = source.value()
                    source.skip(":")
                    source.at += 1
                    if source.skip() == "[":
                        yield from _elements(source, key)
                    else:
                        yield source.line(), key, source.value()
                    if source.skip(",}") == ",":
                        source.at += 1
                source.at += 1
            if source.skip():
                raise json.JSONDecodeError("extra data", source.text, source.at)
        except (json.JSONDecodeError, RecursionError) as error:
            where = source.place(error) if isinstance(error, json.JSONDecodeError) else "somewhere"
            reason = getattr(error, "msg", error)
            raise InputError(f"{path}: broken JSON at {where} ({reason}); download or export it again.") from None


def _elements(source: _Source, key: str | None) -> Iterator[tuple[int, str | None, Any]]:
    source.at += 1
    while source.skip() != "]":
        yield source.line(), key, source.value()
        if source.skip(",]") == ",":
            source.at += 1
    source.at += 1


class _Source:
    """The text of a JSON file around the place `at`: what lies before has been dropped, what lies behind is read when
    it is needed."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.ended = "", 0, False
        self._line, self._counted = 1, 0  # up to where lines have been counted
        self._lines_before, self._columns_before = 0, 0  # that were dropped; of the line at which the text begins
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()

    def skip(self, expected: str = "") -> str:
        """Goes over white space to the next character, which is returned; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._more():
                break
        found = self.text[self.at : self.at + 1]
        if expected and found not in tuple(expected):
            raise json.JSONDecodeError(f"expecting {' or '.join(expected)}", self.text, self.at)
        return found

    def value(self) -> Any:
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            if end < len(self.text) or not self._more():  # a number may go on
                self.at = end
                return value

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def place(self, error: json.JSONDecodeError) -> str:
        column = error.colno + (self._columns_before if error.lineno == 1 else 0)
        return f"line {self._lines_before + error.lineno}, column {column}"

    def _more(self) -> bool:
        """Reads on, as much again as there is from here; False at the end."""
        if self.ended:
            return False
        self.line()
        dropped, self.text = self.text[: self.at], self.text[self.at :]
        self._lines_before = self._line - 1
        self._columns_before = len(dropped) - dropped.rfind("\n") - 1 + ("\n" not in dropped) * self._columns_before
        self.at = self._counted = 0
        data = self.file.read(max(WINDOW, len(self.text)))
        self.ended = not data
        try:
            self.text += self._utf8.decode(data, final=self.ended)
        except UnicodeDecodeError:
            read_text(self.path)  # says what is wrong, and where
            raise
        return True


def read_json_lines(path: Path, notes: Notes | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSON Lines file; broken lines go to the notes, else they are an error."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            reason = None if isinstance(value, dict) else "not a JSON object"
        except (json.JSONDecodeError, RecursionError) as error:
            value, reason = None, f"broken JSON ({getattr(error, 'msg', error)})"
        if reason is None:
            yield number, value
        elif notes is None:
            raise InputError(f"{path}: line {number} is {reason}; correct or remove it, each line holds one {{...}}.")
        else:
            notes.reject(number, reason)


# ---- what a file looks like -----------------------------------------------------------------------------------------

SAMPLE = 20  # values of a list that are looked at
MANY_KEYS = 1000  # of an object that are looked at
LARGEST_LINE = 1 << 22  # of JSON Lines; a longer one is a file without line breaks


@dataclass(frozen=True)
class Shape:
    """What a file of JSON holds, as far as it takes to tell its format.

    Attributes:
        kind: "list", "object" or "lines" (JSON Lines).
        samples: of an object, key -> the first values under it; else None -> the first elements.
    """

    kind: str
    samples: dict[str | None, list[Any]]

    def keys(self) -> set[str]:
        """Of all objects that were looked at."""
        return {key for values in self.samples.values() for value in values if isinstance(value, dict) for key in value}

    def objects(self, key: str | None) -> list[dict[str, Any]]:
        return [value for value in self.samples.get(key, []) if isinstance(value, dict)]


def json_shape(path: Path) -> Shape | None:
    """Never raises; None for what is no JSON. Reads on until it has met images or captions, wherever they begin."""
    if head(path).lstrip()[:1] not in ("[", "{"):
        return None
    return _shape(path, file_state(path))


@lru_cache(maxsize=64)
def _shape(path: Path, state: tuple[int, int]) -> Shape | None:
    lines = _first_objects(path)
    if lines:
        return Shape("lines", {None: lines})
    samples: dict[str | None, list[Any]] = {}
    try:
        for _, key, value in read_json(path):
            values = samples.setdefault(key, [])
            if len(values) < SAMPLE:
                values.append(value)
            if len(values) == SAMPLE and (key is None or any(is_row(v) or _of_coco(v) for v in values)):
                break
            if len(samples) == MANY_KEYS:  # names of something
                break
    except InputError:  # what comes before the mistake tells the format, and its reader tells the mistake
        if not samples:
            return None
    return Shape("list" if None in samples or head(path).lstrip()[:1] == "[" else "object", samples)


def _first_objects(path: Path) -> list[Any]:
    """The first objects of JSON Lines; [] for what isn't."""
    if not first_line(path).startswith("{"):
        return []
    found: list[Any] = []
    with open_file(path) as file:
        while len(found) < SAMPLE and 0 < len(data := file.readline(LARGEST_LINE + 1)) <= LARGEST_LINE:
            try:
                lines = [line.decode("utf-8-sig").strip() for line in data.splitlines()]  # of bytes: no other ends
            except UnicodeDecodeError:
                break
            found += [_object(line) for line in lines if line]
    whole = bool(found) and found[0] is not None  # as the first line of one JSON value can't be, if more follow
    sure = len(found) > 1 or path.suffix.lower() == ".jsonl" or (whole and (is_row(found[0]) or _of_coco(found[0])))
    if (whole and sure) or any(a is not None and b is not None for a, b in pairwise(found)):
        return [value for value in found if value is not None]
    return []


def _object(line: str) -> dict[str, Any] | None:
    if not line.endswith("}"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_row(value: Any) -> bool:
    """Whether this is an object that names an image and captions, under keys that are usual."""
    if not isinstance(value, dict) or known_column(value, IMAGE_KEYS) is None:
        return False
    return bool(caption_columns(value)) or isinstance(value.get(CONVERSATIONS), list)


def _of_coco(value: Any) -> bool:
    return isinstance(value, dict) and ("file_name" in value or {"image_id", "caption"} <= set(value))


def is_image_name(key: str | None) -> bool:
    return key is not None and os.path.splitext(key)[1].lower() in IMAGE_SUFFIXES


# ---- what an object says --------------------------------------------------------------------------------------------

CONVERSATIONS = "conversations"  # LLaVA's: [{"from": "human", "value": "<image>..."}, {"from": "gpt", "value": "..."}]


class Said(NamedTuple):
    """What an object says of an image; of the captions None where there is nothing that could be one."""

    name: str | None
    captions: list[str] | None
    split: Any


class Keys:
    """Reads objects that may each have other keys."""

    def __init__(self, path: Path, columns: Columns, known: Sequence[str] = IMAGE_KEYS) -> None:
        self.path, self.columns, self.known = path, columns, known
        self._found: dict[
            tuple[str, ...], tuple[str | None, list[str], str | None]
        ] = {}  # most rows have the same keys

    def find(self, row: dict[str, Any]) -> tuple[str | None, list[str], str | None]:
        """The keys of image, captions and split."""
        names = tuple(row)
        if names not in self._found:
            self.columns.meet(names)
            image, captions, split = self.columns.image, list(self.columns.captions), self.columns.split
            match = self.columns.match
            image = match(image, names) if image else known_column(names, self.known)
            named = [name for name in (match(wanted, names) for wanted in captions) if name is not None]
            captions = named if captions else caption_columns(names)
            split = match(split, names) if split else known_column(names, ("split",))
            self._found[names] = image, captions, split
        return self._found[names]

    def is_row(self, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        image, captions, _ = self.find(value)
        return image is not None and (bool(captions) or CONVERSATIONS in value)

    def read(self, row: dict[str, Any]) -> Said:
        image, keys, split = self.find(row)
        name = row[image] if image is not None else None
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        captions = captions_in([row[key] for key in keys]) if keys else None
        if not keys and not self.columns.captions:
            captions = _first_answer(row.get(CONVERSATIONS))
        return Said(name if isinstance(name, str) else None, captions, row[split] if split is not None else None)


def _first_answer(conversation: Any) -> list[str] | None:
    """What is said of an image first; later answers are to questions, and make no sense without them."""
    for turn in conversation if isinstance(conversation, list) else []:
        if isinstance(turn, dict) and turn.get("from") in ("gpt", "assistant") and isinstance(turn.get("value"), str):
            return [turn["value"]]
    return None


def what_keys(row: dict[str, Any]) -> str:
    """The keys of an object, for the reason why it can't be used."""
    keys = ", ".join(key if len(key) <= 40 else key[:40] + "..." for key in list(row)[:8])
    return f"its keys are {keys}{', ...' if len(row) > 8 else ''}" if row else "it is empty"
