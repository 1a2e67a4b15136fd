"""Parquet: a file or a folder of them, an image and its captions a row.

    image: struct<bytes: binary, path: string>, caption: string          (or text; captions: list<string>; caption_0, ...)

The image column may also be plain bytes, or file names relative to the images folder. Files or folders whose names
begin with train, val or test are splits if train is among them; a column `split` is heeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Notes
from toolkit.data.annotations._tables import Table, image_column, is_text, read_tables
from toolkit.data.annotations._text import files_below
from toolkit.data.annotations._unknown import no_text
from toolkit.errors import InputError
from toolkit.records import ImageRecord

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def detect(path: Path) -> bool:
    try:
        if path.is_dir():
            return bool(_files(path))
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def images_root(path: Path, images: Path, columns: Columns) -> Path | None:
    """None, unless the image column holds file names."""
    files = _files(path)
    column = image_column(open_parquet(files[0]).schema_arrow, columns, files[0]) if files else None
    return images if column is not None and is_text(column.type) else None


def _files(path: Path) -> list[Path]:
    """Parquet files of a folder and the folders in it and in them, sorted."""
    return files_below(path, (".parquet",), 2) if path.is_dir() else [path]


def open_parquet(file: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        if file.is_file() and (known := no_text(file)) is not None:
            raise InputError(f"{file}: {known}.") from None
        raise InputError(
            f"{file}: not a readable Parquet file ({' '.join(str(error).split())[:80]}); download or export it again."
        ) from None


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    yield from read_tables(path, tables(path, columns), notes, columns)


def tables(path: Path, columns: Columns) -> list[Table]:
    """One for each split, or one."""
    if not (files := _files(path)):
        raise InputError(f"{path}: no .parquet file in it; name a Parquet file or a folder of them.")
    names = [file.relative_to(path).as_posix() for file in files]
    splits = columns.splits_of_names(names, files=True) if path.is_dir() else {}
    # Several files are one set, as if they were one file; those of one split are one table.
    parts: dict[str | None, list[Path]] = {}
    for file in files:
        parts.setdefault(splits.get(file.relative_to(path).as_posix()), []).append(file)
    return [_table(group, split) for split, group in parts.items()]


def _table(files: list[Path], split: str | None) -> Table:
    schema = open_parquet(files[0]).schema_arrow
    for file in files[1:]:
        if set(open_parquet(file).schema_arrow.names) != set(schema.names):
            raise InputError(f"{file}: has other columns than {files[0].name}; name only one of the sets.")

    def batches(columns: list[str], size: int, start: int = 0) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for file in files:
            try:
                opened = open_parquet(file)
                counts = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
                groups = list(range(len(counts)))
                while groups and start >= counts[groups[0]]:
                    start -= counts[groups.pop(0)]
                # pre_buffer would hold whole row groups of images
                for batch in opened.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
                    passed = min(start, batch.num_rows)
                    start -= passed
                    if passed < batch.num_rows:
                        yield batch.slice(passed)
            except (OSError, pa.ArrowException) as error:
                raise InputError(
                    f"{file}: damaged ({' '.join(str(error).split())[:80]}); download or export it again."
                ) from None

    return Table(files[0], schema, split, batches, tuple(files))
