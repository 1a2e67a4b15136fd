"""LoRA: what is adapted, that merging is W + 2BA, resuming, and an adapter's folder as a captioner."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stopping import stops
from transformers import VisionEncoderDecoderModel

from toolkit.cache.schema import open_cache
from toolkit.captioning.captioner import load_captioner
from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, ModelError, RunError
from toolkit.models.loading import build_captioner
from toolkit.models.lora import add_lora, attention_layers, load_adapter_weights, merged
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.records import SpecialTokens
from toolkit.training.collator import CaptionCollator, CaptionDataset, caption_loss

TOKENS = SpecialTokens(0, 0, 0)
RANK = 2


def tiny() -> VisionEncoderDecoderModel:
    return build_captioner("", "", "tiny", 384, TOKENS, seed=0)


def adapted(targets: str = "both", pretrained: bool = False) -> Any:
    """With updates that are not zero."""
    model = add_lora(tiny(), RANK, targets, pretrained)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model


def test_which_layers() -> None:
    vit = [f"encoder.layers.{i}.attention.{p}_proj" for i in range(4) for p in "qkvo"]
    gpt2 = [f"decoder.transformer.h.{i}.attn.{p}" for i in range(2) for p in ("c_attn", "c_proj")]
    cross = [f"decoder.transformer.h.{i}.crossattention.{p}" for i in range(2) for p in ("c_attn", "q_attn", "c_proj")]
    model = tiny()
    assert sorted(attention_layers(model, "encoder", cross=False)) == sorted(vit)
    assert sorted(attention_layers(model, "decoder", cross=False)) == sorted(gpt2)
    assert sorted(attention_layers(model, "both", cross=True)) == sorted(vit + gpt2 + cross)


@pytest.mark.parametrize(("targets", "pretrained"), [("both", False), ("decoder", True), ("encoder", True)])
def test_what_is_trained(targets: str, pretrained: bool) -> None:
    """The updates, and whole what is new: cross-attention and its norm."""
    base = tiny()
    layers = attention_layers(base, targets, cross=pretrained)
    shapes = {name: module.weight.shape for name, module in base.named_modules() if name in layers}
    new = sum(w.numel() for n, w in base.named_parameters() if "crossattention" in n or "ln_cross_attn" in n)
    model = add_lora(base, RANK, targets, pretrained)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == sum(RANK * sum(shape) for shape in shapes.values()) + (0 if pretrained else new)


def test_merged_is_the_sum() -> None:
    base, model = tiny(), adapted()
    updates = dict(model.named_parameters())
    plain = merged(model)
    assert type(plain) is VisionEncoderDecoderModel
    assert plain.state_dict().keys() == base.state_dict().keys()
    layers = attention_layers(base, "both", cross=False)
    for name, weight in base.named_parameters():
        expected = weight
        if name.endswith(".weight") and name.removesuffix(".weight") in layers:
            stem = f"base_model.model.{name.removesuffix('.weight')}.lora"
            delta = 2 * updates[f"{stem}_B.default.weight"] @ updates[f"{stem}_A.default.weight"]
            expected = weight + (delta.T if name.startswith("decoder") else delta)  # GPT-2's lie transposed
        torch.testing.assert_close(plain.get_parameter(name), expected, msg=name)


def test_grouped_loss_is_the_naive_one(cache_dir: Path) -> None:
    """An adapted model takes several captions in a row like any other; so does the merged one."""
    model = adapted().eval()
    items = [CaptionDataset(open_cache(cache_dir)["train"])[i] for i in range(2)]
    pixels = torch.randn(2, 3, 64, 64)
    batch = CaptionCollator(TOKENS)(items)
    labels = batch.pop("labels")
    batch["pixel_values"] = pixels
    with torch.no_grad():
        loss = caption_loss(model(**batch).logits, labels)
        total, count = 0.0, 0
        for image, item in zip(pixels, items, strict=True):
            for row in torch.from_numpy(item["labels"].copy()).long():
                row = row[row != -100]
                total += model(pixel_values=image[None], labels=row[None]).loss.item() * len(row)
                count += len(row)
        assert loss.item() == pytest.approx(total / count, abs=1e-5)
        assert caption_loss(merged(model)(**batch).logits, labels).item() == pytest.approx(loss.item(), abs=1e-5)


def options(cache_dir: Path, out: Path, **more: Any) -> FinetuneOptions:
    given = {
        "max_steps": 8,
        "epochs": 2,
        "batch_size": 8,
        "generation": GenerationOptions(num_beams=1),
        "lora_rank": RANK,
        "lr": 1e-2,
        **more,
    }
    return FinetuneOptions(cache=cache_dir, output_dir=out, **given)


def test_stopped_and_gone_on_with(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(options(cache_dir, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stops(patch, 7)  # in the second epoch
        with pytest.raises(RunError, match="run the same command again"):
            finetune(options(cache_dir, tmp_path / "stopped"))
    finetune(options(cache_dir, tmp_path / "stopped"))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("lora" in name or "base_layer" in name for name in one)  # merged: nothing of peft in it
    assert not (tmp_path / "whole" / "adapter_config.json").exists()


@pytest.mark.parametrize("from_captioner", [False, True])
def test_an_adapter_is_a_captioner(
    from_captioner: bool, cache_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"init_from": str(model_dir)} if from_captioner else {}
    finetune(options(cache_dir, tmp_path / "merged", max_steps=3, **more))
    finetune(options(cache_dir, tmp_path / "adapter", max_steps=3, lora_save="adapter", **more))
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert all("lora_" in name for name in names) == from_captioner
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    monkeypatch.chdir(tmp_path)
    one, other = (load_captioner(name, "cpu") for name in ("merged", "adapter"))
    for name, weight in one.model.state_dict().items():
        if "pooler" not in name:
            torch.testing.assert_close(other.model.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(one.model.generate(pixels), other.model.generate(pixels))
    base = json.loads((tmp_path / "adapter" / "base.json").read_text())
    (tmp_path / "adapter" / "base.json").write_text(json.dumps({**base, "seed": 43, "weights": "0"}))
    with pytest.raises(ModelError, match=r"--model adapter: an adapter of .*, but those weights have changed since"):
        load_captioner("adapter")
    (tmp_path / "adapter" / "base.json").unlink()
    with pytest.raises(ModelError, match=r"--model adapter: an adapter without base\.json"):
        load_captioner("adapter")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="LoRA needs peft"):
        load_captioner("adapter")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.zero_()
    load_adapter_weights(model, tmp_path)
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not an adapter of this model"):
        load_adapter_weights(model, tmp_path)


def test_learning_rate() -> None:
    assert FinetuneOptions(lora_rank=8).resolved(None).lr == 5e-4
    assert FinetuneOptions(lora_rank=8, init_from="m").resolved("tiny").lr == 5e-4
    assert FinetuneOptions(lora_rank=8).resolved("tiny").lr == 1.5e-3
    assert FinetuneOptions(lora_rank=8, lr=1e-4).resolved(None).lr == 1e-4


def test_refused(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, message in (
        (
            {"unfreeze_last": 1, "lora_rank": 2},
            "--unfreeze-last 1: with --lora-rank the encoder's own weights are not trained",
        ),
        ({"freeze_encoder": True, "lora_rank": 2}, "--lora-targets both: --freeze-encoder leaves the encoder as it is"),
        ({"lora_targets": "decoder"}, "--lora-targets decoder: only applies with --lora-rank"),
        ({"lora_save": "adapter"}, "--lora-save adapter: only applies with --lora-rank"),
        ({"lora_rank": 0}, "--lora-rank 0: must be at least 1"),
        ({"lora_rank": 2, "lora_targets": "all"}, "--lora-targets all: choose one of both, encoder, decoder"),
    ):
        with pytest.raises(InputError, match=message):
            FinetuneOptions(**wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"LoRA needs peft, which is not installed; pip install"):
        finetune(replace(options(cache_dir, tmp_path / "m"), lora_targets="decoder"))
    assert not (tmp_path / "m").exists()
