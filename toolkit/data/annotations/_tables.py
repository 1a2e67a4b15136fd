"""Rows of tables whose images lie inside (parquet, hub), gathered by image without holding the images."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from toolkit.data.annotations._columns import IMAGE_KEYS as NAME_KEYS
from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Gathered, Notes, captions_in, clean_name
from toolkit.data.annotations._listing import hash_name, holds
from toolkit.errors import InputError
from toolkit.records import ImageRecord
from toolkit.runtime.shelf import Shelf

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 64  # images in memory at once
IMAGE_KEYS = ("image", "img", "jpg", "png", "picture", "photo")


class Batches(Protocol):
    def __call__(self, columns: list[str], size: int, start: int = 0) -> Iterator[pa.RecordBatch | pa.Table]: ...


@dataclass(frozen=True)
class Table:
    """One part of a set.

    Attributes:
        source: what an error names.
        schema: its columns.
        split: the split that the whole part is, as the source calls it, or None. Part of the images' names too, for
            many sets begin at 0.jpg in each split.
        batches: gives the named columns in order, some rows at a time, from a row on. "image.path" is a field of a
            struct.
        files: those that it is stored in, as far as they are known.
    """

    source: Path
    schema: pa.Schema
    split: str | None
    batches: Batches
    files: tuple[Path, ...] = ()


def image_column(schema: pa.Schema, columns: Columns, source: Path) -> pa.Field | None:
    """The column with the images: a struct of bytes and path, bytes, or file names.

    Raises:
        InputError: the one that the user names isn't there, or is none of these.
    """
    import pyarrow as pa

    structs, others, names = [], [], []
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            structs.append(field)
        elif field.name.lower() in IMAGE_KEYS and (is_bytes(field.type) or is_text(field.type)):
            others.append(field)
        elif field.name.lower() in NAME_KEYS and is_text(field.type):
            names.append(field)
    if columns.image is not None:
        field = schema.field(columns.find_image(schema.names, source) or "")
        if field not in structs and not is_bytes(field.type) and not is_text(field.type):
            raise InputError(
                f"--image-column {columns.image}: in {source} it is of type {field.type}; name a column of images or of "
                "their names."
            )
        return field
    named = [field for field in structs if field.name.lower() in IMAGE_KEYS]
    return next(iter(named + structs + others + names), None)


def is_bytes(type: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(type) or pa.types.is_large_binary(type)


def is_text(type: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(type) or pa.types.is_large_string(type)


def _values(batch: Any, column: str) -> list[Any]:
    """A column, or a field of a struct column, as a list. Only that field's memory is touched."""
    import pyarrow.compute as pc

    name, _, inner = column.partition(".")
    values = batch.column(column if column in batch.schema.names else name)
    if inner and column not in batch.schema.names:
        values = pc.struct_field(values, inner)
    return values.to_pylist()


def read_tables(
    path: Path,
    tables: list[Table],
    notes: Notes,
    named: Columns,
    load: Callable[[str], bytes] | None = None,
) -> Iterator[ImageRecord]:
    """The records of all tables: names and captions are read first, then the images of the first row of each.

    Rows are of one image if they have one name and the same bytes (bytes alone where there are no names): data sets
    keep no folders in their names, so that equal names prove nothing. `load` opens an image that a table only names.
    """
    of_names = Gathered(path, notes, named)  # tables of file names alone: one name is one image in all of them
    for table in tables:
        named.meet(table.schema.names)
        image, path_column, data_column = _columns(table, named)
        gathered = of_names if data_column is None else Gathered(table.source, notes, named)
        first_rows = _gather(table, path_column, data_column, gathered, named)
        if data_column is not None:
            records = _with_rows(first_rows, gathered)
            yield from _with_data(table, image, path_column, data_column, records, load)
    yield from of_names.records()


class Row(NamedTuple):
    """A row of a table: the number of its image among the table's, that image's name, and its split."""

    number: int
    name: str
    split: str | None


def list_table(table: Table, notes: Notes, named: Columns) -> Iterator[Row]:
    """Every row of a table with images inside, whether it has a caption or not. Rows of one image have one number and one
    name, which is the one that `read_tables` gives it."""
    named.meet(table.schema.names)
    image, path_column, data_column = _columns(table, named, captioned=False)
    if data_column is None:
        raise InputError(
            f"{table.source}: its column {image} holds names of files, not images; give the folder with these files, or "
            "name another column with --image-column."
        )
    split = named.find_split(table.schema.names, table.source)
    splits = (own for _, own in _said(table, [], split)) if split is not None else repeat(None)
    images = Shelf()  # name -> number
    for name, own in zip(_row_names(table, path_column, data_column, images, notes), splits, strict=False):
        number = images.setdefault(name, len(images))
        yield Row(number, name, named.split_name(table.source, own or table.split, name))


class RowReader:
    """The images of a table row by row: fast in about their order, as threads ask for them, and right in any."""

    AT_ONCE, KEPT = 8, 8  # rows, and batches of them

    def __init__(self, table: Table, named: Columns) -> None:
        self.image, path_column, data_column = _columns(table, named, captioned=False)
        self.table, self.data_column = table, data_column or ""
        self.path_column = path_column if path_column and "." in path_column else None
        self._lock, self._at = threading.Lock(), sys.maxsize  # the row that the next batch begins with
        self._batches: Iterator[Any] = iter(())
        self._recent: deque[tuple[int, Any]] = deque(maxlen=self.KEPT)  # (number of its first row, batch)

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """(bytes, path) of the image of a row, None for what it has not."""
        with self._lock:
            start, batch = self._batch(row)
            return next(self.images(batch.slice(row - start, 1)))

    def images(self, batch: Any) -> Iterator[tuple[bytes | None, str | None]]:
        """The same for each row of a batch."""
        paths = _values(batch, self.path_column) if self.path_column else [None] * batch.num_rows
        yield from zip(_values(batch, self.data_column), paths, strict=True)

    def _batch(self, row: int) -> tuple[int, Any]:
        for start, batch in self._recent:
            if start <= row < start + batch.num_rows:
                return start, batch
        if not self._at <= row < self._at + self.AT_ONCE * self.KEPT:
            self._batches, self._at = self.table.batches([self.image], self.AT_ONCE, row), row
        for batch in self._batches:
            start, self._at = self._at, self._at + batch.num_rows
            self._recent.append((start, batch))
            if row < self._at:
                return start, batch
        raise InputError(f"{self.table.source}: has changed while it was read; run the same command again.")


def _gather(
    table: Table, path_column: str | None, data_column: str | None, gathered: Gathered, named: Columns
) -> array[int]:
    """Gathers the rows of a table; returns for each image the row that it comes first in."""
    captions = named.find_captions(table.schema.names, table.source)
    split = named.find_split(table.schema.names, table.source)
    names = _row_names(table, path_column, data_column, gathered.rows, gathered.notes)
    first_rows = array("Q")
    for row, (name, (said, own)) in enumerate(zip(names, _said(table, captions, split), strict=False)):
        if name not in gathered.rows:
            first_rows.append(row)
        texts = captions_in(said)
        if texts is None:
            raise InputError(
                f"{table.source}: the captions of row {row} are neither text nor a list of it; name the column "
                f"that holds text with --caption-column ({', '.join(captions)} was read)."
            )
        gathered.add(name, texts, split=own or table.split, line=row + 1)
    return first_rows


def _row_names(
    table: Table, path_column: str | None, data_column: str | None, taken: Shelf, notes: Notes
) -> Iterator[str]:
    """The name of every row's image, the same where rows are of one image. Before the next is asked for, it is taken."""
    names, twice = _names(table, path_column, False, notes), None
    hashes: Iterator[str] = repeat("")
    if data_column is not None:
        twice = _twice(_names(table, path_column, True, notes))
        names = _names(table, path_column, True, Notes())  # whose notes are taken
        if len(twice):  # a name alone does not tell which image it is
            hashes = _hashes(table, data_column)
    known = Shelf()  # name and hash of an image -> the name that it was given
    for row, (name, digest) in enumerate(zip(names, hashes, strict=False)):
        if twice is not None and holds(twice, name):
            key = f"{name}\0{digest or name[:1]}"  # an image without bytes is told by its name, or is on its own
            known_name = known.get(key)
            if known_name is None:
                known_name = known.setdefault(key, _unused(name or f"{row:08d}", taken, table, notes))
            name = known_name
        elif table.split and data_column:
            name = f"{table.split}/{name}"
        yield clean_name(name)


def _columns(table: Table, named: Columns, captioned: bool = True) -> tuple[str, str | None, str | None]:
    """(image column, column of names, column of bytes), the last two None where there are none.

    Args:
        captioned: there must be captions too.
    """
    import pyarrow as pa

    image = image_column(table.schema, named, table.source)
    captions = named.find_captions(table.schema.names, table.source) if captioned else [""]
    if image is None or not captions:
        lacking = "no column of images (`image`)" if image is None else "no column of captions (`caption`)"
        raise InputError(
            f"{table.source}: {lacking} among its columns {', '.join(table.schema.names[:12])}; name the one meant with "
            f"--{'image' if image is None else 'caption'}-column."
        )
    if pa.types.is_struct(image.type):
        has_path = image.type.get_field_index("path") >= 0
        return image.name, f"{image.name}.path" if has_path else None, f"{image.name}.bytes"
    if is_text(image.type):
        return image.name, image.name, None
    beside = next((name for name in ("file_name", "filename", "path") if name in table.schema.names), None)
    return image.name, beside, image.name


def _names(table: Table, column: str | None, shorten: bool, notes: Notes) -> Iterator[str]:
    """The name of every row's image; "" where it has none.

    Args:
        shorten: of names that lead outside take the last part; for images inside, whose names lead nowhere.
    """
    if column is None:
        column = table.schema.names[0]
        for batch in table.batches([column], 65536):
            yield from [""] * batch.num_rows
        return
    for batch in table.batches([column], 4096):
        for name in _values(batch, column):
            name = (name or "").replace("\\", "/") if isinstance(name, str) or name is None else str(name)
            if shorten and (os.path.isabs(name) or ".." in name.split("/")):
                notes.count("image names that lead out of the folder shortened", name)
                name = name.rsplit("/", 1)[-1]
            yield clean_name(name)


def _twice(names: Iterator[str]) -> np.ndarray:
    """Hashes of the names that several rows have, and of "" if a row has none; 8 bytes a row while they are counted."""
    hashes, nameless = array("Q"), False
    for name in names:
        hashes.append(hash_name(name))
        nameless |= not name
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    twice = values[counts > 1]
    return np.unique(np.append(twice, np.uint64(hash_name("")))) if nameless else twice


def _hashes(table: Table, column: str) -> Iterator[str]:
    """A hash of every row's image; "" of none."""
    for batch in table.batches([column], ROWS):
        for data in _values(batch, column):
            yield hashlib.blake2b(data, digest_size=16).hexdigest() if data else ""


def _said(table: Table, captions: list[str], split: str | None) -> Iterator[tuple[list[Any], Any]]:
    """What every row says: (a value for each column of captions, its split)."""
    for batch in table.batches(captions + ([split] if split is not None else []), 4096):
        columns = [_values(batch, column) for column in captions]
        splits = _values(batch, split) if split is not None else [None] * batch.num_rows
        for *said, own in zip(*columns, splits, strict=True):
            yield said, own


def _unused(name: str, taken: Shelf, table: Table, notes: Notes) -> str:
    full = name = f"{table.split}/{name}" if table.split else name
    number = 1
    while full in taken:
        number += 1
        full = f"{name}~{number}"
    if number > 1:
        notes.count("different images with the same name renamed", full)
    return full


def _with_rows(first_rows: array[int], gathered: Gathered) -> Iterator[tuple[int, ImageRecord]]:
    """Each record with its row; images without a caption have a row and are no records."""
    records = gathered.records()
    record = next(records, None)
    for row, name in zip(first_rows, gathered.rows, strict=True):
        if record is not None and record.path == name:
            yield row, record
            record = next(records, None)


def _with_data(
    table: Table,
    image: str,
    path_column: str | None,
    data_column: str,
    records: Iterator[tuple[int, ImageRecord]],
    load: Callable[[str], bytes] | None,
) -> Iterator[ImageRecord]:
    row = -1
    wanted, record = next(records, (-1, None))
    for batch in table.batches([image], ROWS):
        paths = _values(batch, path_column) if path_column and "." in path_column else [None] * batch.num_rows
        for data, path in zip(_values(batch, data_column), paths, strict=True):
            row += 1
            if row != wanted or record is None:
                continue
            if data is None and path and load is not None:
                data = load(path)
            # No bytes at all become an image that can't be read, with its reason, like an empty file.
            yield replace(record, data=data or b"")
            wanted, record = next(records, (-1, None))
