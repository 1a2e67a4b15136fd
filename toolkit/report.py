"""Pages to look at: the gallery, the training report, the model card. One look, one file each, no network."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit import __version__

THUMBNAIL = 288  # longer side in pixels: sharp on a phone, about 10 KB an image


@dataclass(frozen=True)
class Card:
    """One image of a gallery.

    Attributes:
        thumbnail: a data URI, or None where the image can't be shown.
        score: mean token log-probability, or None.
        verdict: whether the caption is right, where that is known.
    """

    name: str
    thumbnail: str | None
    caption: str | None
    score: float | None = None
    references: tuple[str, ...] = ()
    verdict: bool | None = None
    error: str | None = None


def data_uri(image: Image.Image | np.ndarray) -> str:
    """An RGB image, or uint8 pixels (C, H, W), as a JPEG thumbnail within the page."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    # Captions and file names are anybody's: in HTML everything is escaped.
    return Environment(
        loader=PackageLoader("toolkit"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, template: str, **values: Any) -> None:
    """Renders a template to a file, finished by rename."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(_templates().get_template(template).render(version=__version__, **values), encoding="utf-8")
    os.replace(temporary, path)


def write_gallery(path: Path, title: str, cards: Iterable[Card], facts: Sequence[tuple[str, str]] = ()) -> None:
    """One HTML file with each image and what was said of it.

    Args:
        facts: (name, value) pairs shown at the top.
    """
    write_page(path, "gallery.html", title=title, cards=list(cards), facts=list(facts))


def curve(rows: Sequence[dict[str, Any]], name: str, title: str) -> dict[str, Any] | None:
    """Points of one logged value over steps, scaled into a 320 x 120 drawing; None with fewer than two."""
    points = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
    points = [(x, y) for x, y in points if np.isfinite(y)]
    if len(points) < 2:
        return None
    xs, ys = np.array(points).T
    low, high = ys.min(), ys.max()
    px = (xs - xs[0]) / max(xs[-1] - xs[0], 1e-12) * 320
    py = 120 - (ys - low) / max(high - low, 1e-12) * 120
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(px, py, strict=True))
    return {"title": title, "line": line, "low": f"{low:.4g}", "high": f"{high:.4g}", "last": f"{ys[-1]:.4g}",
            "first_step": int(xs[0]), "last_step": int(xs[-1])}  # fmt: skip


CURVES = (
    ("loss", "training loss, nats a token"),
    ("eval_loss", "validation loss, nats a token"),
    ("eval_cider", "validation CIDEr"),
    ("eval_bleu_4", "validation BLEU-4"),
    ("eval_rouge_l", "validation ROUGE-L"),
    ("eval_ended", "share of captions that end"),
    ("eval_distinct", "distinct captions an image"),
    ("eval_loops", "share of captions that loop"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("images_per_s", "training images/s"),
)


def time_split(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the time of a run went, from the rows of training.jsonl: name, seconds, share of all, where it begins."""
    timed = [row for row in rows if "seconds" in row]
    parts = {name: sum(row[key] for row in timed) for name, key in (
        ("waiting for data", "data_s"), ("evaluation", "evaluation_s"), ("checkpoints", "saving_s"))}  # fmt: skip
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
    """report.html of a finetune run: curves, figures, and captions of the same images as training went on."""
    curves = [c for name, title in CURVES if (c := curve(rows, name, title)) is not None]
    shown = [{**sample, "thumbnail": data_uri(sample["pixels"])} for sample in samples]
    warnings: list[str] = next((row["warnings"] for row in reversed(rows) if "warnings" in row), [])
    write_page(path, "report.html", curves=curves, samples=shown, split=time_split(rows), warnings=warnings, **values)


def write_model_card(path: Path, **values: Any) -> None:
    """README.md of a model folder, in the hub's form: what it was made from, how, and how well it does."""
    text = _templates().get_template("model_card.md").render(version=__version__, **values)
    path.write_text(text, encoding="utf-8")
