"""Values that no command can work with are refused as the options are made, before anything is imported or read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import COMMANDS
from toolkit.errors import InputError
from toolkit.options import (
    BatchCaptionOptions,
    CaptionOptions,
    EvaluateOptions,
    FinetuneOptions,
    InspectOptions,
    PreprocessOptions,
)
from toolkit.options.fields import flat, from_flat, to_json

SEEDED = [name for name, (options, _) in COMMANDS.items() if "seed" in {option.name for option in flat(options)}]


def test_which_commands_draw() -> None:
    assert SEEDED == ["preprocess", "finetune", "batch-caption", "caption", "evaluate", "sample", "demo"]


@pytest.mark.parametrize("command", SEEDED)
def test_seeds(command: str) -> None:
    """numpy and torch take them from 0 to 2**32 - 1."""
    options = COMMANDS[command][0]
    more: dict[str, dict[str, Any]] = {
        "sample": {"directory": "s"},
        "batch-caption": {"sample": True},
        "caption": {"sample": True},
    }
    given = more.get(command, {})
    assert to_json(from_flat(options, {**given, "seed": 0}))["seed"] == 0
    assert to_json(from_flat(options, {**given, "seed": 2**32 - 1}))["seed"] == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=rf"^--seed {seed}: must be a whole number from 0 to 4294967295\.$"):
            from_flat(options, {**given, "seed": seed})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"warmup_steps": 5, "warmup_ratio": 0.1},
            "--warmup-ratio 0.1: --warmup-steps 5 sets it already; leave one of the two out.",
        ),
        ({"epochs": float("inf")}, "--epochs inf: must be at least 0"),
        ({"lr": float("nan")}, "--lr nan: must be at least 0"),
    ],
)
def test_finetune(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        FinetuneOptions(**given)
    assert sentence in str(error.value)


def test_values_get_the_types_of_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings where a field holds a path, paths where it holds a name, lists and single values as tuples."""
    monkeypatch.setenv("HOME", "/home/me")
    assert FinetuneOptions(cache="c", output_dir="~/m") == FinetuneOptions(
        cache=Path("c"), output_dir=Path("/home/me/m")
    )
    assert FinetuneOptions(init_from=Path("m")).init_from == "m"
    assert BatchCaptionOptions(paths=["~/a", Path("b")]).paths == ("/home/me/a", "b")
    assert BatchCaptionOptions(paths="photos").paths == ("photos",)
    assert PreprocessOptions(train_list="t.txt").train_list == Path("t.txt")
    assert EvaluateOptions(page="p.html", against=None) == EvaluateOptions(page=Path("p.html"))
    assert InspectOptions("cache", sheet="s.html").sheet == Path("s.html")
    assert CaptionOptions(images=Path("a.jpg")).images == ("a.jpg",)


@pytest.mark.parametrize(
    ("make", "wrong", "sentence"),
    [
        (BatchCaptionOptions, {"top_k": 5}, "--top-k 5: only applies with --sample"),
        (CaptionOptions, {"temperature": 0.5}, "--temperature 0.5: only applies with --sample"),
        (BatchCaptionOptions, {"sample": True, "num_beams": 2}, "--num-beams 2: has no effect with --sample"),
        (BatchCaptionOptions, {"sample": True, "length_penalty": 1.0}, "--length-penalty 1.0: has no effect with --sample"),
        (CaptionOptions, {"num_beams": 1, "early_stopping": "true"}, "--early-stopping true: has no effect with --num-beams 1"),
        (BatchCaptionOptions, {"seed": 7}, "--seed 7: only applies with --sample"),
        (CaptionOptions, {"seed": 7}, "--seed 7: only applies with --sample"),
        (FinetuneOptions, {"num_beams": 1, "length_penalty": 1.0}, "--length-penalty 1.0: has no effect with --num-beams 1"),
        (EvaluateOptions, {"num_beams": 1}, "--num-beams 1: only applies with --model"),
        (EvaluateOptions, {"device": "cpu"}, "--device cpu: only applies with --model"),
        (EvaluateOptions, {"model": "m", "num_beams": 1, "length_penalty": 1.0}, "--length-penalty 1.0: has no effect"),
        (EvaluateOptions, {"metrics": "bleu", "idf": "train"}, "--idf train: only applies to CIDEr"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(make: Any, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        from_flat(make, wrong)
    for one in ({"sample": True, "num_beams": 1, "top_k": 5}, {"num_beams": 1}, {"length_penalty": 1.0}):
        if make in (BatchCaptionOptions, CaptionOptions):
            from_flat(make, one)
