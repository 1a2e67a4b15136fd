"""The cache: a plain Hugging Face dataset folder, its manifest, and a zero-copy way to read it.

    cache/dataset/
        dataset_dict.json  train/ validation/ test/    datasets.load_from_disk() opens these
        manifest.json      what made it: options, identities, counts, versions, content hashes
        rejected.jsonl     images that could not be read, with the reason
        index/             a row per source image: size, time, content hash, where its pixels are (for rebuilding)
        tokenizer/  image_processor/                    as `save_pretrained` writes them

Each split is a row of Arrow stream files, one per shard of the source (toolkit/cache/build.py writes them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np

from toolkit.cache.reader import Rows, SplitReader
from toolkit.data.pixels import centre
from toolkit.errors import InputError
from toolkit.records import SPLITS, SpecialTokens
from toolkit.runtime.copies import as_path

if TYPE_CHECKING:
    from datasets import Dataset, Features

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
COLUMNS = ("image_id", "path", "captions", "pixel_values", "labels")
_FILES = re.compile(
    rf"({'|'.join(SPLITS)})/(data-\d{{6,}}\.arrow|state\.json|dataset_info\.json)|index/\d{{6,}}\.arrow"
    r"|(tokenizer|image_processor)/.+|dataset_dict\.json|rejected\.jsonl"
)


class PixelSettings(TypedDict):
    """The image processor's PixelTransform (data/pixels.py) as JSON; here is what readers need of it.

    With `--pixel-margin` the shape is that of the stored pixels, and larger than the crop.
    """

    shape: tuple[int, int, int]
    crop: NotRequired[tuple[int, int] | None]
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def seen_size(pixels: PixelSettings) -> tuple[int, int]:
    """(height, width) that the encoder takes."""
    height, width = pixels.get("crop") or pixels["shape"][1:]
    return height, width


class LabelSettings(TypedDict):
    """What labels were made with: token ids, and the hash of the tokenizer's file."""

    start: int
    eos: int
    pad: int
    vocab_size: int
    max_length: int
    tokenizer: str


class Counts(TypedDict):
    images: int
    splits: dict[str, int]
    captions: int
    truncated: int
    rejected: int
    unusable_rows: NotRequired[int]
    edited: NotRequired[int]  # captions, by --reviewed
    reviewed_out: NotRequired[int]  # images that a person has rejected
    left_out: int
    leaked: int


class SplitSource(TypedDict):
    by: str | None  # lists, source or content
    validation_drawn: bool


class Inputs(TypedDict):
    annotations: str
    reading: NotRequired[int]
    images: str | None
    processors: str


class Manifest(TypedDict):
    """`manifest.json`; what caches of earlier versions lack is NotRequired."""

    schema_version: int
    toolkit: str
    options: dict[str, Any]  # of PreprocessOptions, those that decide what is in the cache
    format: str
    pixels: PixelSettings
    labels: LabelSettings
    counts: Counts
    leaks: list[dict[str, list[str]]]
    splits: NotRequired[SplitSource]
    inputs: Inputs
    libraries: dict[str, str]
    files: dict[str, int]  # the size of each


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


def is_cache_file(name: str) -> bool:
    """Whether a name, relative to the cache, is one that `preprocess` gives: no other file is its to replace.

    The manifest is none of them; whoever replaces a cache treats it apart.
    """
    return _FILES.fullmatch(name) is not None and ".." not in name.split("/")


def listed_files(manifest: bytes) -> set[str] | None:
    """The files that a manifest says are the cache's, as far as they can be; None if it can't be read."""
    try:
        return {name for name in json.loads(manifest)["files"] if is_cache_file(name)}
    except (ValueError, KeyError, TypeError):
        return None


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished cache.

    Raises:
        InputError: no such folder, no cache, or one of another schema version.
    """
    path = directory / MANIFEST
    if not directory.exists():
        raise InputError(f"{directory}: no such folder; run `toolkit preprocess` first, or name the cache.")
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{directory}: not a cache (no readable {MANIFEST}); `toolkit preprocess` writes one."
        ) from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{directory}: a cache of schema version {version}, this toolkit reads {SCHEMA_VERSION}; "
            "run `toolkit preprocess --overwrite` to build it again."
        )
    return manifest


@dataclass(frozen=True)
class Cache:
    """An opened cache: `cache["train"]` is a SplitReader."""

    directory: Path
    manifest: Manifest

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.manifest["pixels"]["shape"]
        return (channels, height, width)

    @property
    def seen(self) -> tuple[int, int]:
        """(height, width) of the centre of the stored pixels that the encoder takes: all of them without a margin."""
        return seen_size(self.manifest["pixels"])

    @property
    def special_tokens(self) -> SpecialTokens:
        labels = self.manifest["labels"]
        return SpecialTokens(labels["start"], labels["eos"], labels["pad"])

    def __getitem__(self, split: str) -> SplitReader:
        if split not in SPLITS:
            raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}.")
        return SplitReader(self.directory / split, self.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(SPLITS)

    def fingerprint(self, split: str) -> str:
        """Of the rows of a split, as Hugging Face's `datasets` has it."""
        return str(json.loads((self.directory / split / "state.json").read_text())["_fingerprint"])


def open_cache(directory: Path | str) -> Cache:
    """Opens a finished cache.

    Raises:
        InputError: as `read_manifest`.
    """
    directory = as_path(directory)
    return Cache(directory, read_manifest(directory))


class CaptionView(Sequence[dict[str, np.ndarray]]):
    """One row per caption, normalised: what a stock `Seq2SeqTrainer` with `default_data_collator` takes.

    `view[i]` is {"pixel_values": float32 (C, H, W), "labels": int64 (max_length,)}, with the height and width that the
    encoder takes: the centre of what is stored, where that has a margin. Pixels are normalised row by row
    here, since a stock Trainer does not do it on the device; that is why toolkit's own trainer is faster.
    """

    def __init__(self, rows: Rows, order: np.ndarray, pixels: PixelSettings) -> None:
        self.rows = rows
        self.order = order
        self.ends = np.cumsum(rows.caption_counts()[order])
        self.seen = seen_size(pixels)
        self.scale = np.float64(pixels["rescale_factor"])
        self.mean = np.array(pixels["mean"], dtype=np.float32).reshape(-1, 1, 1)
        self.std = np.array(pixels["std"], dtype=np.float32).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: Any) -> Any:
        index = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = int(np.searchsorted(self.ends, index, side="right"))
        row = int(self.order[position])
        pixels, labels = centre(self.rows.pixel_row(row), *self.seen), self.rows.label_rows(row)
        caption = index - int(self.ends[position])  # from the end of the row's captions
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
    rows = Rows(dataset.data.table, manifest["pixels"]["shape"])
    # shuffle() and select() may leave the table alone and keep a list of rows beside it; ignoring that list would
    # silently give other rows than the data set shows.
    indices = dataset._indices
    order = np.arange(len(rows)) if indices is None else indices.column(0).to_numpy()
    return CaptionView(rows, order, manifest["pixels"])
