"""Flickr8k as Kaggle has it: `captions.txt` with a header `image,caption`, quoted where a caption holds a comma.

    image,caption
    1000268201_693b08cb0e.jpg,A child in a pink dress is climbing up a set of stairs in an entry way .
    1001773457_577c3a7d70.jpg,"A black dog and a white dog, on the road ."

And any other table with a header: divided by tabs, semicolons or bars too, with columns by other names, and with more of
them (a column `split` is heeded).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.data.annotations import flickr30k
from toolkit.data.annotations._columns import IMAGE_KEYS, Columns, caption_columns, known_column
from toolkit.data.annotations._csv import read_table, table_header
from toolkit.data.annotations._gather import Gathered, Notes
from toolkit.records import ImageRecord


def detect(path: Path) -> bool:
    header = table_header(path)
    if "file_name" in header or flickr30k.detect(path):  # Hugging Face's metadata.csv
        return False
    return known_column(header, IMAGE_KEYS) is not None and bool(caption_columns(header))


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    gathered = Gathered(path, notes, columns)
    for row in read_table(path, notes, columns):
        gathered.add(row.name, row.captions, split=row.split, line=row.line)
    yield from gathered.records()
