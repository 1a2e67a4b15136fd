"""The model that training starts from: another captioner, as old as they come; and whose cache it needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toolkit.cache.schema import open_cache
from toolkit.captioning.captioner import load_captioner
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.errors import ModelError
from toolkit.options import FinetuneOptions, GenerationOptions, PreprocessOptions
from toolkit.training.starting_model import starting_model


@pytest.fixture(scope="module")
def old_captioner(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model_dir` as nlpconnect/vit-gpt2-image-captioning lies on the hub: a pickle with GPT-2's masks in it, generation
    settings in config.json and in no file of their own, a feature extractor with one number for its size."""
    folder = tmp_path_factory.mktemp("old") / "captioner"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(model_dir / name, folder)
    weights = load_file(model_dir / "model.safetensors")
    assert "encoder.encoder.layer.0.attention.attention.query.weight" in weights, "old names, as on the hub"
    for i in range(2):
        weights[f"decoder.transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        weights[f"decoder.transformer.h.{i}.attn.masked_bias"] = torch.tensor(-10000.0)
    torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["decoder"]):
        part.update(max_length=20, num_beams=4, early_stopping=True, transformers_version="4.15.0")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
                    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 64})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def its_cache(old_captioner: Path, sample_dir: Path) -> Path:
    out = old_captioner.parent / "cache"
    preprocess(
        PreprocessOptions(
            annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=out, num_workers=1,
            encoder=str(old_captioner), decoder=str(old_captioner),
        )
    )  # fmt: skip
    return out


def start(cache_dir: Path, **options: Any) -> Any:
    cache = open_cache(cache_dir)
    tokens = cache.special_tokens
    return starting_model(FinetuneOptions(cache=cache_dir, **options), cache, tokens)


def test_going_on_from_an_old_captioner(old_captioner: Path, its_cache: Path, model_dir: Path, tmp_path: Path) -> None:
    theirs = load_captioner(str(model_dir), "cpu").model.state_dict()
    ours = start(its_cache, init_from=str(old_captioner)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "pooler" not in name)
    out = tmp_path / "model"
    finetune(
        FinetuneOptions(
            cache=its_cache,
            output_dir=out,
            init_from=str(old_captioner),
            max_steps=2,
            generation=GenerationOptions(num_beams=1),
        )
    )
    made = json.loads((out / "options.json").read_text())["options"]
    assert (made["lr"], made["epochs"]) == (5e-5, 3.0), "not the preset's, which are for random weights"
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["max_length"] == 50
    assert "max_length" not in json.loads((out / "config.json").read_text())
    moved = load_captioner(str(out), "cpu").model.state_dict()
    assert 0 < max((moved[name] - theirs[name]).abs().max().item() for name in theirs if "pooler" not in name) < 1e-3


def test_other_pixels_or_words_are_refused(
    old_captioner: Path, cache_dir: Path, its_cache: Path, tmp_path: Path
) -> None:
    assert start(cache_dir, init_from=str(old_captioner)) is not None  # the same pixels and words as the preset's
    with pytest.raises(ModelError, match=r"is a whole captioner; fine-tune it with `toolkit finetune --init-from "):
        start(its_cache)
    other = tmp_path / "other"
    shutil.copytree(old_captioner, other)
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**config, "image_mean": [0.4, 0.5, 0.5]}))
    command = rf"`toolkit preprocess --encoder {other} --decoder {other} --out FOLDER`"
    with pytest.raises(
        ModelError, match=rf"--init-from {other}: .* was made for another image processor; .* {command}"
    ):
        start(its_cache, init_from=str(other))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=rf"--init-from {other}: .* was made for another tokenizer; .* {command}"):
        start(its_cache, init_from=str(other))
    del words["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=rf"--init-from {other}: no tokenizer can be loaded from this folder"):
        start(its_cache, init_from=str(other))


def test_wrong_names(cache_dir: Path, tmp_path: Path) -> None:
    for name, message in (
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path), r"not a model folder \(no config\.json\)"),
        (str(cache_dir / "manifest.json"), "is a file, not a model folder"),
    ):
        with pytest.raises(ModelError, match=rf"--init-from {name}: {message}; name a folder that"):
            start(cache_dir, init_from=name)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="a model of type gpt2, not a vision-encoder-decoder captioner"):
        start(cache_dir, init_from=str(tmp_path))
