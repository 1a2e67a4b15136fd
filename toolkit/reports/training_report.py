"""report.html of a training run: its curves, and captions of the same images during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.reports.html import data_uri, write_page


def curve(rows: Sequence[dict[str, Any]], name: str, title: str) -> dict[str, Any] | None:
    """Points of one logged value over steps, scaled into a 320 x 120 drawing; None with fewer than two."""
    points = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
    points = [(x, y) for x, y in points if np.isfinite(y)]
    if len(points) < 2:
        return None
    xs, ys = np.array(points).T
    low, high = ys.min(), ys.max()
    px = (xs - xs[0]) / max(xs[-1] - xs[0], 1e-12) * 320
    py = 120 - (ys - low) / (high - low) * 120 if high > low else np.full(len(ys), 60.0)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(px, py, strict=True))
    return {"title": title, "line": line, "low": f"{low:.4g}", "high": f"{high:.4g}", "last": f"{ys[-1]:.4g}",
            "first_step": int(xs[0]), "last_step": int(xs[-1])}  # fmt: skip


CURVES = (
    ("loss", "training loss, nats a token"),
    ("eval_loss", "validation loss, nats a token"),
    ("reward", "reward of drawn captions"),
    ("reward_spread", "spread of the reward within an image"),
    ("eval_cider", "validation CIDEr"),
    ("eval_bleu_4", "validation BLEU-4"),
    ("eval_rouge_l", "validation ROUGE-L"),
    ("eval_ended", "share of captions that end"),
    ("eval_distinct", "distinct captions an image"),
    ("eval_loops", "share of captions that loop"),
    ("eval_bad_endings", "share of captions that break off"),
    ("eval_alike", "share of the commonest caption"),
    ("eval_words", "different words on validation"),
    ("eval_length", "words a caption on validation"),
    ("sample_tokens", "tokens of a drawn caption"),
    ("sample_ended", "share of drawn captions that end"),
    ("entropy", "entropy of the next token, nats"),
    ("kl", "divergence from the first captioner, nats a token"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("images_per_s", "training images/s"),
)


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
    during = [row for row in rows if not {"generation", "final"} & row.keys()]  # not of an evaluation after training
    curves = [c for name, title in CURVES if (c := curve(during, name, title)) is not None]
    shown = [{**sample, "thumbnail": data_uri(sample["pixels"])} for sample in samples]
    warnings: list[str] = next((row["warnings"] for row in reversed(rows) if "warnings" in row), [])
    write_page(path, "report", curves=curves, samples=shown, split=time_split(rows), warnings=warnings, **values)
