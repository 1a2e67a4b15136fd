"""Which checkpoint training keeps where captions are not in English: a captioner of the drawn scenes in Korean and in Chinese.

    OMP_NUM_THREADS=1 python scripts/bench_languages.py                                       # three seeds
    OMP_NUM_THREADS=1 python scripts/bench_languages.py --images 60 --epochs 2 --seeds 1      # does it run?

`finetune` keeps the checkpoint with the highest CIDEr on validation, and what a word is decides CIDEr. Printed is for each seed
and language the share of test captions that say exactly what was drawn, at the checkpoint that is kept under `--tokenize ptb`
and at the one under `--tokenize auto`, in brackets its epoch. The tokeniser changes nothing but this choice, so one training
serves both: each evaluation's captions are scored again under `ptb`, and that the choice under `auto` is finetune's is checked.
Captions are decoded with `--no-repeat-ngram-size 0`, since tokens of these scripts may be single bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drawn import captions_of_test, scenes_of
from wordings import LANGUAGES, judge

from toolkit.cache.schema import open_cache
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.data.drawing import draw_sample
from toolkit.evaluation.metrics import score
from toolkit.evaluation.tokenizers import choose_tokenizer
from toolkit.options import FinetuneOptions, PreprocessOptions
from toolkit.options.generation import GenerationOptions
from toolkit.training.callbacks import CaptionMetrics

CHOICES = ("ptb", "auto")
TRAINED = "auto"  # whose choice finetune's own is checked to be


@contextmanager
def recorded() -> Iterator[list[list[str]]]:
    """The validation captions of each evaluation of a training."""
    found, original = list[list[str]](), CaptionMetrics.__call__

    def call(self: CaptionMetrics, prediction: Any) -> dict[str, float]:
        values = original(self, prediction)
        found.append(self.captions)
        return values

    CaptionMetrics.__call__ = call  # type: ignore[method-assign]
    try:
        yield found
    finally:
        CaptionMetrics.__call__ = original  # type: ignore[method-assign]


def best(evaluations: Sequence[Sequence[str]], references: Sequence[Sequence[str]], tokenize: str) -> int:
    """The evaluation with the highest CIDEr, of equal ones the first, as Trainer chooses."""
    words = choose_tokenizer(tokenize, (c for said in references for c in said)).tokenizer.words
    said = {str(i): captions for i, captions in enumerate(references)}
    ciders = [
        score({str(i): c for i, c in enumerate(captions)}, said, ("cider",), tokenize=words).corpus["cider"]
        for captions in evaluations
    ]
    return max(range(len(ciders)), key=lambda i: (ciders[i], -i))


def translated(data: Path, language: str) -> None:
    """The sample's captions in another language."""
    with open(data / "captions.txt", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for name, scene in scenes_of(data).items():
            writer.writerows((name, caption) for caption in LANGUAGES[language](scene))


def model_at(model: Path, step: int, kept: int, folder: Path) -> Path:
    """The model with the weights of a checkpoint."""
    if step == kept:
        return model
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"), dirs_exist_ok=True)
    shutil.copy(model / "checkpoints" / f"checkpoint-{step}" / "model.safetensors", folder)
    return folder


def measure(folder: Path, language: str, images: int, epochs: int, seed: int) -> dict[str, tuple[float, int]]:
    """For each of `CHOICES` the share of right test captions, and the epoch of the checkpoint."""
    data, cache, model = folder / "data", folder / "cache", folder / "model"
    draw_sample(data, images, seed)
    translated(data, language)
    preprocess(PreprocessOptions(data / "captions.txt", data / "Images", out=cache, preset="tiny", seed=seed))
    with recorded() as evaluations:
        finetune(
            FinetuneOptions(
                cache, model, epochs=epochs, seed=seed, eval_metric="cider", tokenize=TRAINED, save_total_limit=epochs,
                generation=GenerationOptions(no_repeat_ngram_size=0),
            )
        )  # fmt: skip
    kept = json.loads((model / "finetune.json").read_text())["best_step"]
    rows = [json.loads(line) for line in (model / "training.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "eval_loss" in row]
    references = open_cache(cache)["validation"].column("captions")
    found, scenes = {}, scenes_of(data)
    for tokenize in CHOICES:
        at = best(evaluations, references, tokenize)
        if tokenize == TRAINED and steps[at] != kept:
            raise SystemExit(f"finetune kept step {kept}, not {steps[at]}: this script chooses in another way")
        captions = captions_of_test(model_at(model, steps[at], kept, folder / "other"), data)
        right = sum(judge(caption, scenes[name], language) for name, caption in captions.items())
        found[tokenize] = right / len(captions), at + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print("| seed | captions | right, chosen under ptb | under auto | minutes |")
    print("| ---: | --- | ---: | ---: | ---: |", flush=True)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for language in LANGUAGES:
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as name:
                found = measure(Path(name), language, arguments.images, arguments.epochs, seed)
            cells = [f"{found[tokenize][0]:.1%} ({found[tokenize][1]})" for tokenize in CHOICES]
            minutes = (time.monotonic() - started) / 60
            print(f"| {seed} | {language} | " + " | ".join(cells) + f" | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
