"""Several captions an image, encoded once: the loss and every gradient of the naive per-caption computation."""

from __future__ import annotations

import copy

import pytest
import torch

from toolkit.batches import CaptionCollator, caption_loss
from toolkit.grouped import grouped_captions
from toolkit.modeling import SpecialTokens, build_captioner

TOKENS = SpecialTokens(start=0, eos=0, pad=0)


def tiny_model(dtype: torch.dtype) -> torch.nn.Module:
    return build_captioner("", "", "tiny", vocab_size=300, tokens=TOKENS, seed=0).to(dtype).train()


def batch(captions: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Images with the given numbers of captions, of random lengths."""
    rng = torch.Generator().manual_seed(seed)
    items = []
    for number in captions:
        labels = torch.full((number, 12), -100)
        for row in labels:
            length = int(torch.randint(2, 11, (), generator=rng))
            row[:length] = torch.randint(1, 300, (length,), generator=rng)
            row[length] = TOKENS.eos
        items.append({"pixel_values": torch.randn(3, 64, 64, generator=rng).numpy(), "labels": labels.int().numpy()})
    return CaptionCollator(TOKENS)(items)


def naive_loss(model: torch.nn.Module, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each caption alone with its own copy of its image, summed; transformers shifts the labels itself."""
    images, rows = len(data["pixel_values"]), len(data["labels"])
    total, tokens = torch.zeros((), dtype=model.dtype), 0
    for i, labels in enumerate(data["labels"]):
        count = int((labels != -100).sum())
        if count:
            pixels = data["pixel_values"][i // (rows // images)].to(model.dtype)[None]
            total = total + model(pixel_values=pixels, labels=labels[None]).loss * count
            tokens += count
    return total / tokens


@pytest.mark.parametrize("captions", [[5, 5], [1, 4, 2], [1, 1]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_loss_and_gradients_equal_the_naive_ones(captions: list[int], dtype: torch.dtype, tolerance: float) -> None:
    model = tiny_model(dtype)
    data = batch(captions)
    plain = copy.deepcopy(model)
    naive = naive_loss(plain, data)
    naive.backward()
    with grouped_captions(model):
        logits = model(pixel_values=data["pixel_values"].to(dtype), decoder_input_ids=data["decoder_input_ids"]).logits
    flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data["labels"].flatten(), reduction="sum")
    loss = flat / (data["labels"] != -100).sum()
    loss.backward()
    assert abs(loss.item() - naive.item()) < tolerance
    assert abs(caption_loss(logits, data["labels"]).item() - naive.item()) < 1e-4  # float32 inside
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert "pooler" in name
            continue
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=tolerance, msg=name)


def test_generation_is_untouched_and_nothing_stays_behind() -> None:
    model = tiny_model(torch.float32).eval()
    pixels = batch([1, 1, 1])["pixel_values"]
    before = model.generate(pixel_values=pixels, max_length=12, num_beams=3)
    config = model.config.to_json_string()
    with grouped_captions(model):
        within = model.generate(pixel_values=pixels, max_length=12, num_beams=3)
    assert torch.equal(before, within)
    assert model.config.to_json_string() == config
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {"sdpa"}
