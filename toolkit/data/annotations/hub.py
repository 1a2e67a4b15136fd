"""A data set of `datasets`: one saved by `save_to_disk`, a local folder that `load_dataset` takes, or a hub name.

It needs a column of images (or of file names relative to the images folder) and one of captions, as in parquet.py. Its
splits are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Notes
from toolkit.data.annotations._tables import Table, image_column, is_text, read_tables
from toolkit.errors import InputError, is_bug
from toolkit.records import ImageRecord
from toolkit.runtime.hub import why_not

if TYPE_CHECKING:
    import pyarrow as pa


def detect(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`; nothing else is taken for a hub data set unasked."""
    try:
        return (path / "dataset_dict.json").is_file() or (
            (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
        )
    except OSError:
        return False


def images_root(path: Path, images: Path, columns: Columns) -> Path | None:
    """None, unless the image column holds file names."""
    for dataset in _load(path).values():
        column = image_column(dataset.features.arrow_schema, columns, path)
        return images if column is not None and is_text(column.type) else None
    return None


def _load(path: Path) -> dict[str | None, Any]:
    """Split (None for a set without) -> datasets.Dataset."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    try:
        found = load_from_disk(str(path)) if detect(path) else load_dataset(str(path))
    except Exception as error:  # anything from a missing network to a broken file
        if is_bug(error):
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if path.exists():
            raise InputError(f"{path}: `datasets` can't load it ({reason}); name a folder that it can.") from None
        hint = "save it with `save_to_disk` where there is a network and name that folder"
        raise InputError(
            f"{path}: neither a local data set nor one that the hub has: {why_not(str(path), error, hint, 'dataset')}."
        ) from None
    return dict(found) if isinstance(found, DatasetDict) else {None: found}


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    yield from read_tables(path, tables(path), notes, columns, load=_load_file)


def tables(path: Path) -> list[Table]:
    """One for each split, or one."""
    tables = []
    for split, dataset in _load(path).items():
        if "pixel_values" in dataset.column_names:
            raise InputError(f"{path}: is a cache that `preprocess` wrote; name the annotations it was made from.")
        tables.append(_table(path, split, dataset))
    if [table.split for table in tables] == ["train"]:
        # load_dataset calls whatever has no splits "train"
        tables = [replace(tables[0], split=None)]
    return tables


def _load_file(path: str) -> bytes:
    from toolkit.data.images import read_file
    from toolkit.errors import ImageError

    try:
        return read_file(Path(path)).data
    except ImageError:
        return b""


def _table(path: Path, split: str | None, dataset: Any) -> Table:
    def batches(columns: list[str], size: int, start: int = 0) -> Iterator[pa.Table]:
        # The arrow format gives images as they are stored, and respects an indices mapping left by a filter.
        names = {column if column in dataset.column_names else column.split(".")[0]: None for column in columns}
        rows = dataset.select_columns(list(names)).with_format("arrow")
        yield from (rows.skip(start) if start else rows).iter(size)

    files = tuple(Path(file["filename"]) for file in dataset.cache_files)
    return Table(path, dataset.features.arrow_schema, split, batches, files)
