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

from toolkit.annotations._gather import Gathered, Notes
from toolkit.annotations._text import first_line, read_lines
from toolkit.errors import InputError
from toolkit.records import ImageRecord

_HEADER = ["image_name", "comment_number", "comment"]
_NO_SECOND_BAR = re.compile(r"\s*(\d+)\s+(\S.*)")


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("|", 2)]


def detect(path: Path) -> bool:
    return [field.lower() for field in _fields(first_line(path))] == _HEADER


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    gathered = Gathered(path, notes)
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
            raise InputError(f"{path}: line {line} is not `name| number| caption`; mend or remove it.")
        gathered.add(fields[0], [fields[2]], number=fields[1])
    if not header:
        raise InputError(f"{path}: the file is empty; give an annotation file with at least one image.")
    yield from gathered.records()
