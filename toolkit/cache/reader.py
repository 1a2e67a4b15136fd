"""Rows of a cache as arrays: views into memory-mapped files, or reads where the cache is larger than memory."""

from __future__ import annotations

import itertools
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toolkit.errors import InputError


def read_arrow(path: Path) -> pa.Table:
    """A stream file as a table whose buffers stay in the memory-mapped file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


class Rows:
    """Rows of a cache's table as numpy views into its memory-mapped files, nothing copied.

    Attributes:
        pixels: for each record batch a uint8 view (rows, C, H, W).
        labels: for each an int32 view (captions, max_length).
        offsets: for each an int32 view (rows + 1,): row i has labels[offsets[i]:offsets[i + 1]].
        starts: the number of its first row, and at the end the number of all rows.
    """

    def __init__(self, table: pa.Table, shape: tuple[int, int, int]) -> None:
        self.table = table
        max_length = table.schema.field("labels").type.value_type.list_size
        chunks = [c for c in table["pixel_values"].chunks if len(c)]
        self.pixels = [_flat(c).reshape(len(c), *shape) for c in chunks]
        labels = [c for c in table["labels"].chunks if len(c)]
        self.labels = [_flat(c).reshape(-1, max_length) for c in labels]
        # Those of a slice do not begin at 0, but what flatten() gives does.
        self.offsets = [o - o[0] if o[0] else o for o in (c.offsets.to_numpy() for c in labels)]
        self.starts = [0, *itertools.accumulate(len(c) for c in chunks)]

    def __len__(self) -> int:
        return self.starts[-1]

    def find(self, row: int) -> tuple[int, int]:
        """(record batch, row in it)."""
        if not 0 <= row < self.starts[-1]:
            raise IndexError(row)
        batch = bisect_right(self.starts, row) - 1
        return batch, row - self.starts[batch]

    def pixel_row(self, row: int) -> np.ndarray:
        """uint8 (C, H, W), a view into the file."""
        batch, i = self.find(row)
        return self.pixels[batch][i]

    def label_rows(self, row: int) -> np.ndarray:
        """int32 (captions, max_length) of one row."""
        batch, i = self.find(row)
        offsets = self.offsets[batch]
        return self.labels[batch][offsets[i] : offsets[i + 1]]

    def caption_counts(self) -> np.ndarray:
        """int64 (rows,): the number of captions of each."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(o) for o in self.offsets)]).astype(np.int64)


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


def available_memory() -> int:
    """Bytes that this process could fill before something is swapped or killed; a container's limit counts."""
    limits = []
    with suppress(OSError, StopIteration, ValueError), open("/proc/meminfo") as file:
        limits.append(next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(limits) if limits else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


READ_THREADS = 16  # an NVMe disk answers many reads at once; four times one thread's images/s where nothing is cached


@dataclass(frozen=True)
class SplitReader(Sequence[dict[str, np.ndarray]]):
    """One split, ready for training: `reader[i]` is {"pixel_values": uint8 (C, H, W), "labels": int32 (n, max_length)}.

    Both are views into the memory-mapped files: nothing is decoded, parsed or copied until a batch is assembled.

    Where the pixels are larger than memory, a map would page in 4 KB at a time, each fault waiting for the disk; then
    pixels are read row by row instead, by several threads, and are copies (`docs/benchmarks.md`).

    Args:
        from_disk: reads (True) or maps (False) the pixels; None decides by the memory that is free now.
        others: splits whose rows follow, with pixels and labels of the same shape.
    """

    directory: Path
    shape: tuple[int, int, int]
    from_disk: bool | None = None
    others: tuple[Path, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        # Not the open files: a loader's worker that is spawned would get the pixels through a pipe.
        return {name: getattr(self, name) for name in ("directory", "shape", "from_disk", "others")}

    @cached_property
    def paths(self) -> list[Path]:
        found: list[Path] = []
        for directory in (self.directory, *self.others):
            state = json.loads((directory / "state.json").read_text())
            found += [directory / entry["filename"] for entry in state["_data_files"]]
        return found

    @cached_property
    def _maps(self) -> list[pa.Buffer]:
        return [pa.memory_map(str(path)).read_buffer() for path in self.paths]

    @cached_property
    def rows(self) -> Rows:
        return Rows(pa.concat_tables([pa.ipc.open_stream(b).read_all() for b in self._maps]), self.shape)

    @cached_property
    def reads(self) -> bool:
        """Whether pixels are read rather than mapped."""
        if self.from_disk is not None or not hasattr(os, "preadv"):
            return bool(self.from_disk)
        return len(self) * int(np.prod(self.shape)) > available_memory()

    @cached_property
    def _places(self) -> list[tuple[Path, int]]:
        """Of each record batch its file, and where in it the pixels begin."""
        starts = [buffer.address for buffer in self._maps]
        order = sorted(range(len(starts)), key=starts.__getitem__)
        sorted_starts = [starts[i] for i in order]
        places = []
        for pixels in self.rows.pixels:
            address = pixels.ctypes.data
            file = order[bisect_right(sorted_starts, address) - 1]
            places.append((self.paths[file], address - starts[file]))
        return places

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        index = int(index) + (len(self) if index < 0 else 0)
        pixels = self.gather([index])[0] if self.reads else self.rows.pixel_row(index)
        return {"pixel_values": pixels, "labels": self.rows.label_rows(index)}

    def gather(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The pixels of some rows in one array, each copied once: uint8 (n, C, H, W).

        Args:
            out: where to put them, of that shape; a new array without it. Pinned memory, for instance.

        Raises:
            IndexError: there is no such row.
        """
        out = np.empty((len(indices), *self.shape), dtype=np.uint8) if out is None else out
        every, starts = self.rows.pixels, self.rows.starts
        rows = np.asarray(indices, dtype=np.int64).tolist()
        if rows and not (min(rows) >= 0 and max(rows) < len(self)):
            raise IndexError(f"rows {min(rows)} to {max(rows)} of {len(self)}")
        batches = [bisect_right(starts, row) - 1 for row in rows]
        if not self.reads:
            for i, (batch, row) in enumerate(zip(batches, rows, strict=True)):
                out[i] = every[batch][row - starts[batch]]
            return out
        size = int(np.prod(self.shape))

        def read(i: int) -> None:
            path, start = self._places[batches[i]]
            read_into(path, start + (rows[i] - starts[batches[i]]) * size, memoryview(out[i]).cast("B"))

        if len(rows) == 1:
            read(0)
        else:
            list(reader_threads(os.getpid()).map(read, range(len(rows))))
        return out

    def column(self, name: str) -> list[Any]:
        """A column of plain values: `image_id`, `path` or `captions`."""
        return self.rows.table[name].to_pylist()


@lru_cache(maxsize=1)
def reader_threads(process: int) -> ThreadPoolExecutor:
    """The threads of this process: a forked one inherits the object, but not its threads."""
    return ThreadPoolExecutor(READ_THREADS, thread_name_prefix="cache")


def read_into(path: Path, start: int, target: memoryview) -> None:
    """Fills `target` from a file; a file that is opened anew costs microseconds, and there may be 10,000 of them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(target):
            count = os.preadv(handle, [target[done:]], start + done)
            if count == 0:
                raise InputError(f"{path}: is cut short; run `toolkit preprocess` again to repair the cache.")
            done += count
    finally:
        os.close(handle)
