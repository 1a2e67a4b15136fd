"""Hugging Face's imagefolder: `metadata.csv`, `.jsonl` or `.parquet` in a folder or its subfolders.

    file_name,text                                  {"file_name": "0001.png", "captions": ["A dog.", "A brown dog."]}
    0001.png,A dog.                                 {"file_name": "0002.png", "caption_0": "A cat.", "caption_1": "..."}

`file_name` is relative to the metadata file. Folders named train, val and test are splits if train is among them, and
so is a column `split`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.annotations._gather import Gathered, Notes, caption_columns, captions_in, splits_of_names
from toolkit.annotations._text import bad_shape, files_below, first_line, read_csv, read_json_lines
from toolkit.errors import InputError
from toolkit.records import ImageRecord

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SHAPE = "a column file_name and one of captions, caption, text or caption_0, caption_1, ..."


def detect(path: Path) -> bool:
    if path.is_dir():
        return bool(_metadata_files(path, depth=2))
    if path.name.lower() == METADATA[2]:
        return path.is_file()
    line = first_line(path)
    if path.suffix.lower() == ".jsonl":
        return line.lstrip().startswith("{") and '"file_name"' in line
    try:
        return "file_name" in next(csv.reader([line]), [])
    except csv.Error:
        return False


def images_root(path: Path, images: Path) -> Path:
    return path if path.is_dir() else path.parent


def _metadata_files(path: Path, depth: int = 64) -> list[Path]:
    return [file for file in files_below(path, METADATA, depth) if file.name.lower() in METADATA]


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    files = _metadata_files(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no metadata.csv, metadata.jsonl or metadata.parquet in it; add one.")
    root = images_root(path, images)
    folders = {file: file.parent.relative_to(root).as_posix().removeprefix(".") for file in files}
    gathered = Gathered(path, notes)
    columns_of: dict[tuple[str, ...], list[str]] = {}  # the rows of a file mostly have the same keys
    for file in files:
        for row in _rows(file):
            name = row.get("file_name")
            keys = tuple(row)
            columns = columns_of.get(keys) or columns_of.setdefault(keys, caption_columns(keys))
            captions = captions_in([row[column] for column in columns])
            if not isinstance(name, str) or not columns or captions is None:
                raise bad_shape(file, f"a row is {str(row)[:80]}", _SHAPE)
            name = f"{folders[file]}/{name}" if folders[file] else name
            gathered.add(name, captions, split=row.get("split"))
    splits = splits_of_names(name for name in gathered.rows if "/" in name)
    for record in gathered.records():
        split = record.split or splits.get(record.path)
        yield ImageRecord(record.image_id, record.path, record.captions, split)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        yield from (row for _, row in read_json_lines(file))
    elif suffix == ".parquet":
        from toolkit.annotations.parquet import open_parquet

        for batch in open_parquet(file).iter_batches(4096):
            yield from batch.to_pylist()
    else:
        rows = read_csv(file)
        _, header = next(rows, (0, []))
        header = [name.strip() for name in header]
        for line, row in rows:
            if len(row) != len(header):
                raise InputError(
                    f"{file}: line {line} has {len(row)} fields for {len(header)} columns; quote captions with commas."
                )
            yield dict(zip(header, row, strict=True))
