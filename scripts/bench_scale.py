"""What an engine costs: the same pieces on this machine's processes and on Ray, with 1 and 2 workers.

    python scripts/bench_scale.py --images 2000
    python scripts/bench_scale.py --images 2000 --command preprocess --workers 1,2,4 --repeats 3

A way's rate is that of its workers after they have started: images over the time from the end of a worker's first piece,
in which it loads what it needs, to that of its last, the gaps between pieces included, added up over the workers. `of
local` is the share of the local engine's rate with as many workers, run beside it; `efficiency` the rate a worker over
that of one. The whole command's seconds stand beside them; Ray runs already, as on a cluster.

The images of preprocess are photographs as in bench_preprocess.py; batch-caption runs a tiny captioner over drawn ones,
one thread a worker, and here the local engine runs its pieces in processes too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench_preprocess import PHOTOS, make_images, make_processors

COMMANDS = ("preprocess", "batch-caption")
ENGINES = ("local", "ray")
REST = 15  # seconds
OBJECT_STORE = 100 * 2**20  # bytes


class Timed:
    """A piece's function that notes which worker ran it, and when."""

    def __init__(self, function: Any, folder: Path) -> None:
        self.function, self.folder = function, folder

    def __call__(self, task: dict[str, Any]) -> None:
        self.function(task)
        note = {"worker": f"{os.uname().nodename} {os.getpid()}", "ended": time.time(), **task}
        (self.folder / f"{task['piece']:06d}.json").write_text(json.dumps(note))


def rate(notes: Path, images: int, size: int) -> float:
    """images/s of all workers together, each from the end of its first piece to the end of its last."""
    workers = defaultdict(list)
    for path in notes.glob("*.json"):
        note = json.loads(path.read_text())
        workers[note["worker"]].append((note["ended"], min(size, images - note["piece"] * size)))
    total = 0.0
    for pieces in map(sorted, workers.values()):
        if len(pieces) > 1:
            total += sum(count for _, count in pieces[1:]) / (pieces[-1][0] - pieces[0][0])
    return total


def run_one(command: str, engine: str, workers: int, folder: Path, out: Path, address: str | None) -> None:
    """One command, its pieces timed; prints rate and seconds as JSON."""
    from bench_scale import Timed  # not __main__: a worker imports it

    import toolkit.caption_pieces
    import toolkit.preprocess
    import toolkit.staging
    from toolkit import engines
    from toolkit.batch_caption import batch_caption
    from toolkit.options import BatchCaptionOptions, PreprocessOptions

    notes = out / "notes"
    notes.mkdir(parents=True)

    def run(options: Any, function: Any, tasks: Any, progress: Any, done: Any, **named: Any) -> None:
        if engine == "local":  # where batch-caption itself makes no pieces
            engines.run_local(Timed(function, notes), tasks, workers, progress, done)
        else:
            engines.run(options, Timed(function, notes), tasks, progress, done, **named)

    began = time.time()
    if command == "preprocess":
        toolkit.preprocess.run = run  # type: ignore[assignment]
        options = PreprocessOptions(
            annotations=folder / "captions.txt", images=folder / "Images", out=out / "cache", engine=engine,
            encoder=str(folder / "encoder"), decoder=str(folder / "decoder"), num_workers=workers,
            ray_address=address,
        )  # fmt: skip
        values, size = toolkit.preprocess.preprocess(options).values, toolkit.staging.PIECE_ROWS
    else:
        toolkit.caption_pieces.run = run  # type: ignore[assignment]
        captioning = BatchCaptionOptions(
            paths=(str(folder / "drawn" / "Images"),), model=str(folder / "model"), output=out / "captions.jsonl",
            engine="ray", num_workers=workers, ray_address=address,
        )  # fmt: skip
        values, size = batch_caption(captioning).values, toolkit.caption_pieces.PIECE_IMAGES
    print(json.dumps({"rate": rate(notes, values["images"], size), "seconds": time.time() - began}))


def make_inputs(folder: Path, images: int, commands: list[str]) -> None:
    if "preprocess" in commands:
        make_processors(folder, 224)
        make_images(folder, PHOTOS, images, (500, 375))
    if "batch-caption" in commands:
        few = folder / "few"
        for line in (
            f"sample {few} --images 64 --seed 7",
            f"preprocess --annotations {few}/captions.txt --images {few}/Images --out {folder}/tiny --preset tiny",
            f"finetune {folder}/tiny --output-dir {folder}/model --max-steps 4",
            f"sample {folder}/drawn --images {images}",
        ):
            subprocess.run([sys.executable, "-m", "toolkit", *line.split(), "--quiet"], check=True)


@contextmanager
def cluster(cores: int) -> Iterator[str]:
    """A Ray node on this machine that has come to rest: starting, its own processes are busy for seconds."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": cores, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    ray = Cluster(initialize_head=True, head_node_args=node)
    try:
        time.sleep(REST)
        yield ray.address
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--command", choices=COMMANDS, help="only this one")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        command, engine, workers, folder, out, *address = arguments.child
        run_one(command, engine, int(workers), Path(folder), Path(out), address[0] if address else None)
        return
    commands = [arguments.command] if arguments.command else list(COMMANDS)
    counts = [int(count) for count in arguments.workers.split(",")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder, arguments.images, commands)
        results: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
        for repeat, count in itertools.product(range(arguments.repeats), counts):
            for engine in ENGINES:
                with cluster(count) if engine == "ray" else nullcontext() as address:
                    for command in commands:
                        out = folder / f"out-{repeat}-{command}-{engine}-{count}"
                        child = [command, engine, str(count), str(folder), str(out), *([address] if address else [])]
                        done = subprocess.run([sys.executable, __file__, "--child", *child], env=environment, check=True,
                                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
                        results[command, engine, count].append(json.loads(done.stdout))
                        shutil.rmtree(out)
    print(f"{arguments.images} images, median of {arguments.repeats}; of local: lowest to highest")
    rates = {way: [run["rate"] for run in runs] for way, runs in results.items()}
    for command, count, engine in itertools.product(commands, counts, ENGINES):
        mine, local, one = (rates[command, *way] for way in ((engine, count), ("local", count), (engine, counts[0])))
        ratios = [a / b for a, b in zip(mine, local, strict=True)]
        efficiency = statistics.median(mine) * counts[0] / statistics.median(one) / count
        seconds = statistics.median(run["seconds"] for run in results[command, engine, count])
        print(
            f"{command:13} {engine:5} {count} workers: {statistics.median(mine):6.1f} images/s, of local "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), efficiency {efficiency:.2f}, "
            f"whole command {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
