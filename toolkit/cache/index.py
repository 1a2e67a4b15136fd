"""The index of a cache's shards: which image stands where. Earlier caches are searched through it for pixels.

A shard is a contiguous run of source images: one data file per split that got a row, and one index file. The index is
written last, and says how long the data files are; a shard is whole if it stands with these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from toolkit.cache.reader import Rows, open_file, read_arrow
from toolkit.cache.schema import SCHEMA_VERSION
from toolkit.data.pixels import PixelTransform
from toolkit.runtime.files import file_state, finishing, unfinished
from toolkit.runtime.hashing import hash_int

INDEX_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),  # of the file, bytes
        ("mtime_ns", pa.int64()),
        ("content", pa.string()),  # xxh3_128 of the encoded bytes
        ("pixel_hash", pa.string()),  # xxh3_128 of the decoded RGB picture, full size
        ("split", pa.string()),  # null: rejected, or in none of the source's splits
        ("row", pa.int32()),  # of the shard's file of that split; null where that has none
        ("num_captions", pa.int32()),
        ("truncated", pa.int32()),  # captions cut to max_length
        ("reason", pa.string()),  # why the image was rejected
    ]
)


class ShardInfo(NamedTuple):
    """The head of a shard's index.

    Attributes:
        key: a hash of all that the shard was made of.
        pixels: the settings that its pixels were made with.
        root: the folder that its paths are relative to; empty for images in containers.
        files: for each split with rows {"size": bytes of its data file, "digest": a hash of its rows}.
    """

    key: str
    pixels: str
    root: str
    files: dict[str, dict[str, Any]]

    def metadata(self) -> dict[str, str]:
        return {**self._asdict(), "files": json.dumps(self.files, sort_keys=True)}

    @classmethod
    def of(cls, metadata: dict[bytes, bytes]) -> ShardInfo:
        values = {name: metadata[name.encode()].decode() for name in ("key", "pixels", "root")}
        return cls(**values, files=json.loads(metadata[b"files"]))


def shard_name(shard: int) -> str:
    return f"{shard:06d}.arrow"


def data_name(shard: int) -> str:
    return f"data-{shard:06d}.arrow"


def pixels_key(transform: PixelTransform) -> str:
    return f"{SCHEMA_VERSION}:{transform.key}"


def write_index(directory: Path, shard: int, columns: dict[str, list[Any]], info: ShardInfo) -> None:
    """Finishes a shard: its index appears, by rename."""
    table = pa.table(columns, schema=INDEX_SCHEMA.with_metadata(info.metadata()))
    path = directory / "index" / shard_name(shard)
    with (
        finishing(path, unfinished(path), lasting=False) as temporary,  # at the end all are put on the disk at once
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_index(directory: Path) -> Iterator[tuple[int, ShardInfo, pa.Table]]:
    """(shard, head, rows) of every whole shard, in order. One with a damaged index or a missing file is none."""
    for path in sorted((directory / "index").glob("*.arrow")):
        try:
            table = read_arrow(path)
            info = ShardInfo.of(table.schema.metadata)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            continue
        shard = int(path.stem)
        data = {split: directory / split / data_name(shard) for split in info.files}
        if all(file_state(data[split])[0] == file["size"] for split, file in info.files.items()):
            yield shard, info, table


class Place(NamedTuple):
    """Where the pixels of a known image stand."""

    file: Path
    row: int
    content: str
    pixel_hash: str


@dataclass
class KnownPixels:
    """The pixels that earlier caches hold, found by file state or by content. Directories are only read.

    Look-ups are binary searches over 64-bit hashes: 32 bytes an image in each worker, where dicts would take 400.
    """

    directories: Sequence[Path]
    transform: PixelTransform
    root: str = ""  # that paths are relative to; the same path below another folder is another image
    open_files: dict[Path, Rows] = field(default_factory=dict)

    @cached_property
    def tables(self) -> list[tuple[Path, int, str, pa.Table]]:
        wanted = pixels_key(self.transform)
        found = ((d, *entry) for d in self.directories for entry in read_index(d))
        return [(d, shard, info.root, table) for d, shard, info, table in found if info.pixels == wanted]

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum([0] + [len(t) for *_, t in self.tables])

    def _sorted(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        values = (v or "" for *_, t in self.tables for v in t[column].to_pylist())
        hashes = np.fromiter((hash_int(v) for v in values), dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    @cached_property
    def by_path(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted("path")

    @cached_property
    def by_content(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted("content")

    def _find(self, index: tuple[np.ndarray, np.ndarray], value: str, **wanted: Any) -> Place | None:
        hashes, order = index
        sought = np.uint64(hash_int(value))
        at = int(np.searchsorted(hashes, sought))
        while at < len(hashes) and hashes[at] == sought:
            number = int(np.searchsorted(self.starts, order[at], side="right")) - 1
            directory, shard, root, table = self.tables[number]
            row = {"root": root, **table.slice(order[at] - self.starts[number], 1).to_pylist()[0]}
            if row["row"] is not None and all(row[name] == v for name, v in wanted.items()):
                return Place(directory / row["split"] / data_name(shard), row["row"], row["content"], row["pixel_hash"])
            at += 1
        return None

    def find(self, path: str, size: int, mtime_ns: int) -> Place | None:
        """The image under this path, if the file is as it was."""
        if not self.directories:
            return None
        return self._find(self.by_path, path, root=self.root, path=path, size=size, mtime_ns=mtime_ns)

    def find_content(self, content: str) -> Place | None:
        """An image of these bytes, under whatever name."""
        return self._find(self.by_content, content, content=content) if self.directories else None

    def pixels(self, place: Place) -> np.ndarray | None:
        """uint8 (C, H, W), a view into the earlier file; None if that turns out to be damaged."""
        if place.file not in self.open_files:
            if len(self.open_files) >= 16:  # mapped, not read; still, keep the number of open maps bounded
                self.open_files.clear()
            try:
                self.open_files[place.file] = open_file(place.file, self.transform.shape)
            except (OSError, pa.ArrowException, ValueError):
                return None
        return self.open_files[place.file].pixel_row(place.row)
