"""The cache: a plain Hugging Face dataset folder, its manifest, and a zero-copy way to read it.

    cache/dataset/
        dataset_dict.json  train/ validation/ test/    datasets.load_from_disk() opens these
        manifest.json      what made it: options, identities, counts, versions, content hashes
        rejected.jsonl     images that could not be read, with the reason
        index/             a row per source image: size, time, content hash, where its pixels are (for rebuilding)
        tokenizer/  image_processor/                    as `save_pretrained` writes them

Each split is a row of Arrow stream files, one per piece of the source (toolkit/build.py writes them).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toolkit.errors import InputError
from toolkit.records import SPLITS

if TYPE_CHECKING:
    from datasets import Dataset, Features

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
COLUMNS = ("image_id", "path", "captions", "pixel_values", "labels")


def cache_features(shape: tuple[int, int, int], max_length: int) -> Features:
    """The five columns. `pixel_values` is CHW: as HWC, lists of three bytes would add 352 KB of offsets an image."""
    from datasets import Array3D, Features, List, Value

    return Features(
        {
            "image_id": Value("string"),
            "path": Value("string"),
            "captions": List(Value("string")),
            "pixel_values": Array3D(shape, "uint8"),
            "labels": List(List(Value("int32"), length=max_length)),
        }
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        InputError: no such folder, no cache, or one of another schema version.
    """
    path = directory / MANIFEST
    if not directory.exists():
        raise InputError(f"{directory}: no such folder; run `toolkit preprocess` first, or name the cache.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{directory}: not a cache (no readable {MANIFEST}); `toolkit preprocess` writes one."
        ) from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{directory}: a cache of schema version {version}, this toolkit reads {SCHEMA_VERSION}; "
            "run `toolkit preprocess --overwrite` to build it anew."
        )
    return manifest


def read_arrow(path: Path) -> pa.Table:
    """A stream file as a table whose buffers stay in the memory-mapped file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


class Rows:
    """Rows of a cache's table as numpy views into its memory-mapped files, nothing copied.

    Attributes:
        pixels: one uint8 view (rows, C, H, W) per record batch.
        labels: int32 (captions, max_length) of all rows.
        offsets: int64 (rows + 1,): row i has labels[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, table: pa.Table, shape: tuple[int, int, int]) -> None:
        self.table = table
        max_length = self.table.schema.field("labels").type.value_type.list_size
        self.num_rows = self.table.num_rows
        self.pixels = [_flat(chunk).reshape(len(chunk), *shape) for chunk in self.table["pixel_values"].chunks]
        self.starts = np.cumsum([0] + [len(p) for p in self.pixels])
        chunks = self.table["labels"].chunks
        self.labels = np.concatenate([_flat(c).reshape(-1, max_length) for c in chunks] or [_no_labels(max_length)])
        lengths = [np.diff(c.offsets.to_numpy()) for c in chunks]
        self.offsets = np.concatenate([[0], *lengths]).astype(np.int64).cumsum()

    def pixel_row(self, row: int) -> np.ndarray:
        """uint8 (C, H, W), a view into the file."""
        batch = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.pixels[batch][row - self.starts[batch]]

    def label_rows(self, row: int) -> np.ndarray:
        """int32 (captions, max_length) of one row."""
        return self.labels[self.offsets[row] : self.offsets[row + 1]]


def open_file(path: Path, shape: tuple[int, int, int]) -> Rows:
    """The rows of one finished Arrow stream file."""
    return Rows(read_arrow(path), shape)


def _flat(array: pa.Array) -> np.ndarray:
    """The values at the bottom of nested lists, without a copy."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while pa.types.is_nested(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=True)


def _no_labels(max_length: int) -> np.ndarray:
    return np.empty((0, max_length), dtype=np.int32)


@dataclass(frozen=True)
class SplitReader(Sequence[dict[str, np.ndarray]]):
    """One split, ready for training: `reader[i]` is {"pixel_values": uint8 (C, H, W), "labels": int32 (n, max_length)}.

    Both are views into the memory-mapped files: nothing is decoded, parsed or copied until a batch is assembled.
    """

    directory: Path
    shape: tuple[int, int, int]

    @cached_property
    def files(self) -> list[Rows]:
        state = json.loads((self.directory / "state.json").read_text())
        names = [entry["filename"] for entry in state["_data_files"]]
        return [open_file(self.directory / name, self.shape) for name in names]

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum([0] + [f.num_rows for f in self.files])

    @cached_property
    def rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(pixels view, labels view) of each row: 250 bytes of Python a row buys a plain list look-up a sample."""
        return [(file.pixel_row(i), file.label_rows(i)) for file in self.files for i in range(file.num_rows)]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        pixels, labels = self.rows[index]
        return {"pixel_values": pixels, "labels": labels}

    def column(self, name: str) -> list[Any]:
        """A column of plain values: `image_id`, `path` or `captions`."""
        return [value for file in self.files for value in file.table[name].to_pylist()]


@dataclass(frozen=True)
class Cache:
    """An opened cache: `cache["train"]` is a SplitReader."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.manifest["pixels"]["shape"]
        return (channels, height, width)

    def __getitem__(self, split: str) -> SplitReader:
        if split not in SPLITS:
            raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}.")
        return SplitReader(self.directory / split, self.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(SPLITS)


def open_cache(directory: Path | str) -> Cache:
    """Opens a finished cache.

    Raises:
        InputError: as `read_manifest`.
    """
    directory = Path(directory)
    return Cache(directory, read_manifest(directory))


class CaptionView(Sequence[dict[str, np.ndarray]]):
    """One row per caption, normalised: what a stock `Seq2SeqTrainer` with `default_data_collator` takes.

    `view[i]` is {"pixel_values": float32 (C, H, W), "labels": int64 (max_length,)}. Pixels are normalised row by row
    here, since a stock Trainer does not do it on the device; that is why toolkit's own trainer is faster.
    """

    def __init__(self, rows: Rows, order: Sequence[int], pixels: dict[str, Any]) -> None:
        self.rows = rows
        self.captions = [(row, i) for row in order for i in range(len(rows.label_rows(row)))]
        self.scale = np.float64(pixels["rescale_factor"])
        self.mean = np.array(pixels["mean"], dtype=np.float32).reshape(-1, 1, 1)
        self.std = np.array(pixels["std"], dtype=np.float32).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: Any) -> Any:
        row, caption = self.captions[index]
        pixels, labels = self.rows.pixel_row(row), self.rows.label_rows(row)
        scaled = (pixels * self.scale).astype(np.float32)  # float64 product, rounded once: as the HF processors do
        return {"pixel_values": (scaled - self.mean) / self.std, "labels": labels[caption].astype(np.int64)}


def caption_view(dataset: Dataset) -> CaptionView:
    """One row per caption of a split opened with `datasets.load_from_disk`; `select` and `shuffle` are followed.

    Raises:
        InputError: the data set does not stem from one cache folder, or its columns were changed.
    """
    folders = {Path(file["filename"]).parent for file in dataset.cache_files if "data-" in Path(file["filename"]).name}
    if len(folders) != 1 or set(COLUMNS) - set(dataset.column_names):
        raise InputError("caption_view: give one split of `datasets.load_from_disk(cache)`, or a `select` of it.")
    manifest = read_manifest(folders.pop().parent)
    rows = Rows(dataset.data.table, tuple(manifest["pixels"]["shape"]))
    # shuffle() and select() may leave the table alone and keep a list of rows beside it; ignoring that list would
    # silently give other rows than the data set shows.
    indices = dataset._indices
    order = range(rows.num_rows) if indices is None else indices.column(0).to_pylist()
    return CaptionView(rows, order, manifest["pixels"])
