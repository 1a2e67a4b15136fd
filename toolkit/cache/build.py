"""Building a cache in shards, each finished by rename.

A shard is a contiguous run of source images. Its worker decodes them, labels their captions, and writes one Arrow file
per split that got a row; last it writes the shard's index. A shard whose index stands with the right key is done: a
rerun skips it, whatever killed the first run. Pixels are taken from an earlier cache wherever the image's bytes and
the pixel settings are the same, so another tokenizer, max length, caption, split or neighbour decodes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from toolkit.cache.index import INDEX_SCHEMA, KnownPixels, ShardInfo, data_name, pixels_key, read_index, write_index
from toolkit.cache.labels import IGNORE_INDEX, CaptionEncoder
from toolkit.cache.schema import LabelSettings, cache_features
from toolkit.cache.splits import split_of
from toolkit.cache.staging import read_records
from toolkit.data.images import NOT_THE_IMAGES_FAULT, read_image
from toolkit.data.pixels import PixelTransform, stored_pixels
from toolkit.data.sources import ImageSource
from toolkit.errors import ImageError, RunError
from toolkit.records import SPLITS
from toolkit.runtime.files import unfinished
from toolkit.runtime.hashing import Hasher, hash_hex

BATCH_ROWS = 64  # rows a record batch at most, far below the 14,266 that overflow 32-bit offsets ...
BATCH_BYTES = 2**24  # ... and bytes of pixels, of which a worker holds one batch for each split


class SplitWriter:
    """One Arrow stream file of one split of one shard; rows are buffered up to a record batch."""

    def __init__(self, path: Path, shape: tuple[int, int, int], max_length: int) -> None:
        self.path, self.max_length = path, max_length
        self.features = cache_features(shape, max_length)
        self.schema = self.features.arrow_schema
        self.temporary = unfinished(path)
        self.sink = pa.OSFile(str(self.temporary), "wb")
        self.writer = pa.ipc.new_stream(self.sink, self.schema)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // int(np.prod(shape))))
        self.pixels = np.empty((rows, *shape), dtype=np.uint8)
        self.rows: list[tuple[str, str, list[str], np.ndarray]] = []
        self.count = 0
        self.digest = Hasher()

    def add(self, record: dict[str, Any], pixel_hash: str, pixels: np.ndarray, labels: np.ndarray) -> int:
        """Returns the row's number within the file."""
        row = (record["image_id"], record["path"], record["captions"])
        self.digest.update(repr((row, pixel_hash)))
        self.digest.update(labels)
        self.pixels[len(self.rows)] = pixels
        self.rows.append((*row, labels))
        self.count += 1
        if len(self.rows) == len(self.pixels):
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

    def finish(self) -> dict[str, Any]:
        """Renames the file into place; returns its size and a hash of its rows."""
        self.flush()
        self.writer.close()
        self.sink.close()
        size = self.temporary.stat().st_size
        os.replace(self.temporary, self.path)
        return {"size": size, "digest": self.digest.hex()}


@dataclass
class ShardBuilder:
    """Builds shards; picklable, so that each worker gets its own. `self(task)` builds one and writes it to disk.

    Without labels only splits are found, by the index: where the tokenizer is still to be trained on train captions. Then
    a row is written for each image that had to be decoded for it, so that its pixels serve when the cache is built.
    """

    directory: Path  # the unfinished cache
    staged: Path  # the folder with the records
    images: ImageSource | None
    transform: PixelTransform
    labels: LabelSettings | None
    seed: int
    val_fraction: float
    test_fraction: float
    own_splits: bool  # the source has splits: an image without one is left out
    draw_validation: bool = False  # ... but not validation, which is drawn from train
    known_directories: tuple[Path, ...] = ()  # earlier caches, whose pixels serve again

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("encoder", "known")}

    @property
    def root(self) -> str:
        return self.images.root.as_posix() if self.images is not None else ""

    @cached_property
    def encoder(self) -> CaptionEncoder:
        assert self.labels is not None
        tokenizer = self.directory / "tokenizer" / "tokenizer.json"
        return CaptionEncoder(tokenizer, self.labels["eos"], self.labels["max_length"])

    @property
    def max_length(self) -> int:
        return self.labels["max_length"] if self.labels is not None else 1

    def _labels(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.labels is not None:
            return self.encoder(captions)
        return np.full((len(captions), 1), IGNORE_INDEX, dtype=np.int32), np.zeros(len(captions), dtype=bool)

    @cached_property
    def known(self) -> KnownPixels:
        return KnownPixels(self.known_directories, self.transform, self.root)

    def _pixels(self, record: dict[str, Any], entry: dict[str, Any]) -> np.ndarray:
        """uint8 (C, H, W) of one image, decoded only if no earlier cache has it; fills in the entry's hashes."""
        data, place = record["data"], None
        if data is None:
            if self.images is None:
                raise ImageError("missing")
            entry["size"], entry["mtime_ns"] = self.images.state(record["path"])
            place = self.known.find(record["path"], entry["size"], entry["mtime_ns"])
            if place is None:
                data, (entry["size"], entry["mtime_ns"]) = self.images.read(record["path"])
        else:
            entry["size"], entry["mtime_ns"] = len(data), 0
        if place is None:
            entry["content"] = hash_hex(data)
            place = self.known.find_content(entry["content"])
        if place is not None:
            pixels = self.known.pixels(place)
            if pixels is not None:
                entry["content"], entry["pixel_hash"] = place.content, place.pixel_hash
                return pixels
            if data is None and self.images is not None:
                data, (entry["size"], entry["mtime_ns"]) = self.images.read(record["path"])
                entry["content"] = hash_hex(data)
        image = read_image(data)
        entry["pixel_hash"] = pixel_hash(image)
        entry["decoded"] = True
        return self.transform(image)

    def _add(
        self,
        record: dict[str, Any],
        labels: np.ndarray,
        entry: dict[str, Any],
        writers: dict[str, SplitWriter],
        name: str,
    ) -> bool:
        """Reads one image and writes its row; fills in its entry of the index. False if it can't be read."""
        try:
            pixels = self._pixels(record, entry)
        except ImageError as error:
            # An image without fault would be lost from the cache for good, and the same command would give other bytes.
            if str(error) in NOT_THE_IMAGES_FAULT:
                raise RunError(
                    f"{record['path']}: {error}; run the same command again to go on from the finished shards, with a "
                    "lower --num-workers, or remove the image."
                ) from None
            entry["reason"] = str(error)
            return False
        split = record["split"] or split_of(entry["pixel_hash"], self.seed, self.val_fraction, self.test_fraction)
        if self.draw_validation and split == "train":
            split = split_of(entry["pixel_hash"], self.seed, self.val_fraction, 0.0)
        entry["split"] = split
        if self.labels is None and "decoded" not in entry:
            return True
        if split not in writers:
            writers[split] = SplitWriter(self.directory / split / name, self.transform.shape, self.max_length)
        entry["row"] = writers[split].add(record, entry["pixel_hash"], pixels, labels)
        return True

    def __call__(self, task: dict[str, Any]) -> None:
        shard, name = task["shard"], data_name(task["shard"])
        writers: dict[str, SplitWriter] = {}
        index: dict[str, list[Any]] = defaultdict(list)
        decoded = 0
        for records in read_records(self.staged, shard):
            # All captions at once: between two images the tokenizer's tables fall out of the processor's cache.
            labels, truncated = self._labels([caption for record in records for caption in record["captions"]])
            end = 0
            for record in records:
                start, end = end, end + len(record["captions"])
                entry: dict[str, Any] = {
                    "size": -1,
                    "mtime_ns": -1,
                    "image_id": record["image_id"],
                    "path": record["path"],
                }
                if not (self.own_splits and record["split"] is None) and self._add(
                    record, labels[start:end], entry, writers, name
                ):
                    entry.update(num_captions=end - start, truncated=int(truncated[start:end].sum()))
                    decoded += "decoded" in entry
                for column in INDEX_SCHEMA.names:
                    index[column].append(entry.get(column))
        files = {split: writers[split].finish() for split in SPLITS if split in writers}
        for split in set(SPLITS) - set(files):  # an attempt that was cut short may have seen another image there
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.directory / split / name)
        decoded_file(self.directory, shard).write_text(str(decoded))
        info = ShardInfo(task["key"], pixels_key(self.transform), self.root, files)
        write_index(self.directory, shard, dict(index), info)


def decoded_file(directory: Path, shard: int) -> Path:
    """How many images of a shard were decoded, rather than found in an earlier cache; of interest to one run alone, so
    that it is not in the shard's index, whose bytes depend on the inputs and nothing else."""
    return directory / "records" / f"{shard:06d}.decoded"


def pixel_hash(image: Image.Image) -> str:
    """A hash of the picture itself, so that a PNG and a BMP of the same pixels are one image."""
    digest = Hasher(f"{image.width}x{image.height}")
    pixels = stored_pixels(image)  # a third of the time of tobytes()
    if pixels is None:
        pixels = np.frombuffer(image.tobytes("raw", "RGBX"), dtype=np.uint8)
    stored = pixels.reshape(-1).view(np.uint32)
    if isinstance(image, JpegImageFile):  # as its decoder left it, which sets the fourth byte
        digest.update(stored)
    else:
        for start in range(0, len(stored), HASH_PIXELS):
            digest.update(stored[start : start + HASH_PIXELS] | FOURTH_BYTE)
    return digest.hex()


HASH_PIXELS = 2**15  # at once: 128 KB, which stay in the processor's cache
FOURTH_BYTE = np.frombuffer(b"\0\0\0\xff", dtype=np.uint32)[0]  # it holds anything, so it is set before hashing


def write_dataset(directory: Path, transform: PixelTransform, max_length: int) -> None:
    """What makes the shards a `DatasetDict` that `datasets.load_from_disk` opens: three small JSON files.

    The fingerprint is of the rows as they are: `datasets` takes results of its own `map` from disk by it.
    """
    features = cache_features(transform.shape, max_length)
    digests = {split: Hasher(pixels_key(transform)) for split in SPLITS}
    files: dict[str, list[str]] = {split: [] for split in SPLITS}
    for shard, info, _ in read_index(directory):
        for split, file in info.files.items():
            digests[split].update(file["digest"])
            files[split].append(data_name(shard))
    for split in SPLITS:
        folder = directory / split
        if not files[split]:  # a split without rows is still a split
            SplitWriter(folder / data_name(0), transform.shape, max_length).finish()
            files[split] = [data_name(0)]
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in files[split]],
            "_fingerprint": digests[split].hex(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True))
        info_json = {"features": features.to_dict(), "description": "", "citation": "", "homepage": "", "license": ""}
        (folder / "dataset_info.json").write_text(json.dumps(info_json, indent=1, sort_keys=True))
    (directory / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
