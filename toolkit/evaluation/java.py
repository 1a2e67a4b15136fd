"""What pycocoevalcap brings: the files of METEOR, and SPICE as a Java program."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np

from toolkit.errors import RunError, ToolkitError, is_bug


def pycocoevalcap_folder(metric: str) -> Path:
    """The folder of a metric in pycocoevalcap, which is not imported.

    Raises:
        ToolkitError: it is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ToolkitError(
            f"--metrics {metric}: {metric.upper()} needs pycocoevalcap; pip install pycocoevalcap, or leave {metric} out."
        )
    return Path(next(iter(spec.submodule_search_locations))) / metric


def score_with_spice(references: list[list[list[str]]], words: list[list[str]]) -> tuple[float, np.ndarray]:
    """SPICE with pycocoevalcap's jar: score of the corpus, score per image.

    Args:
        references: words of every reference, by image.
        words: words of one caption per image.

    Raises:
        ToolkitError: Java or pycocoevalcap is missing, or the program fails.
    """
    if shutil.which("java") is None:
        raise ToolkitError("--metrics spice: SPICE needs Java; install a JRE (8 or newer) or leave spice out.")
    folder = pycocoevalcap_folder("spice")
    if " " in str(folder):
        raise ToolkitError(
            f"--metrics spice: {folder} has a space in it, which SPICE can't handle; move the Python environment to a path without spaces."
        )
    gts = {i: [" ".join(sentence) for sentence in sentences] for i, sentences in enumerate(references)}
    res = {i: [" ".join(sentence)] for i, sentence in enumerate(words)}
    try:
        from pycocoevalcap.spice.spice import Spice

        with contextlib.redirect_stdout(sys.stderr):  # it prints to stdout
            corpus, parts = Spice().compute_score(gts, res)
        per_image = [part["All"]["f"] for part in parts]
    except Exception as error:
        if is_bug(error):
            raise
        raise RunError(
            f"--metrics spice: SPICE failed ({type(error).__name__}: {error}); try again with a network connection (it "
            "downloads Stanford CoreNLP the first time) or leave spice out."
        ) from error
    return float(corpus), np.array(per_image, dtype=np.float64)
