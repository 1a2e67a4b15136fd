"""Captioning on a CPU in fp32, bf16 and int8, side by side in one run: encoder, decoding, files to captions, memory.

    python scripts/bench_precision.py                                      # ViT-B/16 + GPT-2 sizes, random weights
    python scripts/bench_precision.py --model model --images photographs    # a trained captioner, and which captions change
    python scripts/bench_precision.py --size tiny --rounds 1 --number 4     # does it run?

Beams 4, no trigram twice; of random weights 20 new tokens of each image. The precisions take turns, round by round, so
that whatever else the machine does falls on each; a ratio is the median of the rounds' ratios. Memory is that of a
process of its own that loads the captioner and captions the images: the largest it ever had, and what it has at the end.
With --references (annotations or a cache) the captions of each precision are also scored: CIDEr with its interval.
The training step is timed by `bench_train.py --ways full-fp32,full-bf16,frozen-fp32,frozen-bf16`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_preprocess import PHOTOS, make_images
from notebook_baseline import build

from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.captioning.generate import decode
from toolkit.captioning.kv_cache import prepared
from toolkit.data.images import read_image
from toolkit.data.sources import find_images
from toolkit.models.loading import silence_transformers
from toolkit.options import EvaluateOptions, GenerationOptions
from toolkit.options.generation import TRAINED

PRECISIONS = ("fp32", "bf16", "int8")
BATCH = 8


def memory_of(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report_memory(model: str, precision: str, paths: list[Path], options: GenerationOptions) -> None:
    """In a process of its own."""
    load_captioner(model, "cpu", precision).caption(paths, options, BATCH)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {"largest": "VmHWM", "at the end": "VmRSS"}
    print(json.dumps({what: int(status[name].split()[0]) / 1024 for what, name in found.items()}))


def ways(captioner: Captioner, paths: list[Path], options: GenerationOptions) -> dict[str, Callable[[], Any]]:
    pixels = torch.from_numpy(np.stack([captioner.prepare(read_image(path)) for path in paths[:BATCH]]))
    model, config = captioner.model, captioner.settings(options).config
    normalised = captioner.normalizer(pixels)
    parts = normalised.split(2 if captioner.precision == "int8" else len(pixels))
    features = torch.cat([prepared(model).encoder(pixel_values=part).last_hidden_state for part in parts])
    return {
        "encoder": lambda: [prepared(model).encoder(pixel_values=part) for part in parts],
        "decoding": lambda: decode(model, config, features=features),
        "files to captions": lambda: captioner.caption(paths, options, BATCH),
    }


def measure(model: str, paths: list[Path], options: GenerationOptions, rounds: int) -> None:
    captioners = {name: load_captioner(model, "cpu", name) for name in PRECISIONS}
    runs = {name: ways(captioner, paths, options) for name, captioner in captioners.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for way in runs["fp32"]:
            for name in PRECISIONS:
                started = time.perf_counter()
                runs[name][way]()
                if number:  # the first round lays out weights
                    seconds.setdefault((way, name), []).append(time.perf_counter() - started)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {len(paths)} images, batches of {BATCH}\n")
    print("| seconds | " + " | ".join(PRECISIONS) + " | bf16 faster | int8 faster |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for way in runs["fp32"]:
        cells = [f"{statistics.median(seconds[way, name]):.2f}" for name in PRECISIONS]
        for name in PRECISIONS[1:]:
            ratios = [a / b for a, b in zip(seconds[way, "fp32"], seconds[way, name], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {way} | " + " | ".join(cells) + " |")
    rows = {name: captioners[name].caption(paths, options, BATCH) for name in PRECISIONS}
    for name in PRECISIONS[1:]:
        pairs = [(a, b) for a, b in zip(rows["fp32"], rows[name], strict=True) if a.error is None]
        same = [abs(a.score - b.score) for a, b in pairs if a.caption == b.caption and a.score and b.score]
        print(f"\n{name}: {len(same)} of {len(pairs)} captions are those of fp32", end="")
        print(f"; their scores differ by {statistics.mean(same):.4f} on average" if same else "")


def score(model: str, references: Path, split: str) -> None:
    """What `toolkit evaluate` says of each precision."""
    from toolkit.commands.evaluate import evaluate

    print("\n| precision | CIDEr | interval | BLEU-4 |\n| --- | ---: | --- | ---: |")
    for name in PRECISIONS:
        values = evaluate(EvaluateOptions(model=model, references=references, split=split, precision=name)).values
        metrics = values["metrics"]
        low, high = values["intervals"]["cider"]
        print(f"| {name} | {metrics['cider']:.4f} | {low:.4f} to {high:.4f} | {metrics['bleu_4']:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--model", help="a trained captioner, instead of random weights")
    parser.add_argument("--images", type=Path, help="a folder of images, instead of made ones")
    parser.add_argument("--number", type=int, default=16, help="of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--references", type=Path, help="a cache: its --split is captioned in each precision and scored"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # the one precision of a child process
    arguments = parser.parse_args()
    silence_transformers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.images is None:
            make_images(folder, PHOTOS, arguments.number, (500, 375))
            arguments.images = folder / "Images"
        paths = [image.path for image in islice(find_images([arguments.images]), arguments.number)]
        options = replace(TRAINED, max_length=TRAINED.max_length if arguments.model else 21)
        if arguments.memory:
            report_memory(arguments.model, arguments.memory, paths, options)
            return
        model = arguments.model or str(folder / "model")
        if arguments.model is None:
            for part in build(arguments.size, ["a dog runs on the green grass"] * 10):
                part.save_pretrained(model)
        with torch.inference_mode():
            measure(model, paths, options, arguments.rounds)
        command = [sys.executable, __file__, "--model", model, "--images", str(arguments.images)]
        command += ["--number", str(arguments.number), "--memory"]
        found = {name: memory_of([*command, name], {**os.environ, "HF_HUB_OFFLINE": "1"}) for name in PRECISIONS}
        print("\n| MB of memory | " + " | ".join(PRECISIONS) + " |\n| --- | ---: | ---: | ---: |")
        for what in ("largest", "at the end"):
            print(f"| {what} | " + " | ".join(f"{found[name][what]:,.0f}" for name in PRECISIONS) + " |")
        if arguments.references is not None:
            score(model, arguments.references, arguments.split)


if __name__ == "__main__":
    main()
