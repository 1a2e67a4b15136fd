"""Rows of tables whose images lie inside (parquet, hub), gathered by image without holding the images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.annotations._columns import IMAGE_KEYS as NAME_KEYS
from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Gathered, Notes, captions_in, clean_name
from toolkit.errors import InputError
from toolkit.records import ImageRecord

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 64  # images in memory at once
IMAGE_KEYS = ("image", "img", "jpg", "png", "picture", "photo")


@dataclass(frozen=True)
class Table:
    """One part of a set.

    Attributes:
        source: what an error names.
        schema: its columns.
        split: the split that the whole part is, as the source calls it, or None. Part of the images' names too, for
            many sets begin at 0.jpg in each split.
        batches: gives the named columns in order, some rows at a time. "image.path" is a field of a struct.
    """

    source: Path
    schema: pa.Schema
    split: str | None
    batches: Callable[[list[str], int], Iterator[pa.RecordBatch | pa.Table]]


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
        first_row: dict[int, str] = {}  # row -> name, of the rows that bring an image
        names_of_all = table.schema.names
        named.meet(names_of_all)
        image, path_column, data_column = _columns(table, named)
        gathered = of_names if data_column is None else Gathered(table.source, notes, named)
        names = list(_names(table, path_column, data_column is not None, notes))
        twice = {name for name, count in Counter(names).items() if count > 1}
        hashes = _hashes(table, data_column, names, twice) if data_column else {}
        known: dict[tuple[str, bytes], str] = {}
        row = 0
        captions = named.find_captions(names_of_all, table.source)
        split = named.find_split(names_of_all, table.source)
        columns = captions + ([split] if split is not None else [])
        for batch in table.batches(columns, 4096):
            said = [_values(batch, column) for column in captions]
            splits = _values(batch, split) if split is not None else [None] * batch.num_rows
            for offset in range(batch.num_rows):
                name = names[row]
                if row in hashes:
                    key = (name, hashes[row])
                    if key not in known:
                        known[key] = _unused(name or f"{row:08d}", gathered, table, notes)
                    name = known[key]
                elif table.split and data_column:
                    name = f"{table.split}/{name}"
                if name not in gathered.rows:
                    first_row[row] = name
                texts = captions_in([column[offset] for column in said])
                if texts is None:
                    raise InputError(
                        f"{table.source}: the captions of row {row} are neither text nor a list of it; name the column "
                        f"that holds text with --caption-column ({', '.join(captions)} was read)."
                    )
                gathered.add(name, texts, split=splits[offset] or table.split, line=row + 1)
                row += 1
        if data_column is not None:
            records = {record.path: record for record in gathered.records()}
            yield from _with_data(table, image, path_column, data_column, first_row, records, load)
    yield from of_names.records()


def _columns(table: Table, named: Columns) -> tuple[str, str | None, str | None]:
    """(image column, column of names, column of bytes), the last two None where there are none."""
    import pyarrow as pa

    image = image_column(table.schema, named, table.source)
    captions = named.find_captions(table.schema.names, table.source)
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


def _hashes(table: Table, column: str, names: list[str], twice: set[str]) -> dict[int, bytes]:
    """row -> hash of its image, for rows whose name does not tell which image it is."""
    hashes: dict[int, bytes] = {}
    row = 0
    if twice or "" in names:
        for batch in table.batches([column], ROWS):
            for data in _values(batch, column):
                if names[row] in twice or not names[row]:
                    # a row without bytes is told by its name, or is on its own
                    hashes[row] = hashlib.blake2b(data, digest_size=16).digest() if data else names[row][:1].encode()
                row += 1
    return hashes


def _unused(name: str, gathered: Gathered, table: Table, notes: Notes) -> str:
    full = name = f"{table.split}/{name}" if table.split else name
    number = 1
    while full in gathered.rows:
        number += 1
        full = f"{name}~{number}"
    if number > 1:
        notes.count("different images with the same name renamed", full)
    return full


def _with_data(
    table: Table,
    image: str,
    path_column: str | None,
    data_column: str,
    first_row: dict[int, str],
    records: dict[str, ImageRecord],
    load: Callable[[str], bytes] | None,
) -> Iterator[ImageRecord]:
    row = 0
    for batch in table.batches([image], ROWS):
        paths = _values(batch, path_column) if path_column and "." in path_column else [None] * batch.num_rows
        for data, path in zip(_values(batch, data_column), paths, strict=True):
            record = records.get(first_row.get(row, ""))
            row += 1
            if record is not None:
                if data is None and path and load is not None:
                    data = load(path)
                # No bytes at all become an image that can't be read, with its reason, like an empty file.
                yield ImageRecord(record.image_id, record.path, record.captions, record.split, data or b"")
