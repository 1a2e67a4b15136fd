"""What `finetune --objective` may be: the options that only one of them knows, and the text of `--reward`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from toolkit.options.fields import check, check_at_least

OBJECTIVES = ("cross-entropy", "cider")
REWARDS = ("cider", "bleu_4")
SELF_CRITICAL = ("samples_per_image", "reward", "xe_weight", "kl_weight")  # options of the objective cider alone


def parse_reward(text: str) -> dict[str, float]:
    """Weights by metric: "cider:1,bleu_4:0.5" -> {"cider": 1.0, "bleu_4": 0.5}; a name alone weighs 1.

    Raises:
        ValueError: says what is wrong with the text.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition(":"))
        if name not in REWARDS:
            raise ValueError(
                f"{name or 'nothing'} is no reward; choose from {', '.join(REWARDS)}, as cider:1,bleu_4:0.5"
            )
        if name in weights:
            raise ValueError(f"{name} is named twice; name it once")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"the weight of {name} must be a number above 0")
    return weights


def check_objective(options: Any, default_output: Path) -> None:
    """Refuses what an objective can't work with, or would ignore.

    Args:
        options: of finetune.
        default_output: where a model is written if nothing is said.
    """
    if options.objective == "cross-entropy":
        for name in SELF_CRITICAL:
            check(getattr(options, name) is None, name, getattr(options, name),
                  "only applies with --objective cider; add that")  # fmt: skip
        return
    check(options.init_from is not None, "objective", options.objective,
          "goes on from a captioner that is trained already; add --init-from model")  # fmt: skip
    name = Path(options.init_from).name or "model"
    check(options.output_dir != default_output, "objective", options.objective,
          f"makes another model, beside the one that it starts from; add --output-dir {name}-cider")  # fmt: skip
    check(not options.label_smoothing, "label_smoothing", options.label_smoothing,
          f"has no effect with --objective {options.objective}; leave it out")  # fmt: skip
    check(options.captions_per_image is None, "captions_per_image", options.captions_per_image,
          f"--objective {options.objective} compares with all captions; --samples-per-image says how many are drawn")  # fmt: skip
    check(not options.fsdp, "objective", options.objective,
          "draws captions from whole weights, which --fsdp shards; leave one of the two out")  # fmt: skip
    check_at_least(options, 2, "samples_per_image")
    check_at_least(options, 0, "xe_weight", "kl_weight")
    if options.reward is not None:
        try:
            parse_reward(options.reward)
        except ValueError as error:
            check(False, "reward", options.reward, str(error))
