"""METEOR and SPICE with pycocoevalcap's Java programs."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np

from toolkit.errors import RunError, ToolkitError, is_bug


def score_with_java(metric: str, references: list[list[list[str]]], words: list[list[str]]) -> tuple[float, np.ndarray]:
    """METEOR 1.5 or SPICE with pycocoevalcap's jars: score of the corpus, score per image.

    Args:
        references: words of every reference, by image.
        words: words of one caption per image.

    Raises:
        ToolkitError: Java or pycocoevalcap is missing, or the program fails.
    """
    name = metric.upper()
    if shutil.which("java") is None:
        raise ToolkitError(f"--metrics {metric}: {name} needs Java; install a JRE (8 or newer) or leave {metric} out.")
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ToolkitError(f"--metrics {metric}: {name} needs pycocoevalcap; pip install pycocoevalcap.")
    folder = Path(next(iter(spec.submodule_search_locations))) / metric
    if " " in str(folder):
        raise ToolkitError(
            f"--metrics {metric}: {folder} has a space in it, which {name} can't handle; move the Python environment to a path without spaces."
        )
    gts = {i: [" ".join(sentence) for sentence in sentences] for i, sentences in enumerate(references)}
    res = {i: [" ".join(sentence)] for i, sentence in enumerate(words)}
    try:
        if metric == "meteor":
            from pycocoevalcap.meteor.meteor import Meteor

            corpus, per_image = Meteor().compute_score(gts, res)
        else:
            from pycocoevalcap.spice.spice import Spice

            with contextlib.redirect_stdout(sys.stderr):  # it prints to stdout
                corpus, parts = Spice().compute_score(gts, res)
            per_image = [part["All"]["f"] for part in parts]
    except Exception as error:
        if is_bug(error):
            raise
        once = " with a network connection (it downloads Stanford CoreNLP the first time)" if metric == "spice" else ""
        raise RunError(
            f"--metrics {metric}: {name} failed ({type(error).__name__}: {error}); try again{once} or leave "
            f"{metric} out."
        ) from error
    return float(corpus), np.array(per_image, dtype=np.float64)
