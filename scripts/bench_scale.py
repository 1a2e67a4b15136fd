"""What an engine costs: the same shards on this machine's processes and on Ray, with 1 and 2 workers; and training by ranks.

    python scripts/bench_scale.py --images 2000
    python scripts/bench_scale.py --images 2000 --command preprocess --workers 1,2,4 --repeats 3
    python scripts/bench_scale.py --command finetune --workers 1,2

A way's rate is that of its workers after they have started: images over the time from the end of a worker's first shard,
in which it loads what it needs, to that of its last, the gaps between shards included, added up over the workers. `of
local` is the share of the local engine's rate with as many workers, run beside it; `efficiency` the rate a worker over
that of one. The whole command's seconds stand beside them; Ray runs already, as on a cluster.

The images of preprocess are photographs as in bench_preprocess.py; batch-caption runs a tiny captioner over drawn ones,
one thread a worker, and here the local engine runs its shards in processes too.

finetune trains ViT-B/16 + GPT-2 sizes with random weights, as many ranks as workers (torchrun, gloo, one thread each), 8
images a step of each; its rate is that of the steps after the first.
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
from bench_train import make_data

COMMANDS = ("preprocess", "batch-caption", "finetune")
ENGINES = ("local", "ray", "ranks")
REST = 15  # seconds
OBJECT_STORE = 100 * 2**20  # bytes
STEPS = 3


class Timed:
    """A shard's function that notes which worker ran it, and when."""

    def __init__(self, function: Any, folder: Path) -> None:
        self.function, self.folder = function, folder

    def __call__(self, task: dict[str, Any]) -> None:
        self.function(task)
        shard = next(iter(task.values()))
        note = {"worker": f"{os.uname().nodename} {os.getpid()}", "ended": time.time(), "shard": shard}
        (self.folder / f"{shard:06d}.json").write_text(json.dumps(note))


def rate(notes: Path, images: int, size: int) -> float:
    """images/s of all workers together, each from the end of its first shard to the end of its last."""
    workers = defaultdict(list)
    for path in notes.glob("*.json"):
        note = json.loads(path.read_text())
        workers[note["worker"]].append((note["ended"], min(size, images - note["shard"] * size)))
    total = 0.0
    for shards in map(sorted, workers.values()):
        if len(shards) > 1:
            total += sum(count for _, count in shards[1:]) / (shards[-1][0] - shards[0][0])
    return total


def run_one(command: str, engine: str, workers: int, folder: Path, out: Path, address: str | None) -> None:
    """One command, its shards timed; prints rate and seconds as JSON."""
    from bench_scale import Timed  # not __main__: a worker imports it

    import toolkit.cache.staging
    import toolkit.captioning.shards
    import toolkit.commands.preprocess
    from toolkit.commands.batch_caption import batch_caption
    from toolkit.options import BatchCaptionOptions, PreprocessOptions
    from toolkit.runtime.engines import ENGINES as RUN

    notes = out / "notes"
    notes.mkdir(parents=True)

    chosen = RUN[engine]  # "ray" is what batch-caption is told below, as it makes no shards for the local engine

    def run(function: Any, tasks: Any, resources: Any, progress: Any, done: Any) -> None:
        chosen(Timed(function, notes), tasks, resources, progress, done)

    RUN["local"] = RUN["ray"] = run
    began = time.time()
    if command == "preprocess":
        options = PreprocessOptions(
            annotations=folder / "captions.txt", images=folder / "Images", out=out / "cache", engine=engine,
            encoder=str(folder / "encoder"), decoder=str(folder / "decoder"), num_workers=workers,
            ray_address=address,
        )  # fmt: skip
        values, size = toolkit.commands.preprocess.preprocess(options).values, toolkit.cache.staging.SHARD_ROWS
    else:
        captioning = BatchCaptionOptions(
            paths=(str(folder / "drawn" / "Images"),), model=str(folder / "model"), output=out / "captions.jsonl",
            engine="ray", num_workers=workers, ray_address=address,
        )  # fmt: skip
        values, size = batch_caption(captioning).values, toolkit.captioning.shards.SHARD_IMAGES
    print(json.dumps({"rate": rate(notes, values["images"], size), "seconds": time.time() - began}))


def train(folder: Path, out: Path) -> None:
    """One rank's part of a training of four steps; the first rank prints the rate of all as JSON."""
    from toolkit.commands.finetune import finetune
    from toolkit.options import FinetuneOptions
    from toolkit.training import setup
    from toolkit.training.distributed import rank, ranks

    ends: list[float] = []

    class Trainer(setup.CaptionTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.args.save_strategy = "no"
            loss = super().training_step(*args, **kwargs)
            ends.append(time.perf_counter())
            return loss

    vars(setup)["CaptionTrainer"] = Trainer
    began = time.time()
    options = FinetuneOptions(cache=folder / "cache", output_dir=out, batch_size=8, max_steps=STEPS + 1,
                              captions_per_image="all")  # fmt: skip
    finetune(options)
    if rank() == 0:
        images = ranks() * 8 * STEPS
        print(json.dumps({"rate": images / (ends[-1] - ends[0]), "seconds": time.time() - began}))


def make_inputs(folder: Path, images: int, commands: list[str], size: str) -> None:
    if "finetune" in commands:
        (folder / "train").mkdir()
        make_data(folder / "train", 256, size)
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
    parser.add_argument("--size", choices=("base", "tiny"), default="base", help="of the model that is trained")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        command, engine, workers, folder, out, *address = arguments.child
        if command == "finetune":
            train(Path(folder) / "train", Path(out))
            return
        run_one(command, engine, int(workers), Path(folder), Path(out), address[0] if address else None)
        return
    commands = [arguments.command] if arguments.command else list(COMMANDS)
    counts = [int(count) for count in arguments.workers.split(",")]
    # Before Ray starts, whose workers import `Timed` from here.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder, arguments.images, commands, arguments.size)
        results: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
        for repeat, count in itertools.product(range(arguments.repeats), counts):
            for engine in ENGINES:
                ways = [command for command in commands if (command == "finetune") == (engine == "ranks")]
                with cluster(count) if engine == "ray" and ways else nullcontext() as address:
                    for command in ways:
                        out = folder / f"out-{repeat}-{command}-{engine}-{count}"
                        child = [command, engine, str(count), str(folder), str(out), *([address] if address else [])]
                        launcher = [sys.executable]
                        if engine == "ranks" and count > 1:
                            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
                        done = subprocess.run([*launcher, __file__, "--child", *child], env=environment, check=True,
                                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
                        results[command, engine, count].append(json.loads(done.stdout))
                        shutil.rmtree(out)
    print(f"{arguments.images} images, median of {arguments.repeats}; of local: lowest to highest")
    rates = {way: [run["rate"] for run in runs] for way, runs in results.items()}
    for command, count, engine in itertools.product(commands, counts, ENGINES):
        mine = rates.get((command, engine, count))
        if mine is None:
            continue
        line = f"{command:13} {engine:5} {count} workers: {statistics.median(mine):6.3g} images/s"
        if engine == "ray":
            ratios = [a / b for a, b in zip(mine, rates[command, "local", count], strict=True)]
            line += f", of local {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        one = statistics.median(rates[command, engine, counts[0]])
        efficiency = statistics.median(mine) * counts[0] / one / count
        seconds = statistics.median(run["seconds"] for run in results[command, engine, count])
        print(f"{line}, efficiency {efficiency:.2f}, whole command {seconds:.1f} s")


if __name__ == "__main__":
    main()
