"""Special tokens, the tiny preset, and what a missing hub says."""

from __future__ import annotations

import time
from pathlib import Path

import huggingface_hub
import pytest
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
)

from toolkit.captioning.captioner import load_captioner
from toolkit.errors import ModelError
from toolkit.models import loading as modeling
from toolkit.models.presets import train_tokenizer
from toolkit.models.special_tokens import generation_config, special_tokens_of
from toolkit.options import GenerationOptions
from toolkit.records import SpecialTokens

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["a", "b", *special.values()])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), **special)


def test_special_tokens() -> None:
    gpt2 = tokenizer(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    assert special_tokens_of(gpt2) == SpecialTokens(start=3, eos=3, pad=3)
    bert = tokenizer(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    assert special_tokens_of(bert) == SpecialTokens(start=2, eos=3, pad=4)
    t5 = tokenizer(eos_token="</s>", pad_token="<pad>")
    assert special_tokens_of(t5) == SpecialTokens(start=2, eos=2, pad=3)
    with pytest.raises(ModelError, match="no EOS token"):
        special_tokens_of(tokenizer(pad_token="<pad>"), "some/model")


def test_tiny_tokenizer_is_deterministic_and_loses_nothing() -> None:
    captions = ["a small red ring", "a dog — déjà vu 😀", "two words"]
    one, other = (train_tokenizer(captions, 300) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    for text in [*captions, "日本語, never seen"]:
        assert one.decode(one(text).input_ids) == text


def test_no_hub_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    for load, option in ((modeling.load_image_processor, "--encoder"), (modeling.load_tokenizer, "--decoder")):
        with pytest.raises(ModelError) as error:
            load("some/model-that-is-not-here")
        text = str(error.value)
        assert text.startswith(f"{option} some/model-that-is-not-here: ")
        assert "could not be loaded from the Hugging Face hub: there is no connection to 127.0.0.1;" in text
        for way_out in ("local folder", "HF_HUB_OFFLINE=1", "--preset tiny"):
            assert way_out in text
    with pytest.raises(ModelError, match="--model a/b: the captioner could not be loaded"):
        load_captioner("a/b")
    assert time.monotonic() - started < 30  # not the two minutes of the hub's own retries


def test_a_folder_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"--encoder \./none: no such folder \(relative to the current directory\); give a local folder",
    ):
        modeling.load_image_processor("./none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="can be loaded from this folder"):
        modeling.load_image_processor(str(tmp_path))


def test_greedy_settings_can_be_saved(tmp_path: Path) -> None:
    """transformers refuses to save beam settings with one beam."""
    settings = generation_config(GenerationOptions(num_beams=1), SpecialTokens(0, 0, 0))
    settings.save_pretrained(tmp_path)
    assert settings.length_penalty is None or settings.length_penalty == 1.0
