"""Hugging Face's imagefolder: `metadata.csv`, `.jsonl` or `.parquet` in a folder or its subfolders.

    file_name,text                                  {"file_name": "0001.png", "captions": ["A dog.", "A brown dog."]}
    0001.png,A dog.                                 {"file_name": "0002.png", "caption_0": "A cat.", "caption_1": "..."}

`file_name` is relative to the metadata file, or to the images folder where more names lead to files there. Folders named train, val and test are splits if train is among them, and
so is a column `split`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._csv import read_table, table_header
from toolkit.data.annotations._gather import Gathered, Notes
from toolkit.data.annotations._json import Keys, json_shape, read_json_lines, what_keys
from toolkit.data.annotations._text import files_below
from toolkit.data.annotations.names import is_lost
from toolkit.errors import InputError
from toolkit.records import ImageRecord

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAME_KEYS = ("file_name",)
LOOK = 64


def detect(path: Path) -> bool:
    if path.is_dir():
        return bool(_metadata_files(path, depth=2))
    if path.name.lower() == METADATA[2]:
        return path.is_file()
    shape = json_shape(path)
    if shape is not None:
        return shape.kind == "lines" and any("file_name" in row for row in shape.objects(None))
    return "file_name" in table_header(path)


def images_root(path: Path, images: Path, columns: Columns) -> Path:
    """Where more of the first names lead to files: the images folder, or that of the metadata."""
    beside = _folder(path)
    if images.is_dir() and (files := _metadata_files(path) if path.is_dir() else [path]):
        folder = files[0].parent.relative_to(beside)
        names = [folder / name for _, name, _, _ in islice(_rows(files[0], columns, Notes()), LOOK) if name]
        here, there = (sum(not is_lost(root, name.as_posix()) for name in names) for root in (beside, images))
        if there >= here:
            return images
    return beside


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _metadata_files(path: Path, depth: int = 64) -> list[Path]:
    return [file for file in files_below(path, METADATA, depth) if file.name.lower() in METADATA]


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    files = _metadata_files(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no metadata.csv, metadata.jsonl or metadata.parquet in it; add one.")
    root = _folder(path)
    folders = {file: file.parent.relative_to(root).as_posix().removeprefix(".") for file in files}
    gathered = Gathered(path, notes, columns)
    for file in files:
        notes.file = file.relative_to(root).as_posix() if len(files) > 1 else ""
        for line, name, captions, split in _rows(file, columns, notes):
            gathered.add(
                f"{folders[file]}/{name}" if folders[file] and name else name, captions, split=split, line=line
            )
    splits = {columns.split_of_name(name) for name in gathered.rows}
    for record in gathered.records():
        split = record.split or (columns.split_of_name(record.path) if "train" in splits else None)
        yield ImageRecord(record.image_id, record.path, record.captions, split)


def _rows(file: Path, columns: Columns, notes: Notes) -> Iterator[tuple[int, str, list[str], Any]]:
    """(line, name, captions, split) of each row that can be used."""
    suffix = file.suffix.lower()
    if suffix not in (".jsonl", ".parquet") and json_shape(file) is None:
        yield from read_table(file, notes, columns, NAME_KEYS)
        return
    keys = Keys(file, columns, NAME_KEYS)
    for line, row in _parquet(file) if suffix == ".parquet" else read_json_lines(file, notes):
        said = keys.read(row)
        if said.name is None or said.captions is None:
            lacking = "no file_name" if said.name is None else "no caption"
            notes.reject(line, f"{lacking}: {what_keys(row)}", said.name)
        else:
            yield line, said.name, said.captions, said.split


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from toolkit.data.annotations.parquet import open_parquet

    batches = open_parquet(file).iter_batches(4096)
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
