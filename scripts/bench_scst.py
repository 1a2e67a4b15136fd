"""Self-critical training, seconds a step, side by side: a plain implementation and `toolkit finetune --objective cider`.

    python scripts/bench_scst.py                    # ViT-Tiny/16 and the decoder `small`, random weights, on a CPU
    python scripts/bench_scst.py --size tiny        # the tiny preset

- plain: stock `generate` draws the samples of each image; pycocoevalcap's CIDEr, its document frequencies replaced by those
  of the training captions, rewards them one by one; the gradient is that of stock `forward`, a row a sample. Frozen encoder.
- frozen: `toolkit finetune --objective cider --freeze-encoder`; cached: with `--cache-features`, as most would train.

All in fp32, the same images, batches and samples an image; drawn captions have at most `--tokens` tokens, and random weights
hardly ever end one sooner. Rounds of all ways take turns, and the first step of each is not timed. The rewards of toolkit's
samples are computed again by pycocoevalcap and must be equal to 1e-6. "rewards": their share of toolkit's step.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

WAYS = ("plain", "frozen", "cached")


def make(folder: Path, arguments: argparse.Namespace) -> Any:
    """A drawn data set, its cache, a captioner with random weights, and the options of its second phase."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from toolkit.commands.finetune import finetune
    from toolkit.commands.preprocess import preprocess
    from toolkit.data.drawing import draw_sample
    from toolkit.options import FinetuneOptions, GenerationOptions, PreprocessOptions

    draw_sample(folder / "data", images=arguments.images, seed=1)
    parts: dict[str, Any] = {"preset": "tiny"}
    if arguments.size == "small":
        parts = {"encoder": str(folder / "encoder"), "decoder": "small"}
        ViTModel(
            ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
        ).save_pretrained(folder / "encoder")
        ViTImageProcessorPil().save_pretrained(folder / "encoder")
    preprocess(
        PreprocessOptions(
            annotations=folder / "data/captions.txt", images=folder / "data/Images", out=folder / "cache", num_workers=1,
            val_fraction=0, test_fraction=0, **parts,
        )
    )  # fmt: skip
    common: dict[str, Any] = {
        "cache": folder / "cache",
        "precision": "fp32",
        "generation": GenerationOptions(max_length=arguments.tokens + 1),
    }
    finetune(FinetuneOptions(**common, output_dir=folder / "model", max_steps=1, batch_size=4))
    return FinetuneOptions(
        **common, objective="cider", init_from=str(folder / "model"), epochs=1000, max_steps=arguments.steps + 1,
        output_dir=folder / "model-cider", batch_size=arguments.batch_size, samples_per_image=arguments.samples, reward="cider",
        freeze_encoder=True, overwrite=True,
    )  # fmt: skip


class Cider:
    """pycocoevalcap's, for single captions, with the document frequencies of the training captions."""

    def __init__(self, captions: Any) -> None:
        from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs

        from toolkit.evaluation.rewards import END, words_of

        self.references = [[" ".join([*words_of(caption), END]) for caption in of_image] for of_image in captions]
        frequencies: dict[Any, float] = {}
        for of_image in self.references:
            for ngram in {ngram for cooked in cook_refs(of_image) for ngram in cooked}:
                frequencies[ngram] = frequencies.get(ngram, 0.0) + 1

        class Scorer(CiderScorer):
            ref_len = property(lambda self: math.log(len(captions)), lambda self, value: None)

        self.scorer, self.frequencies = Scorer, frequencies

    def __call__(self, images: list[int], samples: list[list[str]]) -> np.ndarray:
        """Float64 (images, samples): the samples are words with spaces between them."""
        scorer = self.scorer(n=4, sigma=6.0)
        for image, of_image in zip(images, samples, strict=True):
            for sample in of_image:
                scorer += (sample, self.references[image])
        scorer.document_frequency.update(self.frequencies)
        return np.array(scorer.compute_cider()).reshape(len(images), -1)


class Plain:
    """The plain way; the cache's pixels, normalised as they are for training."""

    def __init__(self, options: Any, arguments: argparse.Namespace) -> None:
        from toolkit.cache.schema import open_cache
        from toolkit.models.loading import load_model
        from toolkit.training.setup import Processors

        cache = open_cache(options.cache)
        self.processors = Processors.of(cache)
        self.cider = Cider(cache["train"].column("captions"))
        self.model = load_model(options.init_from, "--init-from", "")
        self.model.encoder.requires_grad_(False)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=2e-5)
        self.reader, self.arguments = cache["train"], arguments

    def step(self, images: list[int]) -> None:
        from toolkit.evaluation.rewards import END, words_of

        tokens, samples = self.processors.tokens, self.arguments.samples
        pixels = self.processors.normalizer(torch.from_numpy(self.reader.gather(images)))
        self.model.eval()
        drawn = self.model.generate(
            pixel_values=pixels, do_sample=True, num_beams=1, num_return_sequences=samples, top_k=0, top_p=1.0,
            no_repeat_ngram_size=0, max_length=self.arguments.tokens + 1,
        )[:, 1:]  # fmt: skip
        texts = self.processors.decode(drawn)
        ended = (drawn == tokens.eos).any(1).tolist()
        words = [" ".join([*words_of(text), *[END] * end]) for text, end in zip(texts, ended, strict=True)]
        rewards = self.cider(images, [words[i : i + samples] for i in range(0, len(words), samples)])
        gained = (rewards - rewards.mean(1, keepdims=True)) * samples / (samples - 1)
        before = (drawn == tokens.eos).cumsum(1) - (drawn == tokens.eos).long()
        labels = drawn.masked_fill(before > 0, -100)
        logits = self.model(pixel_values=pixels.repeat_interleave(samples, 0), labels=labels).logits
        chosen = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
        loss = -(torch.from_numpy(gained).flatten().float() * chosen.sum(1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        size, taken = self.arguments.batch_size, []
        for i in range(self.arguments.steps + 1):
            started = time.perf_counter()
            self.step([(i * size + k) % len(self.reader) for k in range(size)])
            taken.append(time.perf_counter() - started)
        return statistics.mean(taken[1:])


def toolkit(options: Any, differences: list[float]) -> tuple[float, float]:
    """Seconds a step, and of those the rewards'. Appends how far its rewards are from pycocoevalcap's."""
    from toolkit.commands.finetune import finetune
    from toolkit.evaluation.rewards import Rewards
    from toolkit.training import setup

    ends: list[float] = []
    spent: list[float] = []
    scored: list[Any] = []

    class Trainer(setup.SelfCriticalTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.args.save_strategy = self.args.eval_strategy = "no"

        def _draw(self, *args: Any) -> Any:
            found = super()._draw(*args)
            spent.append(self.window["reward_s"] - sum(spent))  # fewer steps than are logged at once
            return found

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            ends.append(time.perf_counter())
            return loss

    real = Rewards.__call__

    def call(self: Rewards, images: Any, samples: Any) -> np.ndarray:
        found = real(self, images, samples)
        scored.append((self.references, images, samples, found))
        return found

    kept = setup.SelfCriticalTrainer
    vars(setup)["SelfCriticalTrainer"], Rewards.__call__ = Trainer, call  # type: ignore[method-assign]
    try:
        finetune(options)
    finally:
        vars(setup)["SelfCriticalTrainer"], Rewards.__call__ = kept, real  # type: ignore[method-assign]
    references, images, samples, found = scored[-1]
    texts = [[" ".join(words) for words in of_image] for of_image in samples]
    differences.append(float(np.abs(Cider(references)(list(images), texts) - found).max()))
    steps = len(ends) - 1
    return (ends[-1] - ends[0]) / steps, sum(spent[1:]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "tiny"), default="small")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=13, help="of a drawn caption, at most; Flickr8k's have 13.6")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each way in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = make(Path(folder), arguments)
        plain = Plain(options, arguments)
        differences: list[float] = []
        figures: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            figures["plain"].append((plain.seconds(), 0.0))
            figures["frozen"].append(toolkit(options, differences))
            cached = replace(options, freeze_encoder=False, cache_features=True)
            figures["cached"].append(toolkit(cached, differences))
    print(f"rewards differ from pycocoevalcap's by at most {max(differences):.1e}")
    print("| way | step | times as fast as plain | rewards |")
    print("| --- | ---: | ---: | ---: |")
    for way, rounds in figures.items():
        ratio = statistics.median(p[0] / r[0] for p, r in zip(figures["plain"], rounds, strict=True))
        share = f"{statistics.median(r[1] / r[0] for r in rounds):.1%}" if way != "plain" else ""
        print(f"| {way} | {statistics.median(r[0] for r in rounds):.2f} s | {ratio:.1f} | {share} |")


if __name__ == "__main__":
    main()
