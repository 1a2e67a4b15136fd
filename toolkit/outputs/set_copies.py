"""A copy of a data set with the captions as one more column, as Parquet: its rows and columns are those of the source."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.sets import TableImages
from toolkit.data.sources import FoundImage, FoundImages
from toolkit.errors import InputError
from toolkit.records import CaptionResult
from toolkit.runtime.shelf import Shelf

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 64  # in memory at once


def check_copy(column: str, images: FoundImages) -> None:
    """
    Raises:
        InputError: the images are not those of one data set with rows, which is in one split and has no such column.
    """
    found = images.sets[0] if len(images.sets) == 1 else None
    if not isinstance(found, TableImages) or any(isinstance(image.root, Path) for image in images):
        raise InputError(
            f"--add-column {column}: copies the rows of one data set (Parquet, or one of `datasets`); give that alone, or "
            "leave it out."
        )
    rows = {image.row for image in images}
    tables = [table for table, of in zip(found.tables, found.images_of_rows, strict=True) if not rows.isdisjoint(of)]
    if len(tables) > 1:
        raise InputError(
            f"--add-column {column}: {found.path} has several splits, and a Parquet file holds one; name it with --split."
        )
    if column in tables[0].schema.names:
        raise InputError(f"--add-column {column}: {found.path} has such a column already; name another.")


def write_copy(
    path: Path, column: str, pairs: Iterable[tuple[FoundImage, CaptionResult]], images: FoundImages, several: bool
) -> None:
    """The rows whose images have a result; null is the caption of an image that can't be read.

    Args:
        several: the column holds lists.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    captions = Shelf()  # number of the image -> [what the column has]
    for image, result in pairs:
        said = (list(result.captions) if several else result.caption) if result.error is None else None
        captions.setdefault(str(image.row), [said])
    source = images.sets[0]
    assert isinstance(source, TableImages)
    field = pa.field(column, pa.list_(pa.string()) if several else pa.string())
    writer = None
    for table, numbers in zip(source.tables, source.images_of_rows, strict=True):
        at, schema = 0, _with_field(table.schema, field)
        for batch in table.batches(table.schema.names, ROWS):
            found = [captions.get(str(number)) for number in numbers[at : at + batch.num_rows]]
            at += batch.num_rows
            chosen = [i for i, said in enumerate(found) if said is not None]
            if not chosen:
                continue
            rows = (batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])).take(chosen)
            said = pa.array([found[i][0] for i in chosen], field.type)
            writer = writer or pq.ParquetWriter(path, schema)
            writer.write_table(pa.Table.from_arrays([*rows.columns, pa.chunked_array([said])], schema=schema))
    if writer is not None:
        writer.close()


def _with_field(schema: pa.Schema, field: pa.Field) -> pa.Schema:
    """One column more, also in what `datasets` has written about the columns."""
    import pyarrow as pa

    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        told: dict[str, Any] = json.loads(metadata[b"huggingface"])
        kind: dict[str, Any] = {"dtype": "string", "_type": "Value"}
        kind = {"feature": kind, "_type": "List"} if pa.types.is_list(field.type) else kind
        told.get("info", {}).get("features", {})[field.name] = kind
        metadata[b"huggingface"] = json.dumps(told).encode()
    return schema.append(field).with_metadata(metadata or None)
