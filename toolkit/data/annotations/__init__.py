"""Annotation sets: which images there are and what people said of them, from any format, as `ImageRecord`s.

    found = read_annotations("captions.txt", "Images")
    found.format            # 'flickr8k'
    next(found.records)     # ImageRecord(image_id='1000268201.jpg', path=..., captions=('A child ...', ...), ...)

A reader is a file here with two functions:

    detect(path) -> bool                                         never raises
    read(path, images, notes, columns) -> Iterator[ImageRecord]
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from toolkit.data.annotations import (
    coco,
    flickr8k,
    flickr8k_token,
    flickr30k,
    hub,
    imagefolder,
    karpathy,
    lavis,
    parquet,
    sidecar,
    webdataset,
)
from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._csv import table_header
from toolkit.data.annotations._gather import Notes, UnusableRows
from toolkit.data.annotations._json import json_shape
from toolkit.data.annotations._text import first_line, open_file
from toolkit.data.annotations._unknown import named_for_what_it_is, no_text
from toolkit.data.annotations.lists import Lists, lists_beside, with_lists
from toolkit.data.annotations.names import find_names
from toolkit.data.reviews import Reviewed
from toolkit.errors import InputError
from toolkit.records import ImageRecord
from toolkit.runtime.copies import as_path

__all__ = ["READERS", "AnnotationSet", "Columns", "Notes", "UnusableRows", "read_annotations"]

# In order of detection: what is told by a line of its own first, what takes any folder last.
READERS: dict[str, ModuleType] = {
    "flickr8k": flickr8k,
    "flickr8k-token": flickr8k_token,
    "flickr30k": flickr30k,
    "karpathy": karpathy,
    "coco": coco,
    "lavis": lavis,
    "hub": hub,
    "imagefolder": imagefolder,
    "webdataset": webdataset,
    "parquet": parquet,
    "sidecar": sidecar,
}
MANY_FILES = 64  # a folder with more text files than this holds sidecars, not an annotation file


@dataclass
class AnnotationSet:
    """What `read_annotations` found.

    Attributes:
        format: its name in `READERS`.
        records: one per image, in the order of the source; read once. Mistakes far down in a file are raised here.
        images: the folder that `ImageRecord.path` is relative to; None where the images lie inside the source.
        notes: what was passed over or mended; complete once `records` has been read to the end.
        reviewed: what a person's review has changed in the records; complete as `notes` is.
        lists: the splits that lists were given or found for; with some, but none for validation, validation is to be
            drawn from train (lists.py).
    """

    format: str
    records: Iterator[ImageRecord]
    images: Path | None
    notes: Notes
    lists: frozenset[str] = frozenset()
    reviewed: Reviewed | None = None


def images_beside(path: Path, images: Path | None) -> Path:
    """The folder named, or `Images` beside annotations or here, or the folder of the annotations itself.

    Raises:
        InputError: the folder named is not there.
    """
    if images is None:
        folder = path if path.is_dir() else path.parent
        return next((place for place in (folder / "Images", Path("Images")) if place.is_dir()), folder)
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder; name the folder with the images of {path}.")
    return images


def read_annotations(
    annotations: Path | str,
    images: Path | str,
    format: str = "auto",
    lists: dict[str, Path] | None = None,
    columns: Columns | None = None,
    find: bool = True,
) -> AnnotationSet:
    """Opens an annotation set.

    Args:
        annotations: a file, a folder, or with `format` "hub" the name of a data set.
        images: the folder that image names are relative to; passed over by formats that hold their images or lie
            among them.
        format: one of `READERS`, or "auto".
        lists: for each split a file with image names, one a line; folder and suffix may be left out. They take the
            place of the source's own splits (lists.py says where the images go that are in none of them).
        columns: where the source calls its columns, keys or splits otherwise than is usual.
        find: names that lead to no file are looked for (names.py); False where nobody opens the images.

    Raises:
        InputError: no such file, no such format, a broken one; where a file goes wrong later, `records` raises it.
    """
    path, images, notes, columns = as_path(annotations), as_path(images), Notes(), columns or Columns()
    if format not in ("auto", *READERS):
        raise InputError(f"--format {format}: no such format; choose one of auto, {', '.join(READERS)}.")
    if format != "hub" and not path.exists():
        raise InputError(f"{path}: no such file or folder; name your annotations with --annotations.")
    if not images.is_dir() and path.is_dir() and (path / images.name).is_dir():
        images = path / images.name  # a folder with captions.txt and Images/ was given
    if format == "auto":
        path, format = _detect(path, columns)
    elif path.is_dir() and format not in FOLDER_FORMATS:
        path = _only_file(path, [format], columns)
    _check_content(path)
    if format not in FOLDER_FORMATS and (known := no_text(path)) is not None:
        raise InputError(f"{path}: {known}.")
    reader = READERS[format]
    found: Lists = {split: [file] for split, file in (lists or {}).items()}
    if lists is None and format in ("flickr8k", "flickr8k-token"):
        found = lists_beside(path)
        if found:
            names = ", ".join(file.name for files in found.values() for file in files)
            notes.say(f"splits taken from {names} beside {path.name}")
    if columns.given and format in NO_COLUMNS:
        columns.refuse(f"{path} has the format {format}, which has no columns")
    records = reader.read(path, images, notes, columns)
    if found:
        records = with_lists(records, found, beside=lists is None, source=path, notes=notes)
    root = getattr(reader, "images_root", lambda path, images, columns: images)(path, images, columns)
    if root is not None and find and format != "sidecar":  # which has its names from the files
        records = find_names(records, root, notes)
    records = _checked(path, records, notes, columns)
    return AnnotationSet(format, records, root, notes, frozenset(found))


def _checked(path: Path, records: Iterator[ImageRecord], notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    """The records; when all are read, an error if there was none, or nothing of what the user named."""
    record = None
    for record in records:
        yield record
    columns.check(path)
    if record is None:
        reason = f" ({notes.unusable})" if notes.unusable.count else ""
        raise InputError(f"{path}: names no image with a caption{reason}; give an annotation file with at least one.")


# ---- which format ---------------------------------------------------------------------------------------------------

NO_COLUMNS = ("flickr8k-token", "sidecar")
FOLDER_FORMATS = ("imagefolder", "sidecar", "parquet", "webdataset", "hub")


def _detect(path: Path, columns: Columns) -> tuple[Path, str]:
    """The file or folder to read and the format it has."""
    if path.is_dir():
        # A set saved by `datasets` and one with metadata.csv say so by file names; an annotation file in the folder
        # comes before images, captions and archives that merely lie there.
        for format in ("hub", "imagefolder"):
            if READERS[format].detect(path):
                return path, format
        file_formats = [format for format in READERS if format not in FOLDER_FORMATS]
        if len(_recognised(path, file_formats, columns)) > 0:
            file = _only_file(path, file_formats, columns)
            return file, _format_of(file, file_formats, columns) or ""
    _check_content(path)
    for format, reader in READERS.items():
        if reader.detect(path):
            return path, format
    if path.is_dir():
        raise InputError(f"{path}: no captions of a known format in this folder; see docs/formats.md or --format.")
    if (told := _by_columns(path, columns)) is not None:
        return path, told
    if (known := named_for_what_it_is(path)) is not None:
        raise InputError(f"{path}: {known}.")
    raise InputError(
        f"{path}: not recognised as annotations: a table needs a first line `image,caption`, and this one begins with "
        f"`{first_line(path)[:60].strip()}`; give its column names with --image-column and --caption-column, or see "
        "docs/formats.md for other formats."
    )


def _by_columns(path: Path, columns: Columns) -> str | None:
    """The format of a file that is known by nothing but the columns that the user names."""
    if not columns.given:
        return None
    if json_shape(path) is not None:
        return "imagefolder" if path.name.lower() == "metadata.jsonl" else "lavis"
    if len(table_header(path)) > 1:
        return "imagefolder" if path.name.lower() == "metadata.csv" else "flickr8k"
    return None


def _format_of(file: Path, formats: list[str], columns: Columns) -> str | None:
    """The format of a file in a folder, where the columns that the user names must be in it to tell."""
    for format in formats:
        if READERS[format].detect(file):
            return format
    shape = json_shape(file)
    met = set(map(str.lower, table_header(file) if shape is None else shape.keys()))
    return _by_columns(file, columns) if all(name.lower() in met for _, name in columns.given) else None


def _check_content(path: Path) -> None:
    """A file that can't be opened, or has nothing in it, is told apart from one of an unknown format."""
    if path.is_dir() or not path.exists():  # a hub name
        return
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder; name your annotations with --annotations.")
    with open_file(path) as file:
        if not file.read(4096).removeprefix(b"\xef\xbb\xbf").strip():
            raise InputError(f"{path}: the file is empty; give an annotation file with at least one image.")


def _recognised(folder: Path, formats: list[str], columns: Columns) -> list[Path]:
    """The annotation files of these formats directly in a folder."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith((".txt", ".csv", ".tsv", ".json", ".jsonl", ".token")) and entry.is_file():
                files.append(Path(folder, entry.name))
            if len(files) > MANY_FILES:
                return []
    return [file for file in sorted(files) if _format_of(file, formats, columns) is not None]


def _only_file(folder: Path, formats: list[str], columns: Columns) -> Path:
    files = _recognised(folder, formats, columns)
    if len(files) != 1:
        what = (
            f"holds {len(files)} annotation files ({', '.join(f.name for f in files[:4])})" if files else "is a folder"
        )
        raise InputError(f"{folder}: {what}; name the one annotation file that you mean.")
    return files[0]
