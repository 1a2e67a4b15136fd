"""Flickr30k's `results.csv`: three columns between bars, with spaces around.

    image_name| comment_number| comment
    1000092795.jpg| 0| Two young guys with shaggy hair look at their hands while hanging out in the yard .
    2199200615.jpg| 4   A dog runs across the grass .

The last row is real: it lacks a bar, and is mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Gathered, Notes
from toolkit.data.annotations._text import first_line, read_lines
from toolkit.errors import InputError
from toolkit.records import ImageRecord

_HEADER = ["image_name", "comment_number", "comment"]
_NO_SECOND_BAR = re.compile(r"\s*(\d+)\s+(\S.*)")


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("|", 2)]


def detect(path: Path) -> bool:
    return [field.lower() for field in _fields(first_line(path))] == _HEADER


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    gathered = Gathered(path, notes, columns)
    columns.meet(_HEADER)
    image, captions = columns.find_image(_HEADER, path, _HEADER[:1]), columns.find_captions(_HEADER, path)
    split = columns.find_split(_HEADER, path)
    header = False
    for line, text in enumerate(read_lines(path), 1):
        if not text.strip():
            continue
        fields = _fields(text)
        if not header:
            header = True
            if [field.lower() for field in fields] != _HEADER:
                raise InputError(
                    f"{path}: its first line is not `{'| '.join(_HEADER)}`; add it or name another --format."
                )
            continue
        if len(fields) == 2 and (mended := _NO_SECOND_BAR.fullmatch(fields[1])):
            fields = [fields[0], mended[1], mended[2]]
            notes.count("rows with a missing delimiter repaired", f"line {line}")
        elif len(fields) == 2 and fields[1].isdigit():
            fields.append("")
        if len(fields) != 3:
            notes.reject(line, "not `name| number| caption`", fields[0] if len(fields) > 1 else None)
            continue
        row = dict(zip(_HEADER, fields, strict=True))
        said = [row[name] for name in captions]
        gathered.add(row[image or ""], said, split=row.get(split or ""), number=row["comment_number"], line=line)
    if not header:
        raise InputError(f"{path}: the file is empty; give an annotation file with at least one image.")
    yield from gathered.records()
