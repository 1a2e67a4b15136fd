"""Checkpoints within an epoch, and the one of a run that a signal ends; resumed runs are equal to the bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import stops
from waiting import wait_for

from toolkit.commands.finetune import finetune
from toolkit.errors import RunError
from toolkit.models.precision import DTYPES
from toolkit.options import FinetuneOptions, GenerationOptions


@pytest.fixture
def options(cache_dir: Path, tmp_path: Path) -> FinetuneOptions:
    """A run of two epochs, with dropout and greedy evaluations."""
    greedy = GenerationOptions(num_beams=1)
    return FinetuneOptions(
        cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=4, decoder_dropout=0.1, generation=greedy
    )


def saved(options: FinetuneOptions) -> set[int]:
    folder = options.output_dir.with_name(options.output_dir.name + ".partial") / "checkpoints"
    return {int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")}


def same_weights(one: FinetuneOptions, other: FinetuneOptions) -> bool:
    tensors, others = (load_file(run.output_dir / "model.safetensors") for run in (one, other))
    return tensors.keys() == others.keys() and all(tensors[name].equal(others[name]) for name in tensors)


@pytest.mark.parametrize(
    ("precision", "every"), [("fp32", {"save_steps": 3}), ("fp32", {"save_minutes": 0.0}), ("bf16", {"save_steps": 3})]
)
def test_a_run_goes_on_within_an_epoch(
    precision: str, every: dict[str, Any], options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options, precision=precision)
    computed, gelu = set(), torch.nn.GELU.forward

    def forward(self: torch.nn.GELU, x: torch.Tensor) -> torch.Tensor:
        computed.add(x.dtype)
        return gelu(self, x)

    monkeypatch.setattr(torch.nn.GELU, "forward", forward)
    finetune(options)
    other = replace(options, output_dir=options.output_dir.with_name("other"), **every)
    with monkeypatch.context() as patch:
        stops(patch, 8)
        with pytest.raises(RunError, match="the last checkpoint"):
            finetune(other)
    assert saved(other) == {6 if "save_steps" in every else 7}
    finetune(replace(other, save_steps=None, save_minutes=None))  # which say nothing of the model
    assert same_weights(options, other)
    assert computed == {DTYPES[precision]}


def test_a_signal_saves_a_checkpoint(options: FinetuneOptions) -> None:
    finetune(options)
    other = replace(options, output_dir=options.output_dir.with_name("other"))
    folder = other.output_dir.with_name("other.partial") / "checkpoints"
    command = [
        sys.executable, "-m", "toolkit", "finetune", str(options.cache), "--output-dir", str(other.output_dir), "--epochs", "2",
        "--batch-size", "4", "--decoder-dropout", "0.1", "--num-beams", "1",
    ]  # fmt: skip
    # Slower steps, so that the signal meets the second epoch's.
    slow = (
        "import sys, time; from toolkit.training.trainer import CaptionTrainer as T; real = T.training_step\n"
        "T.training_step = lambda *a, **k: (time.sleep(0.2), real(*a, **k))[1]\n"
        "from toolkit.cli import main; sys.argv = sys.argv[1:]; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, *command[2:]], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(folder.glob("checkpoint-*/whole.json")), process)
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert "run the same command again to go on from the last checkpoint" in said
    steps = saved(other)
    finetune(other)
    assert same_weights(options, other)
    assert len(steps) == 2  # the epoch's, which is the best one, and that of the signal
