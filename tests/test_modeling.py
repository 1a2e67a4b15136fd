"""Special tokens, the tiny preset, and what a missing hub says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
    SwinConfig,
    SwinModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from toolkit import modeling
from toolkit.batches import CaptionCollator
from toolkit.errors import ModelError
from toolkit.modeling import (
    SpecialTokens,
    build_captioner,
    first_position,
    generation_config,
    load_captioner,
    train_tiny_tokenizer,
)
from toolkit.options import GenerationOptions

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["a", "b", *special.values()])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), **special)


def test_special_tokens() -> None:
    gpt2 = tokenizer(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    assert SpecialTokens.of(gpt2) == SpecialTokens(start=3, eos=3, pad=3)
    bert = tokenizer(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    assert SpecialTokens.of(bert) == SpecialTokens(start=2, eos=3, pad=4)
    t5 = tokenizer(eos_token="</s>", pad_token="<pad>")
    assert SpecialTokens.of(t5) == SpecialTokens(start=2, eos=2, pad=3)
    with pytest.raises(ModelError, match="no EOS token"):
        SpecialTokens.of(tokenizer(pad_token="<pad>"), "some/model")


def test_tiny_tokenizer_is_deterministic_and_loses_nothing() -> None:
    captions = ["a small red ring", "a dog — déjà vu 😀", "two words"]
    one, other = (train_tiny_tokenizer(captions, 300) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    for text in [*captions, "日本語, never seen"]:
        assert one.decode(one(text).input_ids) == text


@pytest.mark.parametrize("encoder", ["vit", "deit", "swin", "clip"])
@pytest.mark.parametrize("decoder", ["gpt2", "bert", "roberta"])
def test_pairs_of_local_folders(encoder: str, decoder: str, tmp_path: Path) -> None:
    """Built, trained on a step with three captions an image, saved, loaded and generating; hidden sizes differ."""
    parts = {
        "vit": lambda: ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL)),
        "deit": lambda: DeiTModel(DeiTConfig(image_size=32, patch_size=16, **SMALL)),
        "swin": lambda: SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
                                             window_size=4)),
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=16, **SMALL)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=1, n_head=2, vocab_size=60, n_positions=32)),
        "bert": lambda: BertLMHeadModel(BertConfig(vocab_size=60, **SMALL)),
        "roberta": lambda: RobertaForCausalLM(RobertaConfig(vocab_size=60, pad_token_id=3, **SMALL)),
    }  # fmt: skip
    for name in (encoder, decoder):
        parts[name]().save_pretrained(tmp_path / name)
    tokens = SpecialTokens(start=1, eos=2, pad=3)
    model = build_captioner(str(tmp_path / encoder), str(tmp_path / decoder), None, 60, tokens, seed=0)
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(4, 60, (6, 5))
    items = [{"pixel_values": pixels[i].numpy(), "labels": labels[3 * i : 3 * i + 3].numpy()} for i in range(2)]
    batch = CaptionCollator(tokens, first_position(model.decoder))(items)
    del batch["labels"]
    logits = model.eval()(**batch).logits[:, :15].reshape(6, 5, -1)
    inputs = torch.cat([torch.full((6, 1), tokens.start), labels[:, :-1]], dim=1)
    expected = [model(pixel_values=pixels[i // 3][None], decoder_input_ids=inputs[i][None]).logits for i in range(6)]
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=1e-4)
    logits.mean().backward()
    silent = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert silent == set(), "a parameter that waits for a gradient is an error under DDP"
    model.generation_config = generation_config(GenerationOptions(max_length=8), tokens)
    model.save_pretrained(tmp_path / "saved")
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved").eval()
    model.eval()
    assert torch.equal(loaded.generate(pixels), model.generate(pixels))


def test_no_hub_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    started = time.monotonic()
    for load, option in ((modeling.load_image_processor, "--encoder"), (modeling.load_tokenizer, "--decoder")):
        with pytest.raises(ModelError) as error:
            load("some/model-that-is-not-here")
        text = str(error.value)
        assert text.startswith(f"{option} some/model-that-is-not-here: ")
        assert "could not be loaded from the Hugging Face hub" in text
        for way_out in ("local folder", "HF_HUB_OFFLINE=1", "--preset tiny"):
            assert way_out in text
    with pytest.raises(ModelError, match="--model a/b: the captioner could not be loaded"):
        load_captioner("a/b")
    assert time.monotonic() - started < 30  # not the two minutes of the hub's own retries


def test_a_folder_that_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="can be loaded from this folder"):
        modeling.load_image_processor(str(tmp_path))


def test_greedy_settings_can_be_saved(tmp_path: Path) -> None:
    """transformers refuses to save beam settings with one beam."""
    settings = generation_config(GenerationOptions(num_beams=1), SpecialTokens(0, 0, 0))
    settings.save_pretrained(tmp_path)
    assert settings.length_penalty is None or settings.length_penalty == 1.0
