"""A learning rate of its own for the encoder, other schedules, and the decoder's dropout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import stops

from toolkit.cache.schema import open_cache
from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, RunError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.training.setup import length_window
from toolkit.training.trainer import CaptionTrainer


@pytest.fixture
def options(cache_dir: Path, tmp_path: Path) -> FinetuneOptions:
    """A run of two epochs, with greedy evaluations."""
    greedy = GenerationOptions(num_beams=1)
    return FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=8, generation=greedy)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_an_encoder_at_rate_zero_stays_and_the_decoder_learns(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, torch.Tensor] = {}
    real = CaptionTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        before.update({name: value.clone() for name, value in self.model.state_dict().items()})
        found = real(self, *args, **kwargs)
        peaks = {(group["initial_lr"], bool(group["weight_decay"])) for group in self.optimizer.param_groups}
        assert peaks == {(1.5e-3, True), (1.5e-3, False), (0.0, True), (0.0, False)}
        counted = sum(len(group["params"]) for group in self.optimizer.param_groups)
        assert counted == sum(weight.requires_grad for weight in self.model.parameters())
        changed = {n.split(".")[0] for n, v in self.model.state_dict().items() if not torch.equal(v, before[n])}
        assert "decoder" in changed
        assert "encoder" not in changed
        return found

    monkeypatch.setattr(CaptionTrainer, "train", train)
    finetune(replace(options, max_steps=3, encoder_lr=0.0))


def test_a_resumed_run_with_two_rates_is_equal(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(options, encoder_lr=3e-4, lr_scheduler_type="cosine", decoder_dropout=0.2)
    finetune(options)
    other = replace(options, output_dir=options.output_dir.with_name("other"))
    with monkeypatch.context() as patch:
        stops(patch, 8)
        with pytest.raises(RunError):
            finetune(other)
    finetune(other)
    one, two = weights(options.output_dir), weights(other.output_dir)
    assert all(torch.equal(one[name], two[name]) for name in one)
    decoder = json.loads((other.output_dir / "config.json").read_text())["decoder"]
    assert {decoder[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")} == {0.2}


def test_a_run_from_before_these_options_is_finished(model_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model_dir, tmp_path / "model")
    file = tmp_path / "model" / "options.json"
    run = json.loads(file.read_text())
    for name in ("encoder_lr", "lr_scheduler_type", "decoder_dropout", "group_by_length"):
        del run["options"][name]
    file.write_text(json.dumps(run))
    options = FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=8)
    assert "finished already" in finetune(options).text


def test_the_encoder_of_a_new_decoder_has_a_low_rate() -> None:
    assert FinetuneOptions().resolved(None, "small").encoder_lr == 5e-5
    assert FinetuneOptions(encoder_lr=1e-4).resolved(None, "small").encoder_lr == 1e-4
    for fixed in ({"cache_features": True}, {"freeze_encoder": True}, {"lora_rank": 4}, {"init_from": "m"}):
        assert FinetuneOptions(**fixed).resolved(None, "small").encoder_lr is None  # type: ignore[arg-type]
    assert FinetuneOptions().resolved("tiny").encoder_lr is None


def test_a_new_decoder_is_trained_as_on_flickr8k() -> None:
    new, pretrained = FinetuneOptions().resolved(None, "small"), FinetuneOptions().resolved(None)
    assert (new.epochs, new.lr_scheduler_type, new.decoder_dropout) == (6, "cosine", 0)
    assert (pretrained.epochs, pretrained.lr_scheduler_type, pretrained.decoder_dropout) == (3, "linear", None)
    assert FinetuneOptions(lr_scheduler_type="linear").resolved(None, "small").lr_scheduler_type == "linear"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_lr": -1.0}, "--encoder-lr -1.0: must be at least 0"),
        ({"encoder_lr": 1e-4, "freeze_encoder": True}, "--freeze-encoder leaves the encoder as it is"),
        ({"encoder_lr": 1e-4, "lora_rank": 4, "lora_targets": "decoder"}, "--lora-targets decoder leaves the encoder"),
        ({"lr_scheduler_type": "cosin"}, "--lr-scheduler-type cosin: choose one of linear, cosine"),
        ({"decoder_dropout": 1.0}, "--decoder-dropout 1.0: must be at least 0 and below 1"),
    ],
)
def test_values_that_no_run_can_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FinetuneOptions(**values)


@pytest.mark.parametrize(
    ("values", "preset", "window"),
    [({}, "tiny", 1), ({"group_by_length": True}, "tiny", 32), ({}, None, 32), ({"group_by_length": False}, None, 1)],
)
def test_who_groups_images_by_length(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], preset: str | None, window: int
) -> None:
    cache = open_cache(cache_dir)
    monkeypatch.setitem(cache.manifest["options"], "preset", preset)
    assert length_window(FinetuneOptions(**values), cache) == window
