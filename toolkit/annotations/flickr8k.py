"""Flickr8k as Kaggle has it: `captions.txt` with a header `image,caption`, quoted where a caption holds a comma.

    image,caption
    1000268201_693b08cb0e.jpg,A child in a pink dress is climbing up a set of stairs in an entry way .
    1001773457_577c3a7d70.jpg,"A black dog and a white dog, on the road ."

Also with tabs or semicolons, and with more columns (a column `split` is heeded).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from toolkit.annotations._gather import Gathered, Notes, caption_columns
from toolkit.annotations._text import first_line, read_csv
from toolkit.errors import InputError
from toolkit.records import ImageRecord

IMAGE_COLUMNS = ("image", "image_name", "filename", "file")


def _columns(header: list[str]) -> tuple[int, list[int], int | None] | None:
    """Where image, captions and split are; None if this is no such header."""
    names = [name.strip().lower() for name in header]
    image = next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)
    captions = [names.index(name) for name in caption_columns(names) or (["comment"] if "comment" in names else [])]
    if image is None or not captions:
        return None
    return image, captions, names.index("split") if "split" in names else None


def _delimiter(line: str) -> str:
    return max(",\t;", key=line.count)


def detect(path: Path) -> bool:
    line = first_line(path)
    try:
        return _columns(next(csv.reader([line], delimiter=_delimiter(line)), [])) is not None
    except csv.Error:
        return False


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    delimiter = _delimiter(first_line(path))
    rows = read_csv(path, delimiter)
    _, header = next(rows, (0, []))
    columns = _columns(header)
    if columns is None:
        found = ", ".join(name.strip() for name in header)[:80]
        raise InputError(
            f"{path}: its first line has no columns image and caption (but {found or 'nothing'}); "
            "write `image,caption` above the rows."
        )
    image, captions, split = columns
    gathered = Gathered(path, notes)
    for line, row in rows:
        if len(row) > len(header) and captions == [len(header) - 1]:
            # A caption with commas that somebody forgot to quote; the last column, so nothing else can be meant.
            row[len(header) - 1 :] = [delimiter.join(row[len(header) - 1 :])]
            notes.count("rows with unquoted commas repaired", f"line {line}")
        elif len(row) > len(header):
            raise InputError(
                f"{path}: line {line} has {len(row)} fields for {len(header)} columns; quote its captions."
            )
        row += [""] * (len(header) - len(row))
        gathered.add(row[image], [row[c] for c in captions], split=row[split] if split is not None else None)
    yield from gathered.records()
