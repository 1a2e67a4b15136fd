"""Captions and their scores against stock `generate` and a teacher-forced forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.cache import open_cache
from toolkit.decoding import caption_lengths, generate_captions
from toolkit.modeling import Captioner, SpecialTokens, load_captioner
from toolkit.options import GenerationOptions


@pytest.fixture(scope="module")
def captioner(model_dir: Path) -> Captioner:
    return load_captioner(str(model_dir), device="cpu")


@pytest.fixture(scope="module")
def pixels(cache_dir: Path) -> torch.Tensor:
    """uint8 (6, 3, 64, 64)."""
    reader = open_cache(cache_dir)["train"]
    return torch.stack([torch.from_numpy(reader[i]["pixel_values"].copy()) for i in range(6)])


def forced_score(captioner: Captioner, pixels: torch.Tensor, tokens: list[int]) -> float:
    """Mean log-probability of a token row (start token first), one forward pass."""
    row = torch.tensor([tokens])
    with torch.no_grad():
        logits = captioner.model(pixel_values=captioner.normalizer(pixels)[None], decoder_input_ids=row[:, :-1]).logits
    return logits.log_softmax(-1)[0].gather(1, row[0, 1:, None]).mean().item()


OPTIONS = [
    GenerationOptions(num_beams=4, max_length=24),
    GenerationOptions(num_beams=3, max_length=24, length_penalty=0.5, early_stopping="true", no_repeat_ngram_size=0),
    GenerationOptions(num_beams=1, max_length=24),
    GenerationOptions(num_beams=4, max_length=24, num_captions=3),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_captions_and_scores(captioner: Captioner, pixels: torch.Tensor, options: GenerationOptions) -> None:
    decoded = generate_captions(captioner, pixels, options)
    arguments = {} if options.num_beams == 1 else {
        "length_penalty": options.length_penalty, "early_stopping": options.early_stopping == "true",
    }  # fmt: skip
    stock = captioner.model.generate(
        pixel_values=captioner.normalizer(pixels), num_beams=options.num_beams, max_length=options.max_length,
        no_repeat_ngram_size=options.no_repeat_ngram_size, num_return_sequences=options.num_captions, do_sample=False,
        **{"length_penalty": 1.0, "early_stopping": False, **arguments},
    )  # fmt: skip
    texts = [t.strip() for t in captioner.tokenizer.batch_decode(stock, skip_special_tokens=True)]
    n = options.num_captions
    assert [d.captions for d in decoded] == [tuple(texts[i : i + n]) for i in range(0, len(texts), n)]
    eos = captioner.model.generation_config.eos_token_id
    for i, row in enumerate(stock.tolist()):
        end = row.index(eos, 1) + 1 if eos in row[1:] else len(row)
        assert decoded[i // n].scores[i % n] == pytest.approx(
            forced_score(captioner, pixels[i // n], row[:end]), abs=1e-4
        )
        assert decoded[i // n].ended[i % n] == (eos in row[1:])


def test_sampling_is_seeded(captioner: Captioner, pixels: torch.Tensor) -> None:
    options = GenerationOptions(num_beams=1, max_length=16, sample=True, num_captions=3, seed=1)
    first, again = (generate_captions(captioner, pixels, options) for _ in range(2))
    assert first == again
    assert first != generate_captions(captioner, pixels, replace(options, seed=2))
    assert all(len(d.captions) == 3 for d in first)


def test_a_batch_changes_nothing(captioner: Captioner, pixels: torch.Tensor) -> None:
    options = GenerationOptions(max_length=24)
    together = generate_captions(captioner, pixels, options)
    alone = [generate_captions(captioner, pixels[i : i + 1], options)[0] for i in range(len(pixels))]
    assert [d.captions for d in together] == [d.captions for d in alone]


def test_lengths_look_for_eos_behind_the_start() -> None:
    rows = torch.tensor([[5, 6, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]])  # the start token is cut off already
    lengths, ended = caption_lengths(rows, SpecialTokens(start=0, eos=0, pad=0))
    assert lengths.tolist() == [3, 1, 4]
    assert ended.tolist() == [True, True, False]
