"""Building a cache in pieces, each finished by rename.

A piece is a contiguous run of source images. Its worker decodes them, labels their captions, and writes one Arrow file
per split that got a row; last it writes the piece's index. A piece whose index stands with the right key is done: a
rerun skips it, whatever killed the first run. Pixels are taken from an earlier cache wherever the image's bytes and
the pixel settings are the same, so another tokenizer, max length, caption, split or neighbour decodes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from toolkit.cache import SCHEMA_VERSION, Rows, cache_features, open_file, read_arrow
from toolkit.errors import ImageError
from toolkit.hashing import Hasher, hash_hex, hash_int
from toolkit.images import read_image, resolve_image
from toolkit.labels import CaptionEncoder
from toolkit.pixels import PixelTransform
from toolkit.records import SPLITS
from toolkit.splits import split_of

PIECE_ROWS = 256  # 38 MB at 224 px: half a second of work to lose, and few enough files for 10^6 images
BATCH_ROWS = 64  # rows a record batch: bounds a worker's buffers; far below the 14,266 that overflow 32-bit offsets

RECORDS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("data", pa.large_binary()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),  # of the file, bytes
        ("mtime_ns", pa.int64()),
        ("content", pa.string()),  # xxh3_128 of the encoded bytes
        ("pixel_hash", pa.string()),  # xxh3_128 of the decoded RGB picture, full size
        ("split", pa.string()),  # null: rejected, or in none of the source's splits
        ("row", pa.int32()),  # of the piece's file of that split
        ("num_captions", pa.int32()),
        ("truncated", pa.int32()),  # captions cut to max_length
        ("reason", pa.string()),  # why the image was rejected
    ]
)


def piece_name(piece: int) -> str:
    return f"{piece:06d}.arrow"


def data_name(piece: int) -> str:
    return f"data-{piece:06d}.arrow"


def write_arrow(path: Path, table: pa.Table) -> None:
    """A whole table, finished by rename."""
    temporary = path.with_name(path.name + ".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    os.replace(temporary, path)


def read_index(directory: Path) -> list[tuple[int, pa.Table]]:
    """(piece, index rows) of every finished piece, in order."""
    return [(int(path.stem), read_arrow(path)) for path in sorted((directory / "index").glob("*.arrow"))]


def index_key(table: pa.Table, name: str = "key") -> str:
    """`key`: what the piece was made of; `pixels`: the settings that its pixels were made with."""
    return (table.schema.metadata or {}).get(name.encode(), b"").decode()


def pixels_key(transform: PixelTransform) -> str:
    return f"{SCHEMA_VERSION}:{transform.key}"


def file_state(path: Path) -> tuple[int, int]:
    """(size, mtime_ns) of a file, (-1, -1) where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


class Place(NamedTuple):
    """Where the pixels of a known image stand."""

    file: Path
    row: int
    content: str
    pixel_hash: str


@dataclass
class KnownPixels:
    """The pixels that earlier caches hold, found by file state or by content. Directories are only read.

    Look-ups are binary searches over 64-bit hashes: 16 bytes an image in each worker, where a dict would take 200.
    """

    directories: Sequence[Path]
    transform: PixelTransform
    open_files: dict[Path, Rows] = field(default_factory=dict)

    @cached_property
    def tables(self) -> list[tuple[Path, int, pa.Table]]:
        found = [(d, piece, table) for d in self.directories for piece, table in read_index(d)]
        wanted = pixels_key(self.transform)
        return [(d, p, t.filter(pc.is_valid(t["split"]))) for d, p, t in found if index_key(t, "pixels") == wanted]

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum([0] + [len(t) for _, _, t in self.tables])

    def _sorted(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        values = (v for _, _, t in self.tables for v in t[column].to_pylist())
        hashes = np.fromiter((hash_int(v) for v in values), dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    @cached_property
    def by_path(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted("path")

    @cached_property
    def by_content(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted("content")

    def _find(self, index: tuple[np.ndarray, np.ndarray], **wanted: Any) -> Place | None:
        hashes, order = index
        value = wanted.get("content") or wanted["path"]
        at = int(np.searchsorted(hashes, np.uint64(hash_int(value))))
        while at < len(hashes) and hashes[at] == hash_int(value):
            table_number = int(np.searchsorted(self.starts, order[at], side="right")) - 1
            directory, piece, table = self.tables[table_number]
            row = {k: v[0] for k, v in table.slice(order[at] - self.starts[table_number], 1).to_pydict().items()}
            if all(row[name] == v for name, v in wanted.items()):
                return Place(directory / row["split"] / data_name(piece), row["row"], row["content"], row["pixel_hash"])
            at += 1
        return None

    def find(self, path: str, size: int, mtime_ns: int) -> Place | None:
        """The image under this path, if the file is as it was."""
        return self._find(self.by_path, path=path, size=size, mtime_ns=mtime_ns) if self.directories else None

    def find_content(self, content: str) -> Place | None:
        """An image of these bytes, under whatever name."""
        return self._find(self.by_content, content=content) if self.directories else None

    def pixels(self, place: Place) -> np.ndarray:
        """uint8 (C, H, W), a view into the earlier file."""
        if place.file not in self.open_files:
            if len(self.open_files) >= 16:  # mapped, not read; still, keep the number of open maps bounded
                self.open_files.clear()
            self.open_files[place.file] = open_file(place.file, self.transform.shape)
        return self.open_files[place.file].pixel_row(place.row)


class SplitWriter:
    """One Arrow stream file of one split of one piece; rows are buffered up to a record batch."""

    def __init__(self, path: Path, shape: tuple[int, int, int], max_length: int) -> None:
        self.path, self.max_length = path, max_length
        self.features = cache_features(shape, max_length)
        self.schema = self.features.arrow_schema
        self.temporary = path.with_name(path.name + ".tmp")
        self.sink = pa.OSFile(str(self.temporary), "wb")
        self.writer = pa.ipc.new_stream(self.sink, self.schema)
        self.pixels = np.empty((BATCH_ROWS, *shape), dtype=np.uint8)
        self.rows: list[tuple[str, str, list[str], np.ndarray]] = []
        self.count = 0

    def add(self, image_id: str, path: str, captions: list[str], pixels: np.ndarray, labels: np.ndarray) -> int:
        """Returns the row's number within the file."""
        self.pixels[len(self.rows)] = pixels
        self.rows.append((image_id, path, captions, labels))
        self.count += 1
        if len(self.rows) == BATCH_ROWS:
            self.flush()
        return self.count - 1

    def flush(self) -> None:
        if not self.rows:
            return
        ids, paths, captions, labels = zip(*self.rows, strict=True)
        columns = [
            pa.array(ids, pa.string()),
            pa.array(paths, pa.string()),
            pa.array(captions, pa.list_(pa.string())),
            self._pixel_array(self.pixels[: len(self.rows)]),
            self._label_array(labels),
        ]
        self.writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        self.rows = []

    def _pixel_array(self, pixels: np.ndarray) -> pa.Array:
        """uint8 (n, C, H, W) -> the Array3D extension array, the bytes taken as they lie."""
        array = pa.array(pixels.reshape(-1))
        for length in pixels.shape[:0:-1]:  # W, H, C
            offsets = np.arange(len(array) // length + 1, dtype=np.int32) * length
            array = pa.ListArray.from_arrays(pa.array(offsets), array)
        return pa.ExtensionArray.from_storage(self.schema.field("pixel_values").type, array)

    def _label_array(self, labels: Sequence[np.ndarray]) -> pa.Array:
        flat = pa.array(np.concatenate(labels).reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(flat, self.max_length)
        offsets = np.cumsum([0] + [len(x) for x in labels]).astype(np.int32)
        kind = self.schema.field("labels").type
        return pa.ListArray.from_arrays(pa.array(offsets), rows).cast(kind)

    def close(self) -> None:
        self.flush()
        self.writer.close()
        self.sink.close()

    def finish(self) -> None:
        os.replace(self.temporary, self.path)


@dataclass
class PieceBuilder:
    """Builds pieces; picklable, so that each worker gets its own. `self(task)` builds one and writes it to disk."""

    directory: Path  # the unfinished cache
    images: Path | None
    transform: PixelTransform
    tokenizer_file: Path
    eos_token_id: int
    max_length: int
    seed: int
    val_fraction: float
    test_fraction: float
    own_splits: bool  # the source has splits: an image without one is left out
    known_directories: tuple[Path, ...] = ()  # earlier caches, whose pixels serve again

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("encoder", "known", "records")}

    @cached_property
    def encoder(self) -> CaptionEncoder:
        return CaptionEncoder(self.tokenizer_file, self.eos_token_id, self.max_length)

    @cached_property
    def known(self) -> KnownPixels:
        return KnownPixels(self.known_directories, self.transform)

    @cached_property
    def records(self) -> pa.Table:
        return read_arrow(self.directory / "records.arrow")

    def rows(self, piece: int) -> Iterator[dict[str, Any]]:
        yield from self.records.slice(piece * PIECE_ROWS, PIECE_ROWS).to_pylist()

    def _pixels(self, record: dict[str, Any], entry: dict[str, Any]) -> np.ndarray:
        """uint8 (C, H, W) of one image, decoded only if no earlier cache has it; fills in the entry's hashes."""
        data, place = record["data"], None
        if data is not None or self.images is None:
            entry["size"], entry["mtime_ns"] = len(data or b""), 0
        else:
            file = resolve_image(self.images, record["path"])
            entry["size"], entry["mtime_ns"] = file_state(file)
            place = self.known.find(record["path"], entry["size"], entry["mtime_ns"])
            if place is None:
                data = read_bytes(file)
        if place is None:
            entry["content"] = hash_hex(data)
            place = self.known.find_content(entry["content"])
        if place is not None:
            entry["content"], entry["pixel_hash"] = place.content, place.pixel_hash
            return self.known.pixels(place)
        image = read_image(data)
        entry["pixel_hash"] = pixel_hash(image)
        return self.transform(image)

    def __call__(self, task: dict[str, Any]) -> None:
        piece, key = task["piece"], task["key"]
        name = data_name(piece)
        writers: dict[str, SplitWriter] = {}
        index: dict[str, list[Any]] = defaultdict(list)
        for record in self.rows(piece):
            entry: dict[str, Any] = {"size": -1, "mtime_ns": -1, "image_id": record["image_id"], "path": record["path"]}
            split = record["split"]
            if not (self.own_splits and split is None):
                try:
                    pixels = self._pixels(record, entry)
                except ImageError as error:
                    entry["reason"] = str(error)
                else:
                    split = split or split_of(entry["pixel_hash"], self.seed, self.val_fraction, self.test_fraction)
                    if split not in writers:
                        writers[split] = SplitWriter(
                            self.directory / split / name, self.transform.shape, self.max_length
                        )
                    labels, truncated = self.encoder(record["captions"])
                    entry["row"] = writers[split].add(
                        record["image_id"], record["path"], record["captions"], pixels, labels
                    )
                    entry.update(split=split, num_captions=len(labels), truncated=int(truncated.sum()))
            for column in INDEX_SCHEMA.names:
                index[column].append(entry.get(column))
        for split in SPLITS:
            if split in writers:
                writers[split].close()
                writers[split].finish()
            else:  # an earlier build of this piece, with another key, may have had rows here
                with contextlib.suppress(FileNotFoundError):
                    os.remove(self.directory / split / name)
        table = pa.table(
            dict(index), schema=INDEX_SCHEMA.with_metadata({"key": key, "pixels": pixels_key(self.transform)})
        )
        write_arrow(self.directory / "index" / piece_name(piece), table)


def read_bytes(path: Path) -> bytes:
    """A file's bytes; anything that can't be read, or would block, is an ImageError."""
    from toolkit.images import check_file

    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError((error.strerror or "unreadable").lower()) from None


def pixel_hash(image: Image.Image) -> str:
    """A hash of the picture itself, so that a PNG and a BMP of the same pixels are one image."""
    digest = Hasher(f"{image.width}x{image.height}")
    digest.update(image.tobytes())
    return digest.hex()


def write_dataset(directory: Path, shape: tuple[int, int, int], max_length: int, tokenizer: str) -> None:
    """What makes the pieces a `DatasetDict` that `datasets.load_from_disk` opens: three small JSON files."""
    features = cache_features(shape, max_length)
    for split in SPLITS:
        folder = directory / split
        files = sorted(path.name for path in folder.glob("data-*.arrow"))
        if not files:  # a split without rows is still a split
            writer = SplitWriter(folder / data_name(0), shape, max_length)
            writer.close()
            writer.finish()
            files = [data_name(0)]
        digest = Hasher(tokenizer)
        for piece, table in read_index(directory):
            rows = table.filter(pc.equal(table["split"], split)).select(["image_id", "pixel_hash"]).to_pydict()
            digest.update(repr((piece, rows)))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in files],
            "_fingerprint": digest.hex(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True))
        info = {"features": features.to_dict(), "description": "", "citation": "", "homepage": "", "license": ""}
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=1, sort_keys=True))
    (directory / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
