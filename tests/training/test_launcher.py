"""What `accelerate launch` says by its variables: taken where the options leave it open, refused where it is not done here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from toolkit.errors import InputError
from toolkit.models.precision import pick_device
from toolkit.options import FinetuneOptions
from toolkit.training.launcher import PRECISION, as_launched, tell_accelerate

CONFIG = """compute_environment: LOCAL_MACHINE
debug: false
distributed_type: 'NO'
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 1
use_cpu: true
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


def test_precision(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_launched(FinetuneOptions()) == FinetuneOptions()
    monkeypatch.setenv(PRECISION, "no")  # which it also says where nobody has chosen
    assert as_launched(FinetuneOptions()) == FinetuneOptions()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(PRECISION, "bf16")
    assert as_launched(FinetuneOptions()).precision == "bf16"
    assert as_launched(FinetuneOptions(precision="bf16")).precision == "bf16"
    assert as_launched(FinetuneOptions(precision="fp32")).precision == "fp32"
    assert capsys.readouterr().err == (
        "--precision bf16: as accelerate launch says\nnote: accelerate's mixed_precision bf16 gives way to --precision fp32\n"
    )


def test_accelerate_computes_in_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer takes the variable where it is told neither bf16 nor fp16."""
    from transformers import Seq2SeqTrainingArguments

    tell_accelerate("fp32")
    assert PRECISION not in os.environ
    monkeypatch.setenv(PRECISION, "bf16")
    assert Seq2SeqTrainingArguments("none", use_cpu=True).mixed_precision == "bf16"
    tell_accelerate("fp32")
    assert Seq2SeqTrainingArguments("none", use_cpu=True).mixed_precision == "no"


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP; toolkit sets it up itself; use `finetune --fsdp` instead."),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DeepSpeed; toolkit does not train with it"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "asks for a parallelism config"),
        (PRECISION, "fp8", "asks for fp8, which toolkit does not train in; set mixed_precision to bf16."),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "asks for the dynamo backend INDUCTOR; set it to no, and use"),
    ],
)
def test_what_is_refused(variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRECISION, "no")
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as error:
        as_launched(FinetuneOptions())
    assert str(error.value).startswith(f"accelerate launch: {sentence}")
    if "DYNAMO" in variable:
        as_launched(FinetuneOptions(compile=True))
        monkeypatch.delenv(PRECISION)  # no launcher: left by a run in this process
        as_launched(FinetuneOptions())


def test_use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.slow
def test_a_config_file(cache_dir: Path, tmp_path: Path) -> None:
    """By the launcher itself; and without it nobody reads the file, even where it is the default one."""
    file = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CONFIG)
    assert load_config_from_file(str(file)).mixed_precision == "bf16"
    found = {}
    options = ["finetune", str(cache_dir), "--max-steps", "2", "--num-beams", "1"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file), "-m", "toolkit"]
    for name, start in (("launched", launch), ("plain", ["-m", "toolkit"])):
        command = [sys.executable, *start, *options, "--output-dir", name]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name / "options.json").read_text())
        assert ("--precision bf16: as accelerate launch says" in done.stderr) is (name == "launched")
    assert [found[name]["options"]["precision"] for name in ("launched", "plain")] == ["bf16", "auto"]
    assert [found[name]["precision"] for name in ("launched", "plain")] == ["bf16", "fp32"]
