"""What the readers share: notes, splits, captions, and rows gathered by image."""

from __future__ import annotations

import ast
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.data.annotations._columns import Columns
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.data.sources import ImageSource
from toolkit.errors import InputError
from toolkit.records import ImageRecord
from toolkit.runtime.shelf import Shelf


class UnusableRow(NamedTuple):
    """A row of a source that gave no caption.

    Attributes:
        line: where it stands in its file, from 1 on; None in a container.
        reason: what is wrong with it, the same on every run.
        path: the image it speaks of, where that can be told.
    """

    line: int | None
    reason: str
    path: str | None = None

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line is not None else self.path
        return f"{where}: {self.reason}" if where else self.reason


class UnusableRows:
    """Rows that can't be used, in their order; above 1 MB they are kept in a temporary file."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[UnusableRow] = []  # the first three
        self._file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - as long-lived as this

    def add(self, row: UnusableRow) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(row)
        self._file.write(json.dumps(row).encode() + b"\n")

    def __iter__(self) -> Iterator[UnusableRow]:
        self._file.seek(0)
        yield from (UnusableRow(*json.loads(line)) for line in self._file)
        self._file.seek(0, os.SEEK_END)

    def __str__(self) -> str:
        more = "; ..." if self.count > len(self.first) else ""
        return f"{'; '.join(map(str, self.first))}{more}"


@dataclass
class Notes:
    """What a reader passed over, merged or mended. Complete once the records have been read to the end.

    Attributes:
        counts: by what happened, in words ("blank captions dropped").
        examples: the first few names for each of them.
        remarks: whole sentences for people.
        unusable: rows that gave no caption, though they should have.
        file: which of the source's files is being read, where there are several.
        nearest: for a few image names that lead to no file the nearest name there is (names.py).
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    unusable: UnusableRows = field(default_factory=UnusableRows)
    file: str = ""
    nearest: dict[str, str] = field(default_factory=dict)

    def count(self, what: str, example: str = "", number: int = 1) -> None:
        self.counts[what] += number
        examples = self.examples.setdefault(what, [])
        if example and len(examples) < 3 and example not in examples:
            examples.append(example)

    def reject(self, line: int | None, reason: str, path: str | None = None) -> None:
        """A row that can't be used: counted, listed in a cache's `rejected.jsonl`, and weighed by --max-rejected."""
        self.unusable.add(UnusableRow(line, f"{reason} ({self.file})" if self.file else reason, path))

    def say(self, remark: str) -> None:
        self.remarks.append(remark)

    def sentences(self) -> list[str]:
        """All of it for people, one line each."""
        lines = list(self.remarks)
        if self.unusable.count:
            lines.append(f"rows that can't be used: {self.unusable.count} ({self.unusable})")
        for what, number in self.counts.items():
            some = self.examples.get(what, [])
            more = ", ..." if number > len(some) else ""
            lines.append(f"{what}: {number}" + (f" ({', '.join(some)}{more})" if some else ""))
        return lines


def captions_in(value: Any) -> list[str] | None:
    """The captions in a JSON or Arrow value: a string, {"raw": ...}, or a list of either; None for another shape."""
    if value is None:
        return []
    if isinstance(value, str):
        return _list_in_text(value)
    if isinstance(value, dict):
        for key in ("raw", "captions", "caption", "text"):
            if key in value:
                return captions_in(value[key])
        tokens = value.get("tokens")
        return [" ".join(tokens)] if isinstance(tokens, list) and all(isinstance(t, str) for t in tokens) else None
    if isinstance(value, list):
        parts = [captions_in(part) for part in value]
        return None if None in parts else [text for part in parts if part for text in part]
    return None


_LITERAL = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LITERALS = re.compile(rf"\[\s*(?:{_LITERAL}(?:\s*,\s*|\s+|(?=\s*\])))*\s*\]", re.DOTALL)


def _list_in_text(text: str) -> list[str]:
    """The captions that somebody's export wrote into one cell, else the text itself.

    JSON: ["A dog.", "A cat."]     pandas: ['A dog.', 'A cat.']     numpy: ['A dog.' 'A cat.']
    """
    cell = text.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return [text]
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        if not _LITERALS.fullmatch(cell):
            return [text]
        values = [ast.literal_eval(literal) for literal in re.findall(_LITERAL, cell, re.DOTALL)]
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else [text]


def clean_captions(captions: Iterable[str], image: str, notes: Notes) -> list[str]:
    """Captions trimmed; blank ones dropped and counted."""
    cleaned = []
    for caption in captions:
        caption = caption.strip()
        if not caption:
            notes.count("blank captions dropped", image)
            continue
        if "\r" in caption:
            caption = caption.replace("\r\n", "\n")
        if not caption.isascii() and re.search("[\ud800-\udfff]", caption):  # half an emoji, from JSON's \ud83d
            caption = re.sub("[\ud800-\udfff]", "\ufffd", caption)
            notes.count("captions with half a character repaired", image)
        cleaned.append(caption)
    return cleaned


def clean_name(name: str) -> str:
    name = name.strip()
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


class Gathered:
    """Rows of a source, gathered by image in order of first appearance; many of them on the disk."""

    def __init__(self, path: Path, notes: Notes, columns: Columns) -> None:
        self.path = path
        self.notes = notes
        self.columns = columns
        self.rows = Shelf()  # name -> [id, split, captions, numbers of the captions]
        self.ids_given = False

    def add(
        self,
        name: str,
        captions: Iterable[str],
        image_id: str | None = None,
        split: Any = None,
        number: str = "",
        line: int | None = None,
    ) -> None:
        """`number`: the row's own index within the image, where the format has one; `line`: where the row stands."""
        name = clean_name(name)
        if not name:
            self.notes.reject(line, "no image name")
            return
        split = self.columns.split_name(self.path, split, name)
        captions = clean_captions(captions, name, self.notes)
        self.ids_given |= image_id is not None
        row = self.rows.setdefault(name, [image_id, split, [], []])
        if row[1] != split:
            raise InputError(
                f"{self.path}: {name} is in two splits ({row[1] or 'none'} and {split or 'none'}); leave it in one."
            )
        for caption in captions:
            if caption in row[2]:
                if number and (caption, number) in zip(row[2], row[3], strict=True):
                    self.notes.count("duplicate rows dropped", name)
                    continue
                self.notes.count("repeated captions of an image kept", name)
            row[2].append(caption)
            if number:
                row[3].append(number)

    def records(self) -> Iterator[ImageRecord]:
        ids = Shelf()  # id -> name of the first image that has it
        for name, (image_id, split, captions, _) in self.rows.items():
            if not captions:
                self.notes.count("images without a caption left out", name)
                continue
            image_id = name if image_id is None else image_id
            if self.ids_given and ids.setdefault(image_id, name) != name:
                self.notes.count("image ids given to two images, replaced by their names", name)
                image_id = name
                ids.setdefault(image_id, name)
            yield ImageRecord(image_id, name, tuple(captions), split)


def add_suffix(images: Path, name: str) -> str:
    """A name that a source gives without suffix, with the one that its file has."""
    source = ImageSource.of(images)
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES or source.exists(name):
        return name
    for suffix in (".jpg", ".png", *sorted(IMAGE_SUFFIXES)):
        for form in (suffix, suffix.upper()):
            if source.exists(name + form):
                return name + form
    return name
