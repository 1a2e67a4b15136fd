"""`--trainer-arg`: checked against Trainer's own names and types, and part of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainingArguments

from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, OutputError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.options.fields import flat, from_flat, to_json
from toolkit.training.setup import trainer_arguments
from toolkit.training.trainer import CaptionTrainer
from toolkit.training.trainer_args import FIXED, OPTIONS, check_trainer_args, trainer_args


def test_values_have_the_types_of_their_fields() -> None:
    given = (
        "max_grad_norm=0.5", "optim=adafactor", "adam_beta2=.98", "ddp_timeout=60", "full_determinism=false",
        "ddp_static_graph=true", "optim_args=a=1,b=2", 'lr_scheduler_kwargs={"num_cycles": 2}',
    )  # fmt: skip
    assert trainer_args(given) == {
        "max_grad_norm": 0.5, "optim": "adafactor", "adam_beta2": 0.98, "ddp_timeout": 60, "full_determinism": False,
        "ddp_static_graph": True, "optim_args": "a=1,b=2", "lr_scheduler_kwargs": {"num_cycles": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("max_grad_nrm=1", "--trainer-arg max_grad_nrm=1: Trainer has no such argument; the nearest are max_grad_norm"),
        ("max_grad_norm=much", "--trainer-arg max_grad_norm=much: is no value of max_grad_norm, which is float."),
        ("ddp_timeout=1.5", "is no value of ddp_timeout, which is int."),
        ("full_determinism=perhaps", "is no value of full_determinism, which is bool."),
        ("lr_scheduler_kwargs={", "is no value of lr_scheduler_kwargs"),
        ("optim=fastest", "is no value of optim"),
        ("learning_rate=1", "--trainer-arg learning_rate=1: --lr sets it; use that."),
        ("label_smoothing_factor=1", "--label-smoothing sets it"),
        ("predict_with_generate=no", "toolkit sets predict_with_generate itself; leave it out."),
        ("torch_compile_mode=default", "only applies with --compile; add that."),
        ("optim=adamw_bnb_8bit", "Trainer does not take it"),
        ('lr_scheduler_kwargs={"cycles":2}', "Trainer does not take it (get_linear_schedule_with_warmup() got an"),
        ("max_grad_norm", "--trainer-arg max_grad_norm: is a name, =, and a value"),
    ],
)
def test_mistakes(given: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        check_trainer_args(FinetuneOptions(trainer_arg=(given,)))
    assert sentence in str(error.value)


def test_none_twice() -> None:
    with pytest.raises(InputError, match=r"--trainer-arg optim=sgd: optim is given 2 times; give it once\."):
        FinetuneOptions(trainer_arg=("optim=sgd", "optim=adafactor"))


def test_every_argument_is_one_that_trainer_has_and_those_of_ours_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f.name for f in fields(Seq2SeqTrainingArguments)}
    assert {*OPTIONS, *FIXED} <= names
    assert not OPTIONS.keys() & set(FIXED)
    ours: dict[str, Any] = {}
    monkeypatch.setattr("toolkit.training.setup.Seq2SeqTrainingArguments", lambda **given: ours.update(given))
    trainer_arguments(replace(FinetuneOptions(), precision="fp32"), Path("x"), 1, None)
    assert ours.keys() - OPTIONS.keys() - set(FIXED) == set()
    aliases = {alias: option.name for option in flat(FinetuneOptions) for alias in option.metadata.get("aliases", ())}
    assert {*aliases, *FinetuneOptions.refused} <= names | {"overwrite_output_dir"}  # which transformers 4 has
    assert {alias: OPTIONS[alias] for alias in aliases} == {
        alias: f"--{name.replace('_', '-')}" for alias, name in aliases.items()
    }
    flags = {f"--{name.replace('_', '-')}" for name in to_json(FinetuneOptions())}
    assert {part for option in OPTIONS.values() for part in option.split(" and ")} <= flags


def test_options_travel_as_json() -> None:
    options = FinetuneOptions(trainer_arg=["optim=sgd"])
    assert from_flat(FinetuneOptions, json.loads(json.dumps(to_json(options)))) == options


def test_a_run(
    three_updates: Callable[..., None], cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They reach Trainer, the card and options.json, and make another run; their order does not."""
    seen: list[tuple[Any, ...]] = []
    real = CaptionTrainer.create_optimizer

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = real(self, *args, **kwargs)
        seen.append((type(made).__name__, self.args.max_grad_norm))
        return made

    monkeypatch.setattr(CaptionTrainer, "create_optimizer", create_optimizer)
    three_updates(tmp_path / "model", trainer_arg=("optim=sgd", "max_grad_norm=0.01"))
    assert seen == [("SGD", 0.01)]
    assert json.loads((tmp_path / "model" / "options.json").read_text())["options"]["trainer_arg"] == [
        "max_grad_norm=0.01", "optim=sgd",
    ]  # fmt: skip
    assert "| trainer_arg | max\\_grad\\_norm\\=0.01, optim\\=sgd |" in (tmp_path / "model" / "README.md").read_text()
    options = FinetuneOptions(
        cache=cache_dir, output_dir=tmp_path / "model", max_steps=3, batch_size=8, trainer_arg=("max_grad_norm=0.01", "optim=sgd"),
        generation=GenerationOptions(num_beams=1),
    )  # fmt: skip
    assert "finished already" in finetune(options).text
    with pytest.raises(OutputError, match=r"with other settings \(--trainer-arg"):
        finetune(replace(options, trainer_arg=("optim=sgd",)))
