"""Captions and their scores against stock `generate` and a teacher-forced forward pass."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_models import complete, forced_score, random_model, random_settings
from transformers import GenerationConfig, VisionEncoderDecoderModel

from toolkit.cache.schema import open_cache
from toolkit.captioning import generate as decoding
from toolkit.captioning import kv_cache as steps
from toolkit.captioning.beam_search import Found
from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.captioning.generate import caption_lengths, decode, stock, unsupported
from toolkit.options import GenerationOptions
from toolkit.records import SpecialTokens


@pytest.fixture(scope="module")
def captioner(model_dir: Path) -> Captioner:
    return load_captioner(str(model_dir), device="cpu")


@pytest.fixture(scope="module")
def pixels(cache_dir: Path) -> torch.Tensor:
    """uint8 (6, 3, 64, 64)."""
    reader = open_cache(cache_dir)["train"]
    return torch.stack([torch.from_numpy(reader[i]["pixel_values"].copy()) for i in range(6)])


# ---- a trained captioner --------------------------------------------------------------------------------------------

OPTIONS = [
    GenerationOptions(),
    GenerationOptions(num_beams=4, max_length=24),
    GenerationOptions(num_beams=3, max_length=24, length_penalty=0.5, early_stopping="true", no_repeat_ngram_size=0),
    GenerationOptions(num_beams=1, max_length=24),
    GenerationOptions(num_beams=4, max_length=24, num_captions=3),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_captions_and_scores(captioner: Captioner, pixels: torch.Tensor, options: GenerationOptions) -> None:
    decoded = captioner.generate(pixels, options)
    # stock generate begins with the model's own settings, too
    wanted = captioner.model.generate(pixel_values=captioner.normalizer(pixels), **options.given())
    texts = [t.strip() for t in captioner.tokenizer.batch_decode(wanted, skip_special_tokens=True)]
    n = options.num_captions or 1
    assert [d.captions for d in decoded] == [tuple(texts[i : i + n]) for i in range(0, len(texts), n)]
    eos = captioner.model.generation_config.eos_token_id
    for i, row in enumerate(wanted.tolist()):
        end = row.index(eos, 1) + 1 if eos in row[1:] else len(row)
        inputs = captioner.normalizer(pixels[i // n])
        assert decoded[i // n].scores[i % n] == pytest.approx(
            forced_score(captioner.model, inputs, row[:end]), abs=1e-4
        )
        assert decoded[i // n].ended[i % n] == (eos in row[1:])


def test_sampling_is_seeded(captioner: Captioner, pixels: torch.Tensor) -> None:
    options = GenerationOptions(max_length=16, sample=True, num_captions=5, seed=1)  # more than there would be beams
    first, again = (captioner.generate(pixels, options) for _ in range(2))
    assert first == again
    assert first != captioner.generate(pixels, replace(options, seed=2))
    assert all(len(d.captions) == 5 and list(d.scores) == sorted(d.scores, reverse=True) for d in first)


@pytest.mark.parametrize("options", [GenerationOptions(max_length=24), GenerationOptions(num_beams=1, max_length=24),
                                     GenerationOptions(max_length=24, sample=True, num_captions=2)])  # fmt: skip
def test_a_batch_changes_nothing(captioner: Captioner, pixels: torch.Tensor, options: GenerationOptions) -> None:
    together = captioner.generate(pixels, options)
    alone = [captioner.generate(pixels[i : i + 1], options)[0] for i in range(len(pixels))]
    turned = captioner.generate(pixels.flip(0), options)[::-1]
    for other in (alone, turned):
        assert [(d.captions, d.ended) for d in other] == [(d.captions, d.ended) for d in together]
        assert [s for d in other for s in d.scores] == pytest.approx([s for d in together for s in d.scores], abs=1e-5)


def test_the_model_is_left_as_it_was(captioner: Captioner, pixels: torch.Tensor, monkeypatch: Any) -> None:
    """Packed weights follow the weights; stock `generate` finds its own attention afterwards."""
    monkeypatch.setattr(steps, "PACK_FROM", 1)
    own = copy.deepcopy(captioner)
    options = GenerationOptions(max_length=12, num_beams=2)
    modes = [module.config._attn_implementation for module in own.model.modules() if hasattr(module, "config")]
    before = own.generate(pixels, options)
    assert [m.config._attn_implementation for m in own.model.modules() if hasattr(m, "config")] == modes
    assert not any("forward" in vars(module) for module in own.model.modules())
    with torch.no_grad():
        own.model.decoder.transformer.h[0].mlp.c_fc.weight.mul_(-1)
    after = own.generate(pixels, options)
    assert after != before
    monkeypatch.setattr(steps, "PACK_FROM", 1 << 60)
    plain = own.generate(pixels, options)
    assert [d.captions for d in after] == [d.captions for d in plain]


# ---- random models and settings -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default", "ignore:Unfeasible length constraints")
@pytest.mark.parametrize("seeds", [range(i, i + 50) for i in range(0, 200, 50)], ids=str)
def test_tokens_of_generate(seeds: range) -> None:
    ended = 0
    for seed in seeds:
        rng = random.Random(seed)
        model, config = random_model(rng), random_settings(rng)
        inputs = torch.randn(rng.randint(1, 6), 3, 16, 16) * 2
        if seed % 3 == 0:  # where nothing is ever as good as equal
            model, inputs = model.double(), inputs.double()
        full = complete(model, config)
        assert unsupported(model, full) is None
        with torch.no_grad():
            wanted = stock(model, inputs, full)
        with torch.no_grad():
            features = model.encoder(pixel_values=inputs).last_hidden_state if seed % 2 else None
        found = decode(model, config, inputs if features is None else None, features)
        where = f"seed {seed}: {config.to_diff_dict()}"
        assert [image.tokens for image in found] == [image.tokens for image in wanted], where
        assert [image.ended for image in found] == [image.ended for image in wanted], where
        start = model.generation_config.decoder_start_token_id
        score = forced_score(model, inputs[0], [start, *found[0].tokens[0]])
        assert found[0].scores[0] == pytest.approx(score, abs=1e-4), where
        ended += sum(sum(image.ended) for image in found)
    assert ended > 20  # finished images matter


class AsOnCuda(decoding.Engine):
    """Every step of all slots and positions, asked every fourth time; what stands for the graph is the step itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.captures, self.every = True, 4


def capture(step: Any, state: list[torch.Tensor]) -> SimpleNamespace:
    before = [tensor.clone() for tensor in state]
    step()
    for tensor, old in zip(state, before, strict=True):
        tensor.copy_(old)
    return SimpleNamespace(replay=step)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
def test_steps_of_one_shape(monkeypatch: Any) -> None:
    """What a CUDA graph would replay gives the same, though it goes on with images that are done and empty slots."""
    for seed in range(400, 440):
        rng = random.Random(seed)
        model, config = random_model(rng), random_settings(rng)
        config.update(max_length=12, defaults_only=True)
        inputs = torch.randn(5, 3, 16, 16) * 2

        plain = decode(model, config, inputs)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "Engine", AsOnCuda)
            patch.setattr(decoding, "_capture", capture)
            decoding._engines.clear()
            static = decode(model, config, inputs)
        assert [image.tokens for image in static] == [image.tokens for image in plain], seed
        assert [image.scores for image in static] == [pytest.approx(image.scores, abs=1e-4) for image in plain], seed


def asked(monkeypatch: Any, model: VisionEncoderDecoderModel, **settings: Any) -> tuple[list[Found], list[str]]:
    """Captions of two images, and what was said."""
    said: list[str] = []
    monkeypatch.setattr(decoding, "say", said.append)
    monkeypatch.setattr(decoding, "_said", set())
    inputs = torch.randn(2, 3, 16, 16)
    config = GenerationConfig(**{"max_length": 6, **settings})
    for _ in range(2):
        found = decode(model, config, inputs)
    return found, said


@pytest.mark.parametrize("settings", [
    {"num_beams": 2, "suppress_tokens": [3]}, {"num_beams": 2, "do_sample": True}, {"num_beams": 20},
    {"num_beams": 1, "forced_eos_token_id": 0}, {"num_beams": 2, "renormalize_logits": True},
])  # fmt: skip
def test_generate_itself_does_the_rest(settings: dict[str, Any], monkeypatch: Any) -> None:
    model = random_model(random.Random(5))
    found, said = asked(monkeypatch, model, **settings)
    assert len(said) == 1
    assert said[0].startswith("Captions come from transformers' own generate, which is slower")
    assert len(found) == 2
    assert all(len(image.tokens) == 1 for image in found)
    assert asked(monkeypatch, model, num_beams=2, typical_p=1.0)[1] == []


def test_lengths_look_for_eos_behind_the_start() -> None:
    rows = torch.tensor([[5, 6, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]])  # the start token is cut off already
    lengths, ended = caption_lengths(rows, SpecialTokens(start=0, eos=0, pad=0))
    assert lengths.tolist() == [3, 1, 4]
    assert ended.tolist() == [True, True, False]
