"""Values that no command can work with are refused as the options are made, before anything is imported or read."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from toolkit.cli import COMMANDS
from toolkit.errors import InputError
from toolkit.options import FinetuneOptions

SEEDED = [name for name, (options, _) in COMMANDS.items() if "seed" in {field.name for field in fields(options)}]


def test_which_commands_draw() -> None:
    assert SEEDED == ["preprocess", "finetune", "batch-caption", "caption", "evaluate", "sample", "demo"]


@pytest.mark.parametrize("command", SEEDED)
def test_seeds(command: str) -> None:
    """numpy and torch take them from 0 to 2**32 - 1."""
    options = COMMANDS[command][0]
    given: dict[str, Any] = {"directory": "s"} if command == "sample" else {}
    assert options(**given, seed=0).seed == 0
    assert options(**given, seed=2**32 - 1).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=rf"^--seed {seed}: is a number from 0 to 4294967295\.$"):
            options(**given, seed=seed)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"warmup_steps": 5, "warmup_ratio": 0.1},
            "--warmup-ratio 0.1: --warmup-steps 5 says it already; leave one of the two out.",
        ),
        ({"epochs": float("inf")}, "--epochs inf: must be at least 0"),
        ({"lr": float("nan")}, "--lr nan: must be at least 0"),
    ],
)
def test_finetune(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        FinetuneOptions(**given)
    assert sentence in str(error.value)
