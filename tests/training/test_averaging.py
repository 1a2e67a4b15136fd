"""The moving average of the weights: a plain loop, what is saved, and a resumed run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import stops

from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, RunError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.training.averaging import WeightAverage
from toolkit.training.trainer import CaptionTrainer


@pytest.fixture
def options(cache_dir: Path, tmp_path: Path) -> FinetuneOptions:
    greedy = GenerationOptions(num_beams=1)
    return FinetuneOptions(
        cache=cache_dir,
        output_dir=tmp_path / "model",
        epochs=2,
        batch_size=4,
        ema=0.5,
        generation=greedy,
        eval_images=1,
    )


class Seen:
    """Trained weights before the first and after each update, and those of each evaluation."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained: list[dict[str, torch.Tensor]] = []
        self.evaluated: list[dict[str, torch.Tensor]] = []
        begin, end, predict = WeightAverage.on_train_begin, WeightAverage.on_step_end, CaptionTrainer.evaluation_loop

        def on_train_begin(average: Any, *args: Any, **kwargs: Any) -> None:
            begin(average, *args, **kwargs)
            self.trained.append(copy(kwargs["model"]))

        def on_step_end(average: Any, *args: Any, **kwargs: Any) -> None:
            self.trained.append(copy(kwargs["model"]))
            end(average, *args, **kwargs)

        def evaluation_loop(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.evaluated.append(copy(trainer.model))
            return predict(trainer, *args, **kwargs)

        def copy(model: Any) -> dict[str, torch.Tensor]:
            self.model = model
            return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}

        patch.setattr(WeightAverage, "on_train_begin", on_train_begin)
        patch.setattr(WeightAverage, "on_step_end", on_step_end)
        patch.setattr(CaptionTrainer, "evaluation_loop", evaluation_loop)


def loop(trained: list[dict[str, torch.Tensor]], decay: float) -> list[dict[str, torch.Tensor]]:
    averages = [{name: weight.double() for name, weight in trained[0].items()}]
    for step, weights in enumerate(trained[1:], 1):
        d = min(decay, (1 + step) / (10 + step))
        averages.append({n: d * averages[-1][n] + (1 - d) * w.double() for n, w in weights.items()})
    return averages


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name].double(), other[name].double(), atol=1e-6) for name in one)


def test_evaluated_and_saved_is_what_a_plain_loop_gives_and_a_resumed_run_is_equal(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        seen = Seen(patch)
        finetune(options)
    averages, half = loop(seen.trained, 0.5), (len(seen.trained) - 1) // 2
    assert near(seen.evaluated[0], averages[half])
    assert near(seen.evaluated[1], averages[-1])
    assert not near(seen.evaluated[1], seen.trained[-1])
    final = {name: weight for name, weight in seen.model.named_parameters() if weight.requires_grad}
    assert near(final, averages[half]) or near(final, averages[-1])
    other = replace(options, output_dir=options.output_dir.with_name("other"), save_steps=3)
    with monkeypatch.context() as patch:
        stops(patch, 8)
        with pytest.raises(RunError):
            finetune(other)
    finetune(other)
    one, two = (load_file(run.output_dir / "model.safetensors") for run in (options, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    left = {path.name for path in (other.output_dir / "checkpoints").glob("checkpoint-*/*")}
    assert "average.safetensors" in left


def test_training_goes_on_from_the_weights_it_would_have_had(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is evaluated, the average is what is saved."""
    ends: list[dict[str, torch.Tensor]] = []
    real = CaptionTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.args.eval_strategy, self.args.load_best_model_at_end = "no", False
        found = real(self, *args, **kwargs)
        self.evaluate()  # as on the whole split, after training
        ends.append({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
        return found

    seen = Seen(monkeypatch)
    monkeypatch.setattr(CaptionTrainer, "train", train)
    finetune(replace(options, max_steps=3))
    plain = Seen(monkeypatch)
    finetune(replace(options, max_steps=3, ema=1e-9, output_dir=options.output_dir.with_name("other")))
    assert all(torch.equal(seen.trained[3][name], plain.trained[3][name]) for name in plain.trained[3])
    average = loop(seen.trained[:4], 0.5)[-1]
    assert near(seen.evaluated[0], average)
    assert near({name: ends[0][name] for name in average}, average)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema": 1.0}, "--ema 1.0: must be above 0 and below 1"),
        ({"ema": 0.9, "fsdp": True}, "--ema 0.9: --fsdp leaves each process only a part"),
    ],
)
def test_values_that_no_run_can_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FinetuneOptions(**values)
