"""report.html of a training run: its curves, and captions of the same images during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.reports.charts import Chart, Line, Measure, curves
from toolkit.reports.html import chart_script, data_uri, write_page

LOGGED = (
    Measure("loss", "training loss, nats a token"),
    Measure("eval_loss", "validation loss, nats a token"),
    Measure("reward", "reward of drawn captions"),
    Measure("reward_spread", "spread of the reward within an image"),
    Measure("eval_cider", "validation CIDEr", 100),
    Measure("eval_bleu_4", "validation BLEU-4", 100),
    Measure("eval_rouge_l", "validation ROUGE-L", 100),
    Measure("eval_ended", "captions that end", 100, "%"),
    Measure("eval_distinct", "distinct captions an image", 100, "%"),
    Measure("eval_loops", "captions that loop", 100, "%"),
    Measure("eval_bad_endings", "captions that break off", 100, "%"),
    Measure("eval_alike", "images with the commonest caption", 100, "%"),
    Measure("eval_words", "different words on validation"),
    Measure("eval_length", "words a caption on validation"),
    Measure("sample_tokens", "tokens of a drawn caption"),
    Measure("sample_ended", "drawn captions that end", 100, "%"),
    Measure("entropy", "entropy of the next token, nats"),
    Measure("kl", "divergence from the first captioner, nats a token"),
    Measure("learning_rate", "learning rate"),
    Measure("grad_norm", "gradient norm"),
    Measure("images_per_s", "training images/s"),
)


def during(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of training.jsonl without those of an evaluation after training."""
    return [row for row in rows if not {"generation", "final"} & row.keys()]


def points(rows: Sequence[dict[str, Any]], logged: Measure, place: Callable[[dict[str, Any]], float | None],
           at: Callable[[dict[str, Any]], str] | None = None) -> dict[str, Any]:  # fmt: skip
    """x, y and at of a `Line`, from the rows that have the value and a place."""
    found = [(place(row), float(row[logged.name]), row) for row in rows if row.get(logged.name) is not None]
    kept = [(x, y * logged.times, row) for x, y, row in found if x is not None and np.isfinite(y)]
    return {"x": [x for x, _, _ in kept], "y": [y for _, y, _ in kept],
            "at": [] if at is None else [at(row) for _, _, row in kept]}  # fmt: skip


def _step_and_epoch(row: dict[str, Any]) -> str:
    return f"{row['step']}" + (f" (epoch {row['epoch']:.4g})" if row.get("epoch") is not None else "")


def run_charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """A chart over steps for each value of `LOGGED` that was logged at least twice."""
    lines = [(it, points(during(rows), it, lambda row: row["step"], _step_and_epoch)) for it in LOGGED]
    lines = [(it, xy) for it, xy in lines if len(xy["x"]) > 1]
    span = (0, max((xy["x"][-1] for _, xy in lines), default=0))
    drawn = [curves(it, [Line("", **xy)], "step", span, whole=True) for it, xy in lines]
    return [chart for chart in drawn if chart is not None]


TIMED = (
    ("waiting for data", "data_s"), ("evaluation", "evaluation_s"), ("checkpoints", "saving_s"),
    ("drawing captions", "sampling_s"), ("rewards", "reward_s"),  # of the objective cider
)  # fmt: skip


def time_split(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the time of a run went, from the rows of training.jsonl: name, seconds, share of all, where it begins."""
    timed = [row for row in rows if "seconds" in row]
    parts = {name: sum(row.get(key, 0.0) for row in timed) for name, key in TIMED if any(key in row for row in timed)}
    total = sum(row["seconds"] for row in timed)
    parts = {"compute": max(total - sum(parts.values()), 0.0), **parts}
    starts = np.cumsum([0.0, *parts.values()])
    return [
        {"name": name, "seconds": seconds, "share": seconds / total, "start": start / total}
        for (name, seconds), start in zip(parts.items(), starts, strict=False)
        if total
    ]


def write_training_report(
    path: Path, rows: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]], **values: Any
) -> None:
    """report.html of a finetune run: curves, metrics, and captions of the same images during training."""
    shown = [{**sample, "thumbnail": data_uri(sample["pixels"])} for sample in samples]
    warnings: list[str] = next((row["warnings"] for row in reversed(rows) if "warnings" in row), [])
    write_page(path, "report", charts=run_charts(rows), samples=shown, split=time_split(rows), warnings=warnings,
               **chart_script(), **values)  # fmt: skip
