"""`--fsdp`: the weights of an unsharded run, in whole checkpoints that a run goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from ranked import difference, ended, torchrun, weights
from transformers import VisionEncoderDecoderModel

from toolkit.commands.finetune import finetune
from toolkit.errors import InputError
from toolkit.models.loading import build_captioner
from toolkit.options import FinetuneOptions
from toolkit.records import SpecialTokens
from toolkit.training.distributed import check_sharding, sharding_config

AS_GPUS = str(Path(__file__).parents[1] / "as_gpus.py")


def test_sharded_training(cache_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = [AS_GPUS, "finetune", str(cache_dir), "--output-dir", str(out), "--batch-size", "6", "--epochs", "2"]
    process = torchrun(2, *command, "--fsdp", "--save-total-limit", "2")
    code, _, errors, told = ended(process)
    assert (code, errors) == (0, []), told
    assert told.count("FSDPVisionEncoderDecoderModel: 0.50 of the weights") == 2
    first = weights(out)
    finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "alone", batch_size=12, epochs=2))
    assert difference(first, weights(tmp_path / "alone")) < 2e-4
    VisionEncoderDecoderModel.from_pretrained(out)

    shutil.rmtree(out / "checkpoints" / "checkpoint-8")
    for name in ("finetune.json", "model.safetensors"):
        (out / name).unlink()
    code, _, errors, told = ended(torchrun(2, *command, "--fsdp", "--save-total-limit", "2"))
    assert (code, errors) == (0, []), told
    assert f"resuming from {out.with_name('model.partial') / 'checkpoints' / 'checkpoint-4'}" in told
    assert difference(first, weights(out)) == 0.0


def test_what_is_gathered_at_a_time() -> None:
    model = build_captioner("", "", "tiny", 300, SpecialTokens(0, 1, 2), seed=0)
    assert sharding_config(model)["transformer_layer_cls_to_wrap"] == ["GPT2Block", "ViTLayer"]


def test_where_it_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    check_sharding(FinetuneOptions(), cpu)
    with pytest.raises(InputError, match=r"^--fsdp: needs several GPUs"):
        check_sharding(FinetuneOptions(fsdp=True), cuda)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_sharding(FinetuneOptions(fsdp=True), cuda)
    with pytest.raises(InputError, match=r"^--fsdp: needs several GPUs"):
        check_sharding(FinetuneOptions(fsdp=True), cpu)
    for options in ({"lora_rank": 4}, {"compile": True}):
        with pytest.raises(InputError, match=r"^--fsdp: not together with"):
            check_sharding(FinetuneOptions(fsdp=True, **options), cuda)
