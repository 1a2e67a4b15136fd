"""Flickr8k's own `Flickr8k.token.txt`: no header, a tab, and each caption under the number it has with its image.

    1000268201_693b08cb0e.jpg#0	A child in a pink dress is climbing up a set of stairs in an entry way .

Its lemmatised variant has the same form; in another one the names have no `.jpg`. One name,
`2258277193_586949ec62.jpg.1`, has no image: it is kept, and becomes an image that can't be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Gathered, Notes, add_suffix
from toolkit.data.annotations._text import first_lines, read_lines
from toolkit.records import ImageRecord
from toolkit.runtime.shelf import Shelf

# The last "#" before the tab divides; names may hold others. Some copies have spaces for the tab.
_ROW = re.compile(r"(?P<name>[^\t]*)#(?P<number>\d+)(?:\t|\s{2,})(?P<caption>.*)", re.DOTALL)


def detect(path: Path) -> bool:
    lines = first_lines(path, 20)  # some may be broken
    return 2 * sum(_ROW.match(line) is not None for line in lines) >= max(1, len(lines))


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    gathered = Gathered(path, notes, columns)
    names = Shelf()  # name -> the same with a suffix
    for line, text in enumerate(read_lines(path), 1):
        if not text.strip():
            continue
        row = _ROW.match(text.rstrip("\r\n"))
        if row is None:
            notes.reject(line, "not `name.jpg#0<tab>caption`")
            continue
        name = row["name"].strip()
        full = names.get(name)
        if full is None:
            full = names.setdefault(name, add_suffix(images, name))
            if full != name:
                notes.count("names without a suffix completed", full)
        gathered.add(full, [row["caption"]], number=row["number"], line=line)
    yield from gathered.records()
