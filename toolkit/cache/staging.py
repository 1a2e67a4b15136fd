"""Staging: the records of an annotation set, written to disk shard by shard, so that no process has to hold them all.

<cache>.partial/records/000000.arrow, 000001.arrow, ...    one file per shard, read by the worker that builds it
"""

from __future__ import annotations

import bisect
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from toolkit.cache.index import read_index, shard_name
from toolkit.cache.reader import read_arrow
from toolkit.data.annotations import AnnotationSet
from toolkit.data.sources import ImageSource
from toolkit.records import ImageRecord
from toolkit.runtime.hashing import Hasher, hash_hex, hash_int

SHARD_ROWS = 256  # 38 MB at 224 px: half a second of work to lose, and few enough files for 10^6 images
DECODED = "decoded"  # folder of images that are decoded before there is a tokenizer: their pixels, and their splits
SAMPLE = 3  # images that are shown as they were read
BATCH_BYTES = 2**24  # of images that lie in containers, held at once

RECORDS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("data", pa.large_binary()),
    ]
)


@dataclass
class Staged:
    """What was staged.

    Attributes:
        digests: for each shard a hash of its records and of the state of its image files.
        rows: for each shard its number of records.
        captions: how many there are in all.
        splits: those that the source names for any image.
        missing: how many image files are not there; `examples` names the first of them.
        unusable: how many rows of the source gave no caption, though they should have.
        sample: a few records to look at, without their images: the same ones in whatever order they come.
    """

    digests: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    captions: int = 0
    splits: set[str] = field(default_factory=set)
    missing: int = 0
    examples: list[str] = field(default_factory=list)
    unusable: int = 0
    sample: list[ImageRecord] = field(default_factory=list)

    @property
    def own_splits(self) -> bool:
        """Whether the source names a split for any image."""
        return bool(self.splits)

    @property
    def images(self) -> int:
        return sum(self.rows)


class _RecordsFile:
    """The file of one shard."""

    def __init__(self, path: Path) -> None:
        self.sink = pa.OSFile(str(path), "wb")
        self.writer = pa.ipc.new_stream(self.sink, RECORDS_SCHEMA)
        self.batch: list[ImageRecord] = []
        self.pending = 0  # bytes of images in the batch
        self.digest = Hasher()
        self.rows = 0

    def add(self, record: ImageRecord, state: Any) -> None:
        self.digest.update(repr((record.image_id, record.path, list(record.captions), record.split, state)))
        self.batch.append(record)
        self.rows += 1
        self.pending += len(record.data or b"")
        if self.pending > BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [getattr(record, name) for record in self.batch] for name in RECORDS_SCHEMA.names}
        self.writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=RECORDS_SCHEMA))
        self.batch, self.pending = [], 0

    def close(self) -> None:
        self._flush()
        self.writer.close()
        self.sink.close()


def stage(annotations: AnnotationSet, directory: Path) -> Staged:
    """Writes all records below `directory`, in place of those of an earlier run.

    Raises:
        InputError: as the annotations' reader.
        OSError: writing failed.
    """
    folder = directory / "records"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    staged = Staged()
    source = ImageSource.of(annotations.images) if annotations.images is not None else None
    ranks: list[int] = []  # of the sample
    file: _RecordsFile | None = None
    for record in annotations.records:
        if file is not None and file.rows == SHARD_ROWS:
            _close(file, staged)
            file = None
        file = file or _RecordsFile(folder / shard_name(len(staged.rows)))
        state: Any = None
        if record.data is not None:
            state = hash_hex(record.data)
        elif source is not None:
            state = source.state(record.path)
            if state[0] < 0:
                staged.missing += 1
                staged.examples += [record.path] if len(staged.examples) < 3 else []
        file.add(record, state)
        staged.captions += len(record.captions)
        if record.split is not None:
            staged.splits.add(record.split)
        # By a hash of the id, as `inspect` does: not the first ones, which are often of one kind.
        rank = hash_int(record.image_id)
        if len(ranks) < SAMPLE or rank < ranks[-1]:
            at = bisect.bisect(ranks, rank)
            ranks.insert(at, rank)
            staged.sample.insert(at, replace(record, data=None))
            del ranks[SAMPLE:], staged.sample[SAMPLE:]
    if file is not None:
        _close(file, staged)
    staged.unusable = annotations.notes.unusable.count
    return staged


def _close(file: _RecordsFile, staged: Staged) -> None:
    file.close()
    staged.digests.append(file.digest.hex())
    staged.rows.append(file.rows)


def read_records(directory: Path, shard: int) -> Iterator[list[dict[str, Any]]]:
    """The records of one shard, as many at a time as may be held in memory."""
    path = directory / "records" / shard_name(shard)
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            yield batch.to_pylist()


def read_captions(directory: Path) -> Iterator[str]:
    """Every caption of all records; the images beside them are not read."""
    for path in sorted((directory / "records").glob("*.arrow")):
        for chunk in read_arrow(path)["captions"].chunks:
            yield from chunk.flatten().to_pylist()


def read_train_captions(directory: Path, by_index: bool) -> Iterator[str]:
    """Every caption of the train split.

    Args:
        by_index: the splits are by content, and stand in the index of `DECODED`; else the records have them.
    """
    if by_index:
        for shard, _, table in read_index(directory / DECODED):
            records = (record for batch in read_records(directory, shard) for record in batch)
            for record, split in zip(records, table["split"].to_pylist(), strict=True):
                yield from record["captions"] if split == "train" else ()
        return
    for path in sorted((directory / "records").glob("*.arrow")):
        table = read_arrow(path)
        for captions, split in zip(table["captions"].to_pylist(), table["split"].to_pylist(), strict=True):
            yield from captions if split == "train" else ()
