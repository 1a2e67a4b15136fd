"""Pages to look at: the training report, the model card, and what every page needs. One look, one file each, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from toolkit import __version__
from toolkit.files import finishing
from toolkit.outputs import Output, page_mark
from toolkit.progress import printable

THUMBNAIL = 288  # longer side in pixels: sharp on a phone, about 10 KB an image


def thumbnail(image: Image.Image) -> bytes:
    """An RGB image as a small JPEG."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def data_uri(image: Image.Image | np.ndarray) -> str:
    """An RGB image, or uint8 pixels (C, H, W), as a JPEG thumbnail within the page."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(image)).decode()


# What Markdown, and the HTML and tables in it, make something else of.
_MARKUP = {ord(character): f"\\{character}" for character in "\\`*_{}[]()<>#|~$!&+-:@=^"}


def markdown(value: Any) -> str:
    """A name or a caption as it is, on one line, in Markdown: nothing in it is a link, a heading, HTML or the end of a
    table's cell. A backslash before any punctuation is left out when it is shown.

    >>> markdown("a*b|<i>.jpg\\n# c")
    'a\\\\*b\\\\|\\\\<i\\\\>.jpg\\\\\\\\n\\\\# c'
    """
    return printable(str(value)).translate(_MARKUP)


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    # Captions and file names are anybody's: in HTML everything is escaped.
    environment = Environment(
        loader=PackageLoader("toolkit"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    return environment


def template_source(name: str) -> str:
    """The text of a file in toolkit/templates."""
    environment = _templates()
    return str(environment.loader.get_source(environment, name)[0])


def write_page(output: Output | Path, kind: str, **values: Any) -> None:
    """Renders templates/<kind>.html, with the mark that it is known by; what an iterator brings is written as it comes.

    Args:
        output: a plain path is within a folder of ours.
    """
    page = _templates().get_template(f"{kind}.html")
    place = output.writing() if isinstance(output, Output) else finishing(output)
    with place as temporary, open(temporary, "w", encoding="utf-8") as file:
        page.stream(version=__version__, mark=Markup(page_mark(kind)), **values).dump(file)


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
    during = [row for row in rows if "generation" not in row]  # not of an evaluation after training
    curves = [c for name, title in CURVES if (c := curve(during, name, title)) is not None]
    shown = [{**sample, "thumbnail": data_uri(sample["pixels"])} for sample in samples]
    warnings: list[str] = next((row["warnings"] for row in reversed(rows) if "warnings" in row), [])
    write_page(path, "report", curves=curves, samples=shown, split=time_split(rows), warnings=warnings, **values)


def write_model_card(path: Path, **values: Any) -> None:
    """README.md of a model folder, in the hub's form: what it was made from, how, and how well it does."""
    metadata = _card_metadata(**values)
    text = _templates().get_template("model_card.md").render(version=__version__, metadata=metadata, **values)
    path.write_text(text, encoding="utf-8")


def _card_metadata(manifest: dict[str, Any], options: dict[str, Any], summary: dict[str, Any], **_: Any) -> str:
    """The YAML that the hub reads at the top of a card."""
    from huggingface_hub import EvalResult, ModelCardData

    made, start = manifest["options"], options.get("init_from")
    parts = [start] if start else [] if made["preset"] else [made["encoder"], made["decoder"]]
    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=manifest["format"],
            dataset_name=Path(made["annotations"]).name,
            dataset_split="validation",
            metric_type=name,
            metric_value=summary["validation"][name],
        )
        for name in ("cider", "bleu_4", "rouge_l")
        if name in summary["validation"]
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["image-captioning", "vision-encoder-decoder"],
        base_model=[str(part) for part in parts if not Path(part).exists()] or None,  # a local folder is no one else's
        model_name=Path(summary["model"]).resolve().name,
        eval_results=results or None,
    ).to_yaml()
