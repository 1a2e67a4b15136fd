"""Encoder features computed once: what a frozen encoder makes of each image, kept beside its pixels.

    cache/dataset/features/<encoder>/<images>.bin    a shard: the encoder features of some images, one after another
                                    /encoder.json    their shape and precision, for people too

<encoder> is a hash of the weights and settings that the features come from, <images> one of the pictures of a shard. So
nothing stale is ever read, and whatever still fits is found again: by a run with another learning rate or tokenizer, or
by one that goes on where it was stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.compute as pc
import torch

from toolkit.cache.index import read_index
from toolkit.cache.reader import SplitReader, available_memory, read_into, reader_threads
from toolkit.cache.schema import Cache
from toolkit.errors import InputError, OutputError, RunError
from toolkit.models.freezing import hash_weights, used_weights
from toolkit.models.precision import DTYPES, PixelNormalizer
from toolkit.runtime.files import finishing, unfinished
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.progress import Progress, say
from toolkit.training.collator import CaptionDataset, prefetch
from toolkit.training.distributed import agreeing, broadcast_from_rank_0, rank, ranks

SHARD_BYTES = 2**26  # bytes of a shard: what a kill costs, a few seconds of a GPU
BATCH = 64  # images that the encoder is given at once
# How each precision lies in memory. NumPy knows no bfloat16, so its bits travel as int16 (`encoder_features`).
STORED: dict[str, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "bf16": np.dtype("<i2"), "fp32": np.dtype("<f4")}


def encoder_features(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n, S, D) as `FeatureDataset` gives them -> (n, S, D) as the decoder takes them."""
    return (stored.view(torch.bfloat16) if stored.dtype == torch.int16 else stored).to(dtype)


@dataclass(frozen=True)
class Features:
    """The encoder features of a split's images, in the order of its rows.

    Attributes:
        paths: of the shards; all but the last one hold `rows` images.
        shape: (S, D): positions and width of an image's features.
    """

    paths: list[Path]
    rows: int
    count: int
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @cached_property
    def reads(self) -> bool:
        """Whether shards are read rather than mapped: as `SplitReader.reads`."""
        return hasattr(os, "preadv") and self.count * self.row_bytes > available_memory()

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [np.memmap(path, self.dtype, "r").reshape(-1, *self.shape) for path in self.paths]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not the open files

    def gather(self, indices: Sequence[int]) -> list[np.ndarray]:
        """(S, D) of each row: views into the mapped files, or what was read of them."""
        if not self.reads:
            return [self._maps[i // self.rows][i % self.rows] for i in indices]
        out = np.empty((len(indices), *self.shape), self.dtype)

        def read(i: int) -> None:
            shard, row = divmod(indices[i], self.rows)
            read_into(self.paths[shard], row * self.row_bytes, memoryview(out[i]).cast("B"))

        list(reader_threads(os.getpid()).map(read, range(len(indices))))
        return list(out)


@dataclass(frozen=True)
class JoinedFeatures:
    """Those of several splits, one after another."""

    parts: list[Features]

    def gather(self, indices: Sequence[int]) -> list[np.ndarray]:
        """As `Features.gather`."""
        starts = np.cumsum([0, *(part.count for part in self.parts)])
        found: list[Any] = [None] * len(indices)
        for i, part in enumerate(self.parts):
            mine = [k for k, index in enumerate(indices) if starts[i] <= index < starts[i + 1]]
            for k, row in zip(mine, part.gather([int(indices[k] - starts[i]) for k in mine]), strict=True):
                found[k] = row
        return found


class FeatureDataset(CaptionDataset):
    """One item per image: {"features": (S, D) as stored, "labels": int32 (n, max_length)}; no pixel is read."""

    def __init__(self, features: Features | JoinedFeatures, reader: SplitReader, *args: Any) -> None:
        super().__init__(reader, *args)
        self.features = features

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        images = [max(index, 0) for index in indices]
        labels = (
            self._drawn(index, self.reader.rows.label_rows(image)) for index, image in zip(indices, images, strict=True)
        )
        found = self.features.gather(images)
        return [{"features": f, "labels": rows} for f, rows in zip(found, labels, strict=True)]


def encode_splits(
    cache: Cache,
    splits: Sequence[str],
    encoder: Any,
    normalizer: PixelNormalizer,
    stored: str,
    autocast: torch.dtype,
) -> dict[str, Features]:
    """The encoder features of every image of some splits. What is missing is computed, shard by shard, shared out to ranks.

    Args:
        encoder: and `normalizer`, on the device that computes.
        stored: fp16, bf16 or fp32.
        autocast: what training computes in.

    Raises:
        OutputError: the disk is too small, can't be written, or is not the same for all ranks.
        RunError: a feature is too large for fp16, or Ctrl-C; finished shards are kept.
    """
    encoder.eval()
    device = next(encoder.parameters()).device

    def encode(pixels: np.ndarray) -> torch.Tensor:
        inputs = normalizer(torch.from_numpy(pixels).to(device))
        with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
            return encoder(pixel_values=inputs).last_hidden_state

    folder = cache.directory / "features" / _key(encoder, cache, stored, autocast)
    try:
        shape = broadcast_from_rank_0(lambda: _shape(folder, stored, lambda: encode(cache[splits[0]].gather([0]))))
        size = int(np.prod(shape)) * STORED[stored].itemsize
        rows = max(1, SHARD_BYTES // size)
        made: dict[str, Features] = {}
        shards: list[Shard] = []
        with agreeing():
            for split in splits:
                reader, hashes = cache[split], picture_hashes(cache, split)
                ranges = [range(i, min(i + rows, len(hashes))) for i in range(0, len(hashes), rows)]
                paths = [folder / f"{hash_hex(*hashes[r.start : r.stop])}.bin" for r in ranges]
                made[split] = Features(paths, rows, len(hashes), shape, STORED[stored])
                shards += [Shard(path, reader, r, len(r) * size) for path, r in zip(paths, ranges, strict=True)]
        # One rank looks: another might see what is finished meanwhile, and take other shards for its own.
        mine = [shards[i] for i in broadcast_from_rank_0(lambda: _missing(folder, shards))[rank() :: ranks()]]
        with agreeing(), _writing(folder), Progress("encode", sum(len(shard.range) for shard in mine)) as progress:
            for shard in mine:
                with _finishing(shard.path) as file:
                    for found in map(encode, prefetch(shard.pixels())):
                        file.write(_bytes(found, stored))
                        progress.update(len(found))
        with agreeing():
            if not all(shard.is_whole() for shard in shards):
                raise OutputError(f"--cache-features: {folder} is not the same folder for all processes; put the cache "
                                  "where all see it, or train with --freeze-encoder alone.")  # fmt: skip
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the finished shards.") from None
    return made


@dataclass(frozen=True)
class Shard:
    """Some rows of a split, and the file for their features."""

    path: Path
    reader: SplitReader
    range: range
    bytes: int

    def is_whole(self) -> bool:
        with suppress(OSError):
            return self.path.stat().st_size == self.bytes
        return False

    def pixels(self) -> Iterator[np.ndarray]:
        for start in range(self.range.start, self.range.stop, BATCH):
            yield self.reader.gather(range(start, min(start + BATCH, self.range.stop)))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"--cache-features: {folder} can't be written ({(error.strerror or str(error)).lower()}); fix that, or train "
            "with --freeze-encoder alone."
        ) from None


def picture_hashes(cache: Cache, split: str) -> list[str]:
    """A hash of the picture of each row. With the transform, which is in the key, it stands for the pixels.

    Raises:
        InputError: the index doesn't fit the rows.
    """
    found: list[str] = []
    for _, _, table in read_index(cache.directory):
        rows = table.filter(pc.equal(table["split"], split)).sort_by("row")
        found += rows["pixel_hash"].to_pylist()
    if len(found) != len(cache[split]):
        raise InputError(
            f"{cache.directory}: its index is damaged; run `toolkit preprocess` again to repair the cache."
        )
    return found


def _key(encoder: Any, cache: Cache, stored: str, autocast: torch.dtype) -> str:
    """Of all that decides an image's features but its picture. A pooler is left out: it may be random, and changes none."""
    names = ("transformers_version", "_name_or_path", "architectures", "dtype")
    config = {k: v for k, v in encoder.config.to_dict().items() if k not in names}
    settings = [type(encoder).__name__, config, cache.manifest["pixels"], stored, str(autocast)]
    weights = {name: weight.float() for name, weight in used_weights(encoder).items()}
    return hash_weights(weights, json.dumps(settings, sort_keys=True, default=str)).hex()


def _shape(folder: Path, stored: str, first: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """(S, D), from an earlier run, or by trying the first image."""
    path = folder / "encoder.json"
    with suppress(OSError, ValueError, KeyError):
        positions, width = json.loads(path.read_text())["shape"]
        return positions, width
    shape = tuple(first().shape[1:])
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with finishing(path, unfinished(path)) as temporary:
            temporary.write_text(json.dumps({"shape": shape, "precision": stored}) + "\n")
    return (shape[0], shape[1])


def _missing(folder: Path, shards: Sequence[Shard]) -> list[int]:
    """Which shards are to be made. Says how much that is and whether it fits; what a killed run left goes."""
    missing = [i for i, shard in enumerate(shards) if not shard.is_whole()]
    if not missing:
        return []
    with _writing(folder):
        for path in folder.glob("*.tmp"):
            with suppress(OSError), open(path, "rb") as file:  # in use, it is locked
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        free = shutil.disk_usage(folder).free
        others = sum(f.stat().st_size for f in folder.parent.rglob("*.bin") if f.parent != folder)
    needed, images = sum(shards[i].bytes for i in missing), sum(len(shards[i].range) for i in missing)
    if needed > free:
        raise OutputError(
            f"--cache-features: the encoder features of {images} images take {_gigabytes(needed)}, but {_gigabytes(free)} are free in "
            f"{folder.parent}; make room, or train with --freeze-encoder alone."
        )
    also = f"; earlier ones beside it take {_gigabytes(others)}" if others else ""
    say(f"encoding {images} images once: {_gigabytes(needed)} in {folder}{also}")
    return missing


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@contextmanager
def _finishing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name once it is whole; locked, so that `_missing` leaves it alone."""
    with finishing(path, unfinished(path)) as temporary, open(temporary, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _bytes(found: torch.Tensor, stored: str) -> bytes:
    """(n, S, D) as it lies in a file.

    Raises:
        RunError: fp16 can't hold it.
    """
    kept = found.to(DTYPES[stored]).cpu().contiguous()
    if not bool(torch.isfinite(kept).all()):
        raise RunError("--feature-precision fp16: the encoder's features are too large for it (65504); use bf16.")
    return kept.view(torch.int16 if stored == "bf16" else kept.dtype).numpy().tobytes()
