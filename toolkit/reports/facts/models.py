"""Facts about a model from its files, and about a run from its log; without torch or loading weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from toolkit.errors import InputError

RUN_LOG = "training.jsonl"
METRICS = ("loss", "cider", "bleu_4", "rouge_l", "ended", "distinct")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: can't be read as JSON ({error}); repair the file or write the folder again."
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; repair the file or write the folder again.")
    return value


def tensors(path: Path) -> dict[str, tuple[str, int]]:
    """The dtype ("F32", ...) and the number of values of each tensor in a safetensors file.

    Raises:
        InputError: the file is truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: (found.get_dtype(), math.prod(found.get_shape())) for name, found in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); copy or write it again.") from None


def parameters(folder: Path) -> dict[str, Any] | None:
    """Parameter counts of a model folder with one or several safetensors files; None if it has none.

    Returns:
        {"total", "encoder", "decoder", "dtypes": {"F32": ...}}; other parts, such as a projection between the two,
        only count in the total.
    """
    index = read_json(folder / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    if index is None and not (folder / files[0]).is_file():
        return None
    parts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for file in files:
        for name, (dtype, size) in tensors(folder / file).items():
            parts[name.split(".")[0]] += size
            dtypes[dtype] += size
    return {
        "total": sum(parts.values()),
        "encoder": parts["encoder"],
        "decoder": parts["decoder"],
        "dtypes": dict(dtypes),
    }


def model_facts(folder: Path) -> dict[str, Any]:
    """Facts about a model from its folder.

    Raises:
        InputError: it is another kind of model, or one of its files is damaged.
    """
    config = read_json(folder / "config.json") or {}
    kind = config.get("model_type")
    if kind != "vision-encoder-decoder":
        raise InputError(
            f"{folder}: a model of type {kind}; name the folder of a captioner (vision-encoder-decoder), or a cache."
        )
    encoder, decoder = config.get("encoder") or {}, config.get("decoder") or {}
    processor = read_json(folder / "preprocessor_config.json") or {}
    size = (processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")) or {}
    side = encoder.get("image_size")
    image_size = [size["height"], size["width"]] if "height" in size and "width" in size else [side, side]
    generation = read_json(folder / "generation_config.json") or {}
    generation.pop("transformers_version", None)
    summary = read_json(folder / "finetune.json")
    return {
        "encoder": encoder.get("model_type"),
        "decoder": decoder.get("model_type"),
        "parameters": parameters(folder),
        "vocabulary": decoder.get("vocab_size"),
        "image_size": image_size if isinstance(image_size[0], int) else None,
        "generation": generation,
        "options": (read_json(folder / "options.json") or {}).get("options"),
        "summary": None if summary is None else {name: summary[name] for name in summary if name != "files"},
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training.jsonl."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:  # the incomplete last line of a run that is being written or was killed
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def run_facts(folder: Path) -> dict[str, Any]:
    """Facts about a run from its log: steps, the best evaluation and the last metrics."""
    rows = read_log(folder / RUN_LOG)
    options = (read_json(folder / "options.json") or {}).get("options") or {}
    metric = options.get("eval_metric") or "loss"
    # Evaluations during training; those made afterwards say so.
    during = [row for row in rows if not {"generation", "final"} & row.keys()]
    evaluations = [row for row in during if row.get(f"eval_{metric}") is not None]
    sign = -1 if metric == "loss" else 1
    best = max(evaluations, key=lambda row: sign * row[f"eval_{metric}"], default=None)
    steps = [row for row in rows if "loss" in row]
    return {
        "steps": rows[-1]["step"] if rows else 0,
        "epoch": rows[-1].get("epoch") if rows else None,
        "finished": (folder / "finetune.json").exists(),
        "evaluations": len(evaluations),
        "metric": metric,
        "best": _metrics(best) if best else None,
        "last_evaluation": _metrics(evaluations[-1]) if evaluations else None,
        "last": {k: steps[-1].get(k) for k in ("step", "loss", "learning_rate", "grad_norm")} if steps else None,
        "options": options or None,
    }


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: row[f"eval_{name}"] for name in METRICS if row.get(f"eval_{name}") is not None}
    return {"step": row["step"], "epoch": row.get("epoch"), **metrics}
