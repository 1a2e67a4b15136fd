"""Which token comes next: against transformers' own processors."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process as stock

from toolkit.captioning.beam_search import draw, process, warp


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [1.0, 1.4, 0.7])
def test_processors(size: int, penalty: float) -> None:
    """Images of different ages in one batch; what stands behind their age is noise."""
    torch.manual_seed(size)
    tokens = torch.randint(0, 4, (5, 3, 9))
    length = torch.tensor([1, 2, 4, 7, 9])
    scores = torch.randn(5, 3, 12)
    config = GenerationConfig(repetition_penalty=penalty, no_repeat_ngram_size=size, min_length=5, eos_token_id=2)
    found = process(scores.clone(), tokens, length, config)
    processors = LogitsProcessorList([stock.RepetitionPenaltyLogitsProcessor(penalty)])
    if size:
        processors.append(stock.NoRepeatNGramLogitsProcessor(size))
    processors.append(stock.MinLengthLogitsProcessor(5, torch.tensor([2])))
    for image, n in enumerate(length.tolist()):
        assert torch.equal(found[image], processors(tokens[image, :, :n], scores[image].clone()))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("top_k", [0, 7, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.2])
def test_probabilities_to_draw_from(temperature: float, top_k: int, top_p: float) -> None:
    torch.manual_seed(top_k)
    scores = torch.randn(4, 3, 40) * 3
    processors = LogitsProcessorList([stock.TemperatureLogitsWarper(temperature)])
    if top_k:
        processors.append(stock.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(stock.TopPLogitsWarper(top_p))
    wanted = processors(None, scores.flatten(0, 1).clone()).softmax(-1)
    config = GenerationConfig(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.allclose(warp(scores, config).flatten(0, 1), wanted, atol=1e-7)


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    random = ((torch.arange(4000) + 0.5) / 4000).view(1, -1, 1)  # each share of [0, 1) alike
    tokens = draw(probabilities.expand(1, 4000, -1), random)
    assert torch.bincount(tokens.flatten(), minlength=6).tolist() == [0, 2000, 0, 1000, 1000, 0]
    edge = torch.tensor([1 - 2**-24]).view(1, 1, 1)  # the largest number that is ever drawn
    assert draw(probabilities.expand(1, 1, -1), edge).item() == 4
