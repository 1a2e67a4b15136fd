"""Two phases in one run: the encoder's weights before and after the boundary, and resumed runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, RunError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.training.trainer import CaptionTrainer


def test_the_encoder_learns_from_the_boundary_on_and_resumed_runs_are_equal(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FinetuneOptions(
        cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=8, unfreeze_after=1, encoder_lr=1e-3,
        ema=0.5, generation=GenerationOptions(num_beams=1),
    )  # fmt: skip
    real, states, cut = CaptionTrainer.training_step, [], [0]

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        encoder = self.model.encoder
        if len(states) + 1 == cut[0]:
            raise KeyboardInterrupt
        loss = real(self, *args, **kwargs)
        weight = next(w for w in encoder.parameters() if w.ndim > 1)
        modes = {module.training for module in encoder.modules()}
        states.append((weight.detach().clone(), weight.grad is not None, modes))
        return loss

    monkeypatch.setattr(CaptionTrainer, "training_step", training_step)
    finetune(options)
    weights, grads, modes = zip(*states, strict=True)
    assert grads == (False,) * 5 + (True,) * 5
    assert modes == ({False},) * 5 + ({True},) * 5
    assert all(torch.equal(weights[0], weight) for weight in weights[:6])  # the sixth step's are from before its update
    assert not torch.equal(weights[0], weights[-1])
    for number, step in enumerate((4, 8)):  # in the first phase, and in the second
        other = replace(options, output_dir=tmp_path / f"other{number}", save_steps=2)
        states.clear()
        cut[0] = step
        with pytest.raises(RunError):
            finetune(other)
        cut[0] = 0
        finetune(other)
        one, two = (load_file(run.output_dir / "model.safetensors") for run in (options, other))
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "values", [{"freeze_encoder": True}, {"cache_features": True}, {"unfreeze_last": 1}, {"lora_rank": 2}]
)
def test_values_that_no_run_can_have(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--unfreeze-after 1: --.* says what is trained all along"):
        FinetuneOptions(unfreeze_after=1, **values)


def test_a_run_that_ends_before_the_boundary_is_refused(cache_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--unfreeze-after 2: --epochs 2 ends before the encoder is trained"):
        finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", epochs=2, unfreeze_after=2))
