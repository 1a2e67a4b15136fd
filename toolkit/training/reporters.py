"""`--report-to`: what Trainer's own callbacks for wandb, trackio, TensorBoard and others need, and what they fail with."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from toolkit.errors import InputError, RunError
from toolkit.runtime import ending

PACKAGES = ("tensorboard", "trackio", "wandb", "mlflow", "swanlab")  # those whose package has the reporter's name


def check_reporters(names: Sequence[str]) -> None:
    """
    Raises:
        InputError: Trainer doesn't know one, or its package is not installed.
    """
    if not names:
        return
    try:
        there = get_available_reporting_integrations()  # imports all that are installed
    except ImportError as error:
        raise InputError(
            f"--report-to {','.join(names)}: an installed reporter can't be imported ({error}); repair it."
        ) from None
    for name in names:
        if name in (*there, "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, 1)
            way = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            raise InputError(f"--report-to {name}: transformers has no such reporter; {way}")
        way = f"pip install {name}" if name in PACKAGES else "install its package"
        raise InputError(f"--report-to {name}: {name} is not installed; {way}, or leave it out.")


@contextmanager
def reporting(names: Sequence[str]) -> Iterator[None]:
    """What a reporter raises in the block, as wandb does where nobody has logged in, is told in its name; what it prints
    goes to standard error, since standard output is for the summary.

    Raises:
        RunError: that.
    """
    try:
        with redirect_stdout(sys.stderr) if names else nullcontext():
            yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if ending.told() or package not in names:
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise RunError(
            f"--report-to {package}: {reason}; set {package} up, or leave it out, and run the same command again."
        ) from None
