"""A folder of images with their captions beside them: `a.jpg` and `a.txt` (or `a.caption`, `a.jpg.txt`), one a line.

The texts may also lie in a folder of their own, in the same tree as the images. Folders named train, val and test are
splits if train is among them.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Notes, clean_captions
from toolkit.data.annotations._text import read_text, split_lines
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.data.sources import find_images
from toolkit.errors import InputError
from toolkit.records import ImageRecord
from toolkit.runtime.copies import Copy, list_names

TEXT_SUFFIXES = (".txt", ".caption", ".captions")


def detect(path: Path) -> bool:
    """Whether there is an image or a text somewhere near the top of a folder; the last format to be asked."""
    if not path.is_dir():
        return False
    return any(os.path.splitext(name)[1].lower() in TEXT_SUFFIXES for name in _files(path))


def images_root(path: Path, images: Path, columns: Columns) -> Path:
    """Images beside their texts, else the folder of images with the same tree."""
    return path if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in _files(path)) else images


def _files(path: Path) -> Iterator[str]:
    if isinstance(path, Copy):
        yield from list_names(path)
        return
    for folder, folders, names in os.walk(path, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/") for name in names)


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    if not path.is_dir():
        raise InputError(f"{path}: is not a folder; name the folder that holds images and their texts.")
    # Composed form for comparing: one system's copy may have decomposed what another's composed.
    texts = {
        unicodedata.normalize("NFC", name): name
        for name in _files(path)
        if os.path.splitext(name)[1].lower() in TEXT_SUFFIXES
    }
    by_stem: dict[str, list[str]] = {}
    for name in sorted(texts):
        by_stem.setdefault(os.path.splitext(name)[0], []).append(texts[name])
    found = find_images([images_root(path, images, columns)])
    splits = columns.splits_of_names(image.name for image in found if "/" in image.name)
    used = set()
    for image in found:
        name = unicodedata.normalize("NFC", image.name)
        files = by_stem.get(name) or by_stem.get(os.path.splitext(name)[0], [])
        used.update(files)
        lines = [line for file in files for line in split_lines(read_text(path / file)) if line.strip()]
        captions = clean_captions(lines, image.name, notes)
        if captions:
            yield ImageRecord(image.name, image.name, tuple(captions), splits.get(image.name))
        else:
            notes.count("images without a caption left out", image.name)
    for name in sorted(set(texts.values()) - used):
        notes.count("texts without an image", name)
