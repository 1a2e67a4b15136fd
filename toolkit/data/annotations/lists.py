"""Lists of splits: files with the image names of train, validation or test, one a line.

Lists take the place of the source's own splits:

| an image                                          | goes to                       |
| ------------------------------------------------- | ----------------------------- |
| in a list                                         | the split of that list        |
| in none, and train has a list                     | no split: it is left out      |
| in none, and train has no list                    | train, or the source's own    |
|                                                   | split if that has no list     |

Validation without a list is drawn from train, by the content of the images, when they are read (`build.py`).
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from toolkit.data.annotations._gather import Notes
from toolkit.data.annotations._text import read_lines
from toolkit.errors import InputError
from toolkit.records import SPLITS, ImageRecord

LIST_FILES = {
    "train": ("*trainImages.txt",),
    "validation": ("*devImages.txt", "*valImages.txt"),
    "test": ("*testImages.txt",),
}
Lists = dict[str, list[Path]]  # split -> its files


def lists_beside(path: Path) -> Lists:
    """Lists as Flickr8k has them, in the folder of the annotations."""
    found = {
        split: sorted(file for pattern in patterns for file in path.parent.glob(pattern))
        for split, patterns in LIST_FILES.items()
    }
    return {split: files for split, files in found.items() if files}


def read_lists(lists: Lists) -> dict[str, str]:
    """Image name -> split.

    Raises:
        InputError: no such file, a list without a name, a name in two lists.
    """
    splits: dict[str, str] = {}
    for split, files in lists.items():
        if split not in SPLITS:
            raise InputError(f"split {split}: unknown; lists are for {', '.join(SPLITS)}.")
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: no such file; name a list of image names, one per line.")
            before = len(splits)
            for line in read_lines(file):
                name = unicodedata.normalize("NFC", line.strip()).removeprefix("./")
                if name and splits.setdefault(name, split) != split:
                    raise InputError(f"{file}: {name} is in the {splits[name]} list too; leave it in one of them.")
            if len(splits) == before:
                raise InputError(
                    f"{file}: names no image, so no image would be in {split}; write the names there, one per line, or "
                    "leave this list out."
                )
    return splits


def with_lists(
    records: Iterator[ImageRecord], lists: Lists, beside: bool, source: Path, notes: Notes
) -> Iterator[ImageRecord]:
    """The records with the splits that lists give them.

    Args:
        beside: the lists were found beside the annotations, not named: those of a whole data set may lie beside a part
            of it, in which one of them has no image.

    Raises:
        InputError: an image is in two lists, or a list names no image of the source.
    """
    splits = read_lists(lists)
    unseen = dict.fromkeys(splits)
    some = ""
    for record in records:
        some = some or record.path
        found: dict[str, str] = {}
        for name in _short_names(record.path):
            if name in splits:
                found[name] = splits[name]
                unseen.pop(name, None)
        if len(set(found.values())) > 1:
            raise InputError(f"{record.path} is in two lists, as {' and as '.join(found)}; leave it in one of them.")
        yield replace(record, split=next(iter(found.values())) if found else _rest(record, lists, notes))
    seen = {split for name, split in splits.items() if name not in unseen}
    for split in lists:
        if some and split not in seen and (not beside or not seen):
            names = [name for name in unseen if splits[name] == split]
            raise InputError(
                f"{' and '.join(map(str, lists[split]))}: none of the names in it ({len(names)}) is an image of {source}, "
                f"whose images are called {some}, not {names[0]}; name the list that belongs to these images."
            )
    for name in sorted(unseen):
        notes.count("names in a list that no image has", name)


def _rest(record: ImageRecord, lists: Lists, notes: Notes) -> str | None:
    """The split of an image that is in no list."""
    if "train" in lists:
        notes.count("images in no list, left out", record.path)
        return None
    if record.split is not None and record.split not in lists:
        return record.split
    if record.split is not None:
        notes.count(f"images of the source's own {record.split} split in no list, taken for train", record.path)
    else:
        notes.count("images in no list, taken for train, which has no list", record.path)
    return "train"


def _short_names(path: str) -> list[str]:
    """The forms in which a list may name an image: with and without folder, with and without suffix."""
    path = unicodedata.normalize("NFC", path)
    names = [path, path.replace("\\", "/").rsplit("/", 1)[-1]]
    return list(dict.fromkeys(names + [os.path.splitext(name)[0] for name in names]))
