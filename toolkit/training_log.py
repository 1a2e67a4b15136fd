"""How a training run does: figures of each evaluation, and the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, TrainerCallback

from toolkit.cache import Cache
from toolkit.decoding import caption_lengths
from toolkit.labels import IGNORE_INDEX
from toolkit.metrics import score
from toolkit.modeling import SpecialTokens
from toolkit.progress import Progress, say


def caption_metrics(
    references: Sequence[Sequence[str]], decode: Callable[[Any], list[str]], tokens: SpecialTokens
) -> Callable[[EvalPrediction], dict[str, Any]]:
    """Trainer's `compute_metrics`: what was generated, scored against the captions of the same images, in order."""

    def compute(prediction: EvalPrediction) -> dict[str, Any]:
        rows = torch.as_tensor(np.asarray(prediction.predictions))[: len(references), 1:]
        ended = caption_lengths(rows, tokens)[1].numpy()
        captions = decode(rows.masked_fill(rows == IGNORE_INDEX, tokens.pad))
        loss, count = np.asarray(prediction.label_ids, dtype=np.float64)[: len(references)].sum(axis=0)
        ids = [str(i) for i in range(len(references))]
        scores = score(dict(zip(ids, captions, strict=True)), dict(zip(ids, references, strict=True)))
        wanted = {name: scores.corpus[name] for name in ("cider", "bleu_4", "rouge_l")}
        compute.captions = captions  # type: ignore[attr-defined]
        return {
            "loss": loss / count,
            **wanted,
            "ended": float(ended.mean()),
            "distinct": len(set(captions)) / len(captions),
        }

    return compute


class TrainingLog(TrainerCallback):
    """training.jsonl, a row per log and per evaluation, and progress for people.

    Args:
        metrics: the function of `caption_metrics`, whose `captions` are those of the last evaluation.
    """

    SAMPLES = 8  # validation images whose captions are followed through training

    def __init__(self, path: Path, metrics: Any) -> None:
        self.path = path
        self.metrics = metrics
        self.progress: Progress | None = None

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def _write(self, row: dict[str, Any], mode: str = "a") -> None:
        with open(self.path, mode, encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = [
            row for row in self.rows() if row["step"] <= state.global_step
        ]  # what a killed run did beyond is redone
        self.path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        self.progress = Progress("finetune", state.max_steps - state.global_step, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        row = {"step": state.global_step, "epoch": round(state.epoch or 0, 4), **(logs or {})}
        if "eval_loss" in row:
            row["captions"] = self.metrics.captions[: self.SAMPLES]
            names = ("loss", "cider", "bleu_4", "rouge_l", "ended", "distinct")
            figures = ", ".join(f"{name} {row[f'eval_{name}']:.3f}" for name in names)
            say(f'  epoch {row["epoch"]:g}: {figures}; "{row["captions"][0]}"')
        self._write(row)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)

    def best(self, step: int | None) -> dict[str, float]:
        """The figures of the evaluation at this step; empty where there was none."""
        rows = [row for row in self.rows() if "eval_loss" in row and step in (None, row["step"])]
        names = ("loss", "cider", "bleu_4", "rouge_l", "ended", "distinct")
        return {name: rows[-1][f"eval_{name}"] for name in names} if rows else {}

    def samples(self, cache: Cache) -> list[dict[str, Any]]:
        """The followed validation images: pixels, their captions, and what was said of them at each evaluation."""
        reader = cache["validation"]
        references, ids = reader.column("captions"), reader.column("image_id")
        evaluations = [row for row in self.rows() if "eval_loss" in row]
        return [
            {
                "image_id": ids[i],
                "pixels": reader[i]["pixel_values"],
                "references": references[i],
                "captions": [(row["epoch"], row["captions"][i]) for row in evaluations],
            }
            for i in range(min(self.SAMPLES, len(reader)))
        ]
