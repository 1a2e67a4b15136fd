"""Pairs of encoders and decoders beyond the default, each tiny and with random weights: built, trained, saved, loaded.

Hidden sizes differ, so that a projection lies between the halves; the decoders' special tokens are of three kinds.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import ENCODERS, tiny_encoder
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
    VisionEncoderDecoderModel,
)

from toolkit.captioning.captioner import load_captioner
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.models.loading import build_captioner
from toolkit.models.presets import train_tokenizer
from toolkit.models.special_tokens import first_position, generation_config, special_tokens_of
from toolkit.options import FinetuneOptions, GenerationOptions, PreprocessOptions
from toolkit.records import SpecialTokens
from toolkit.training.collator import CaptionCollator, caption_loss

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2(layers: int, vocabulary: int) -> Any:
    ids = {"bos_token_id": 2, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(n_embd=48, n_layer=layers, n_head=2, vocab_size=vocabulary, n_positions=64, **ids)
    )


# Each with its special tokens: one for all, a set of its own, and positions counted from the padding.
DECODERS: dict[str, tuple[Any, SpecialTokens]] = {
    "gpt2": (lambda size: gpt2(2, size), SpecialTokens(start=2, eos=2, pad=2)),
    "distilgpt2": (lambda size: gpt2(1, size), SpecialTokens(start=2, eos=2, pad=2)),
    "bert": (lambda size: BertLMHeadModel(BertConfig(vocab_size=size, **SMALL)), SpecialTokens(1, 2, 3)),
    "roberta": (lambda size: RobertaForCausalLM(RobertaConfig(vocab_size=size, pad_token_id=3, **SMALL)),
                SpecialTokens(1, 2, 3)),
}  # fmt: skip


PAIRS = [(e, d) for e in ENCODERS for d in DECODERS if d != "distilgpt2"] + [("vit", "distilgpt2")]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_pair(encoder: str, decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three captions an image in one row as each alone; every weight learns; the same tokens after saving."""
    torch.manual_seed(0)
    tiny_encoder(encoder).save_pretrained(tmp_path / encoder)
    make, tokens = DECODERS[decoder]
    make(60).save_pretrained(tmp_path / decoder)
    model = build_captioner(str(tmp_path / encoder), str(tmp_path / decoder), None, 60, tokens, seed=0)
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(4, 60, (6, 5))
    labels[:, -1] = tokens.eos
    items = [{"pixel_values": pixels[i].numpy(), "labels": labels[3 * i : 3 * i + 3].numpy()} for i in range(2)]
    batch = CaptionCollator(tokens, first_position(model.decoder))(items)
    targets = batch.pop("labels")
    attended: list[str] = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, *rest, **more: (
            attended.append(f"{q.shape[-2]}x{k.shape[-2]}"),
            attention(q, k, v, *rest, **more),
        )[1],
    )
    length, states = targets.shape[1], model.eval().encoder(pixel_values=pixels).last_hidden_state.shape[1]
    assert attended, "SDPA in the encoder"
    attended.clear()
    logits = model(**batch).logits[:, :15].reshape(6, 5, -1)
    assert {f"{length}x{length}", f"{length}x{states}"} <= set(attended), "and in both attentions of the decoder"
    inputs = torch.cat([torch.full((6, 1), tokens.start), labels[:, :-1]], dim=1)
    expected = [model(pixel_values=pixels[i // 3][None], decoder_input_ids=inputs[i][None]).logits for i in range(6)]
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=1e-4)

    begun = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3, fused=True)
    losses = []
    for _ in range(3):
        loss = caption_loss(model(**batch).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    silent = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert silent == set(), "a parameter that waits for a gradient is an error under DDP"
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(torch.equal(begun[n], v) for n, v in model.state_dict().items() if n in trained and v.numel() > 100)

    model.generation_config = generation_config(GenerationOptions(max_length=8), tokens)
    model.save_pretrained(tmp_path / "saved")
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved").eval()
    made = model.eval().generate(pixels)
    assert torch.equal(loaded.generate(pixels), made)
    assert (made[:, 0] == tokens.start).all()


def save_processor(encoder: str, folder: Path) -> None:
    """As these encoders have it on the hub, but for the size."""
    from transformers import BitImageProcessorPil
    from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = {"height": 32, "width": 32}
    made = {
        "dinov2": lambda: BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=size, resample=3),
        "beit": lambda: BeitImageProcessorPil(size=size, do_center_crop=False),
        "siglip": lambda: SiglipImageProcessorPil(size=size),
    }
    made[encoder]().save_pretrained(folder)


@pytest.mark.parametrize(
    ("encoder", "decoder", "special"),
    [
        ("dinov2", "bert", {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}),
        ("beit", "gpt2", {"eos_token": "<end>"}),
        pytest.param(
            "siglip", "roberta", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, marks=pytest.mark.slow
        ),
    ],
)
def test_by_the_commands(encoder: str, decoder: str, special: dict[str, str], sample_dir: Path, tmp_path: Path) -> None:
    """preprocess, finetune, and loading: tokenizers with and without BOS, EOS and PAD of their own."""
    tiny_encoder(encoder).save_pretrained(tmp_path / "encoder")
    save_processor(encoder, tmp_path / "encoder")
    captions = (sample_dir / "captions.txt").read_text().splitlines()
    plain = train_tokenizer(captions, 300).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    tokenizer.add_special_tokens(special)
    ids = special_tokens_of(tokenizer)
    model = DECODERS[decoder][0](len(tokenizer))
    model.config.pad_token_id = ids.pad
    model.save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    preprocess(
        PreprocessOptions(
            annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=tmp_path / "cache", num_workers=1,
            encoder=str(tmp_path / "encoder"), decoder=str(tmp_path / "decoder"), max_length=24,
        )
    )  # fmt: skip
    finetune(
        FinetuneOptions(
            cache=tmp_path / "cache",
            output_dir=tmp_path / "model",
            max_steps=2,
            generation=GenerationOptions(num_beams=1, max_length=24),
        )
    )
    captioner = load_captioner(str(tmp_path / "model"), "cpu")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (settings["decoder_start_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (
        ids.start, ids.eos, ids.pad,
    )  # fmt: skip
    assert len(captioner.decode(captioner.model.generate(torch.randn(2, 3, 32, 32)))) == 2
