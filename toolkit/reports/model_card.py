"""README.md of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.evaluation.shown import NAMES
from toolkit.options.finetune import SCORES
from toolkit.options.preprocess import NEW_DECODERS
from toolkit.reports.html import _templates


def write_model_card(path: Path, **values: Any) -> None:
    """README.md of a model folder, in the hub's form: what it was made from, how, and how well it does."""
    metadata = _card_metadata(**values)
    text = _templates().get_template("model_card.md").render(version=__version__, metadata=metadata, **values)
    path.write_text(text, encoding="utf-8")


def _card_metadata(manifest: dict[str, Any], options: dict[str, Any], summary: dict[str, Any], **_: Any) -> str:
    """The YAML that the hub reads at the top of a card."""
    from huggingface_hub import EvalResult, ModelCardData

    made, start = manifest["options"], options.get("init_from")
    parts = (
        [start]
        if start
        else []
        if made["preset"]
        else [made["encoder"], *([] if made["decoder"] in NEW_DECODERS else [made["decoder"]])]
    )
    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=manifest["format"],
            dataset_name=Path(made["annotations"]).name,
            dataset_split="validation",
            metric_type=name,
            metric_name=NAMES[name],
            metric_value=round(100 * summary["validation"][name], 2),
        )
        for name in SCORES
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
