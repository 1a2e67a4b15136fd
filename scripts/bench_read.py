"""Random batches from a cache, images/s, side by side: the limit, ours, and what `datasets` gives.

    python scripts/bench_read.py CACHE --batches 200
    python scripts/bench_read.py --images 4000          # a cache of this size, made of random pixels in a temporary folder

The limit is a gather from one `np.memmap` that holds the same pixels and nothing else. All files are in the page cache,
but for the last lines: there they have been dropped from it before every run, as where a cache exceeds memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.cache.build import SplitWriter
from toolkit.cache.reader import SplitReader
from toolkit.data.pixels import PixelTransform
from toolkit.models.special_tokens import SpecialTokens
from toolkit.training.collator import CaptionCollator, CaptionDataset, prefetch


def make_split(folder: Path, images: int) -> None:
    """One split as preprocess writes it: 205 rows a file, as 0.8 of 256."""
    transform = PixelTransform((224, 224), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    rng = np.random.default_rng(0)
    names = []
    for start in range(0, images, 205):
        names.append(f"data-{start // 205:06d}.arrow")
        writer = SplitWriter(folder / names[-1], transform.shape, 50)
        for i in range(start, min(start + 205, images)):
            labels = np.full((5, 50), -100, dtype=np.int32)
            labels[:, :12] = 7
            record = {"image_id": f"{i}", "path": f"{i}.jpg", "captions": ["a caption"] * 5}
            writer.add(record, "", rng.integers(0, 256, transform.shape, dtype=np.uint8), labels)
        writer.finish()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, nargs="?", help="a cache; its train split is read")
    parser.add_argument("--images", type=int, default=2000, help="images of the cache that is made without one")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = arguments.cache / "train" if arguments.cache else work / "train"
        if arguments.cache is None:
            folder.mkdir()
            make_split(folder, arguments.images)
        shape = (3, 224, 224)
        if arguments.cache:
            shape = tuple(json.loads((arguments.cache / "manifest.json").read_text())["pixels"]["shape"])
        reader = SplitReader(folder, shape, from_disk=False)
        limit = np.memmap(work / "pixels", np.uint8, "w+", shape=(len(reader), *shape))
        for start in range(0, len(reader), 64):
            stop = min(start + 64, len(reader))
            reader.gather(range(start, stop), limit[start:stop])
        limit.flush()
        bench(reader, limit, arguments)
        del reader  # what is mapped can't be dropped
        gc.collect()
        cold(folder, shape, arguments)


def cold(folder: Path, shape: tuple[int, int, int], arguments: argparse.Namespace) -> None:
    """Batches whose pixels come from the disk: through the map, and by reads."""
    size, rates = arguments.batch_size, {False: list[float](), True: list[float]()}
    for repeat in range(arguments.repeats):
        for from_disk in rates:
            for path in folder.glob("*.arrow"):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            reader = SplitReader(folder, shape, from_disk=from_disk)
            rows = np.random.default_rng(repeat).permutation(len(reader))
            began = time.perf_counter()
            for start in range(0, len(reader) // 4, size):  # so few that hardly a row was read along with another
                reader.gather(rows[start : start + size])
            rates[from_disk].append(-(-(len(reader) // 4) // size) * size / (time.perf_counter() - began))
            del reader
            gc.collect()
    for from_disk, name in ((False, "toolkit gather, not in memory"), (True, "toolkit gather by reads, not in memory")):
        print(f"{name:38} {statistics.median(rates[from_disk]):10,.0f} images/s")


def bench(reader: SplitReader, limit: np.ndarray, arguments: argparse.Namespace) -> None:
    import pyarrow as pa
    from datasets import Dataset
    from torch.utils.data import DataLoader

    size, number = arguments.batch_size, arguments.batches
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, len(reader), size) for _ in range(number)]
    few = batches[: max(3, number // 20)]  # for the slow ways
    table = pa.concat_tables([pa.ipc.open_stream(pa.memory_map(str(p))).read_all() for p in reader.paths])
    stock = Dataset(table)
    read, mapped = replace(reader, from_disk=True), reader
    collate = CaptionCollator(SpecialTokens(0, 0, 0))
    out = np.empty((size, *reader.shape), np.uint8)

    def loader(source: SplitReader, workers: int = 0) -> Any:
        return DataLoader(CaptionDataset(source), batch_sampler=batches, collate_fn=collate, num_workers=workers)

    def formatted(kind: str) -> Iterator[Any]:
        rows = stock.with_format(kind)
        return (rows[batch]["pixel_values"] for batch in few)

    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "np.memmap gather (the limit)": (number, lambda: (limit[batch] for batch in batches)),
        "toolkit gather": (number, lambda: (mapped.gather(batch) for batch in batches)),
        "np.memmap gather into one array": (number, lambda: (np.take(limit, b, axis=0, out=out) for b in batches)),
        "toolkit gather into one array": (number, lambda: (mapped.gather(batch, out) for batch in batches)),
        "toolkit gather by reads": (number, lambda: (read.gather(batch) for batch in batches)),
        "toolkit gather, prefetch thread": (number, lambda: prefetch(mapped.gather(batch) for batch in batches)),
        "toolkit loader, pixels and labels": (number, lambda: loader(mapped)),
        "toolkit loader, prefetch thread": (number, lambda: prefetch(loader(mapped))),
        "toolkit loader by reads": (number, lambda: loader(read)),
        "toolkit loader, 2 worker processes": (number, lambda: loader(mapped, 2)),
        'datasets with_format("torch")': (len(few), lambda: formatted("torch")),
        'datasets with_format("numpy")': (len(few), lambda: formatted("numpy")),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, (count, make) in ways.items():
            began = time.perf_counter()
            for _batch in make():
                pass
            rates[name].append(count * size / (time.perf_counter() - began))
    waits = {name: ways[name][1] for name in ways if "loader" in name}
    first = statistics.median(rates["np.memmap gather (the limit)"])
    print(f"{len(reader)} images {reader.shape}, batches of {size}, median of {arguments.repeats}")
    for name, values in rates.items():
        rate = statistics.median(values)
        wait = f"   {waiting(waits[name]()):6.2f} ms a batch waited for" if name in waits else ""
        print(f"{name:38} {rate:10,.0f} images/s   {rate / first:6.3f} of the limit{wait}")


def waiting(batches: Any, step: float = 0.02) -> float:
    """Milliseconds that a training step of 20 ms, on a device that leaves the processor free, waits for its batch."""
    waits: list[float] = []
    batches = iter(batches)
    while True:
        began = time.perf_counter()
        if next(batches, None) is None:
            return statistics.median(waits) * 1000
        waits.append(time.perf_counter() - began)
        time.sleep(step)


if __name__ == "__main__":
    main()
