"""Training, captions/s and peak memory, side by side: the notebook's way and `toolkit finetune`.

    python scripts/bench_train.py                                   # ViT-B/16 + GPT-2 sizes, random weights, 2 CPU cores
    python scripts/bench_train.py --device cuda --batch-size 64 --steps 40
    python scripts/bench_train.py --ways notebook,full-fp32,full-bf16,frozen-fp32,frozen-bf16
    python scripts/bench_train.py --size tiny --rounds 1            # does it run?
    python scripts/bench_train.py --size small --batch-size 32 --ways full,augmented    # ViT-Tiny/16 + decoder small
    python scripts/bench_train.py --profile --rounds 1 --steps 1    # what a step spends its time on, by operator
    python scripts/bench_train.py --padding                         # how much of a batch is padding, by counting

Five captions an image, of the lengths that Flickr8k's have (13.6 tokens on average, EOS included), the notebook's way in
fp32 on a CPU, and the toolkit's in what --precision auto is there. Each way is a process of its own; rounds of all ways take turns, so that whatever else the
machine does falls on each; figures are medians over rounds.

- notebook: scripts/notebook_baseline.py: a row per caption, the JPEG decoded each time, 8 captions a step padded to 50,
  stock Seq2SeqTrainer.
- full: `toolkit finetune`; 8 images a step with all their captions.
- frozen: the same with `--freeze-encoder --cache-features`.
- augmented: the same as full with `--augment strong --flip`.
- full-fp32, full-bf16, frozen-fp32, frozen-bf16: with this `--precision`; without a name it is auto.

The first step is not timed. "of the limit": FLOPs of a step by count (torch.utils.flop_counter), padding included, over
its time, as a share of the rate of a large matrix product on the same device and in the same precision; on a GPU that is
called MFU. "data": share of the time that a step waits for its batch. "inputs": share
of the processor time that augmenting and normalising its pixels takes. "CPU": the same ratio to the notebook counted in the processor
time that the process got, which other processes on the machine falsify less; OMP_NUM_THREADS=1 makes it exact.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_preprocess import PHOTOS, make_images

WAYS = ("notebook", "full", "frozen")
WORDS = [
    "a",
    "the",
    "dog",
    "man",
    "woman",
    "child",
    "runs",
    "plays",
    "stands",
    "holds",
    "red",
    "blue",
    "green",
    "grass",
]


def words(images: int) -> np.ndarray:
    """int64 (images, 5): words of captions; with EOS 13.6 tokens on average, 4.5 standard deviation."""
    lengths = np.random.default_rng(1).lognormal(np.log(12.0), 0.35, (images, 5))
    return np.clip(np.round(lengths), 3, 40).astype(int)


def padding() -> None:
    """Share of a batch that is padding, for 6,000 images: a row a caption, an image's captions in a row, and sorted."""
    from toolkit.training.collator import CaptionDataset, LengthGroupedSampler

    tokens = words(6000) + 1

    class Lengths(CaptionDataset):
        def __init__(self, lengths: np.ndarray) -> None:
            self.lengths = lengths

        def tokens(self) -> np.ndarray:
            return self.lengths

    def share(order: np.ndarray, longest: np.ndarray, rows: int, size: int) -> float:
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        places = sum(-(-longest[batch].max() // 8) * 8 * rows * len(batch) for batch in batches)
        return 1 - tokens.sum() / places

    print("| images a batch | a row a caption | an image's captions in one row | and images of like lengths together |")
    print("| ---: | ---: | ---: | ---: |")
    for size in (8, 32, 64):
        shuffled = np.random.default_rng(0).permutation(len(tokens))
        alike = np.array(list(LengthGroupedSampler(Lengths(tokens.sum(1)), size, seed=0)))
        shares = (
            share(shuffled, tokens.max(1), 5, size),
            share(shuffled, tokens.sum(1), 1, size),
            share(alike, tokens.sum(1), 1, size),
        )
        print(f"| {size} | " + " | ".join(f"{s:.1%}" for s in shares) + " |")


def make_data(folder: Path, images: int, size: str) -> None:
    """JPEGs, captions.txt, encoder and decoder with random weights, and the cache of them."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from toolkit.commands.preprocess import preprocess
    from toolkit.models.presets import train_tokenizer
    from toolkit.options import PreprocessOptions

    make_images(folder, PHOTOS, images, (500, 375))
    rng = np.random.default_rng(0)
    lengths = words(images)
    with open(folder / "captions.txt", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i, row in enumerate(lengths):
            rows.writerows((f"{i:06d}.jpg", " ".join(rng.choice(WORDS, n))) for n in row)
    parts: dict[str, Any] = {"preset": "tiny"}
    if size == "base":
        parts = {"encoder": str(folder / "encoder"), "decoder": str(folder / "decoder")}
        ViTModel(ViTConfig()).save_pretrained(folder / "encoder")
        ViTImageProcessorPil().save_pretrained(folder / "encoder")
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "decoder")
        train_tokenizer([" ".join(WORDS)] * 10).save_pretrained(folder / "decoder")
    elif size == "small":
        parts = {"encoder": str(folder / "encoder"), "decoder": "small", "vocab_size": 257}
        ViTModel(ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)).save_pretrained(
            folder / "encoder"
        )
        ViTImageProcessorPil().save_pretrained(folder / "encoder")
    preprocess(
        PreprocessOptions(
            annotations=folder / "captions.txt", images=folder / "Images", out=folder / "cache", num_workers=2,
            val_fraction=0, test_fraction=0, **parts,
        )
    )  # fmt: skip


PARTS = {
    "products": ("mm", "linear", "convolution", "einsum"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "copies and casts": ("copy", "cat", "contiguous", "clone", "index", "gather", "slice_backward", "fill", "zero"),
    "dropout": ("dropout", "bernoulli"),
    "GELU": ("gelu", "tanh", "pow"),
    "norms": ("layer_norm",),
    "loss": ("log_softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("adam", "norm", "clip"),
    "sums and products of elements": ("add", "mul", "sum", "div", "where"),
}


def print_profile(profiler: Any) -> None:
    """Shares of the time inside operators, by the first of PARTS whose word is in an operator's name."""
    shares = dict.fromkeys([*PARTS, "the rest"], 0.0)
    operators = profiler.key_averages()
    total = sum(operator.self_cpu_time_total for operator in operators)
    for operator in operators:
        name = operator.key.lower()
        part = next((part for part, parts in PARTS.items() if any(word in name for word in parts)), "the rest")
        shares[part] += operator.self_cpu_time_total / total
    print(
        f"one step, {total / 1e6:.2f} s in operators: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()),
        file=sys.stderr,
    )
    for operator in sorted(operators, key=lambda o: -o.self_cpu_time_total)[:15]:
        print(
            f"    {operator.key}: {operator.self_cpu_time_total / total:.1%}, {operator.count} calls", file=sys.stderr
        )


class Clock:
    """Mixed into a trainer: when each step ended, how long batches were waited for, FLOPs of the first step."""

    profile = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.waited = self.inputs = 0.0
        self.flops = 0
        self.profiler: Any = None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        started = time.perf_counter()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if self.ends:
            self.waited += time.perf_counter() - started
        return batches, items

    def _prepare_inputs(self, inputs: Any) -> Any:
        started = time.process_time()
        inputs = super()._prepare_inputs(inputs)  # type: ignore[misc]
        if self.ends:
            self.inputs += time.process_time() - started
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        if not self.ends:
            with FlopCounterMode(display=False) as counter:
                loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
            self.flops = counter.get_total_flops()
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if self.profile and len(self.ends) == 1:  # the second step, with its optimizer and its batch
            self.profiler = torch.profiler.profile().__enter__()
        elif self.profiler is not None and len(self.ends) == 2:
            self.profiler.__exit__(None, None, None)
            print_profile(self.profiler)
        return loss

    def figures(self, captions: int) -> dict[str, float]:
        seconds = self.ends[-1] - self.ends[0]
        steps = len(self.ends) - 1
        return {"captions_per_s": steps * captions / seconds, "step_s": seconds / steps, "data": self.waited / seconds,
                "inputs": self.inputs / (self.cpu[-1] - self.cpu[0]),
                "captions_per_cpu_s": steps * captions / (self.cpu[-1] - self.cpu[0]),
                "flops": self.flops, "captions": captions}  # fmt: skip


def notebook(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    import random

    from notebook_baseline import NotebookDataset, build, read_rows
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, default_data_collator

    class Trainer(Clock, Seq2SeqTrainer):
        pass

    rows = read_rows(folder, None)
    random.Random(42).shuffle(rows)
    model, tokenizer, processor = build(arguments.size, [caption for _, caption in rows])
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=out, max_steps=arguments.steps + 1, per_device_train_batch_size=8, save_strategy="no",
                logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            ),
            train_dataset=NotebookDataset(rows, processor, tokenizer),
            data_collator=default_data_collator,
        )  # fmt: skip
        trainer.train()
    return trainer.figures(captions=8)


def toolkit(folder: Path, arguments: argparse.Namespace, **options: Any) -> dict[str, float]:
    from toolkit.commands.finetune import finetune
    from toolkit.options import FinetuneOptions
    from toolkit.training import setup

    trainers = []

    class Trainer(Clock, setup.CaptionTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.args.save_strategy = "no"
            trainers.append(self)

    vars(setup)["CaptionTrainer"] = Trainer
    with tempfile.TemporaryDirectory() as out:
        finetune(
            FinetuneOptions(
                cache=folder / "cache", output_dir=Path(out) / "model", max_steps=arguments.steps + 1, epochs=1000,
                batch_size=arguments.batch_size, captions_per_image="all", **options,
            )
        )  # fmt: skip
    return trainers[0].figures(captions=5 * arguments.batch_size)


def matmul_rate(size: str) -> float:
    """FLOP/s of a product of matrices as large as the model's, in the precision that it is trained in."""
    import torch

    from toolkit.models.precision import DTYPES, resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = 8192 if device.type == "cuda" else 2048
    a, b = (
        torch.randn(n, n, device=device, dtype=DTYPES[resolve_precision("auto", device, training=True)])
        for _ in range(2)
    )
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
        del c
    return 2 * n**3 / best


def run(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One way in this process."""
    import torch

    Clock.profile = arguments.profile
    rate = matmul_rate(arguments.size)
    name, _, precision = way.partition("-")
    if name == "notebook":
        figures = notebook(folder, arguments)
    else:
        ways: dict[str, dict[str, Any]] = {
            "full": {},
            "frozen": {"freeze_encoder": True, "cache_features": True},
            "augmented": {"augment": "strong", "flip": True},
        }
        figures = toolkit(folder, arguments, precision=precision or "auto", **ways[name])
    rate = max(rate, matmul_rate(arguments.size))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**20
    share = figures["flops"] / figures["step_s"] / rate
    return {**figures, "rate": rate, "of_limit": share, "memory_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "small", "tiny"), default="base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8, help="images a step, of the toolkit's ways")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each way in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--neighbours", type=int, default=0, help="processes that keep a core busy each meanwhile")
    parser.add_argument("--profile", action="store_true", help="also say what the second step spends its time on")
    parser.add_argument("--padding", action="store_true", help="count padding, and nothing else")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # the one way of a child process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.padding:
        padding()
        return
    if arguments.run:
        print(json.dumps(run(arguments.run, arguments.folder, arguments)))
        return

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    ways = arguments.ways.split(",")
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make_data(Path(folder), arguments.images, arguments.size)
        for _ in range(arguments.neighbours):
            stack.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
        for _ in range(arguments.rounds):
            for way in ways:
                command = [sys.executable, __file__, *sys.argv[1:], "--run", way, "--folder", folder]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                rounds[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{way}: {rounds[way][-1]['captions_per_s']:.2f} captions/s", file=sys.stderr)

    def median(way: str, name: str) -> float:
        return statistics.median(r[name] for r in rounds[way])

    print(f"{arguments.device}, matrix products at {max(median(w, 'rate') for w in ways) / 1e9:,.0f} GFLOP/s")
    limit = "MFU" if arguments.device == "cuda" else "of the limit"
    print(
        f"| way | captions/s | times the notebook | CPU | step | GFLOP a caption | {limit} | data | inputs | peak memory |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for way in ways:

        def times(name: str, way: str = way) -> float:
            pairs = zip(rounds[way], rounds[ways[0]], strict=True)
            return statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)

        flops = median(way, "flops") / median(way, "captions") / 1e9
        print(
            f"| {way} | {median(way, 'captions_per_s'):.2f} | {times('captions_per_s'):.2f} | {times('captions_per_cpu_s'):.2f} "
            f"| {median(way, 'step_s'):.2f} s | {flops:.1f} | {median(way, 'of_limit'):.2f} | {median(way, 'data'):.2%} "
            f"| {median(way, 'inputs'):.2%} | {median(way, 'memory_mb'):,.0f} MB |"
        )


if __name__ == "__main__":
    main()
