"""Tiny captioners with random weights, and generation settings for them."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from transformers import (
    BertConfig,
    GenerationConfig,
    GPT2Config,
    RobertaConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from toolkit.models.special_tokens import first_position


def random_model(rng: random.Random) -> VisionEncoderDecoderModel:
    """Start, EOS and pad the same id or not; hidden sizes that differ are joined by a projection."""
    torch.manual_seed(rng.randrange(10**6))
    vocabulary, hidden, wide = rng.choice([13, 30, 60]), rng.choice([16, 24, 32]), rng.choice([0.2, 0.3, 0.4])
    encoder = ViTConfig(hidden_size=rng.choice([16, 32]), num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, image_size=16, patch_size=8, initializer_range=0.2)  # fmt: skip
    small = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = rng.choice([
        GPT2Config(vocab_size=vocabulary, n_embd=hidden, n_layer=2, n_head=2, n_positions=40, initializer_range=wide),
        BertConfig(vocab_size=vocabulary, max_position_embeddings=40, initializer_range=wide, **small),
        RobertaConfig(vocab_size=vocabulary, max_position_embeddings=42, initializer_range=wide, pad_token_id=1, **small),
    ])  # fmt: skip
    model = VisionEncoderDecoderModel(config=VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    eos = rng.randrange(vocabulary)
    start, pad = rng.choice([(eos, eos), (rng.randrange(vocabulary), rng.randrange(vocabulary))])
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = start
        config.eos_token_id, config.pad_token_id = eos, pad
    return model.eval()


def random_settings(rng: random.Random) -> GenerationConfig:
    beams = rng.choice([1, 2, 3, 4, 5])
    settings: dict[str, Any] = {
        "num_beams": beams, "do_sample": False, "num_return_sequences": rng.randint(1, beams),
        "no_repeat_ngram_size": rng.choice([0, 0, 2, 3]), "repetition_penalty": rng.choice([1.0, 1.0, 1.3, 0.8]),
    }  # fmt: skip
    if beams > 1:
        settings["length_penalty"] = rng.choice([1.0, 2.0, 0.0, -1.0, 0.5])
        settings["early_stopping"] = rng.choice([True, False, "never"])
    settings.update(rng.choice([{"max_length": rng.randint(2, 24)}, {"max_new_tokens": rng.randint(1, 20)}, {}]))
    settings.update(rng.choice([{"min_length": rng.randint(1, 10)}, {"min_new_tokens": rng.randint(1, 10)}, {}]))
    return GenerationConfig(**settings)


def complete(model: VisionEncoderDecoderModel, config: GenerationConfig) -> GenerationConfig:
    full = copy.deepcopy(config)
    full.update(**model.generation_config.to_dict(), defaults_only=True)
    full.update(length_penalty=1.0, defaults_only=True)
    return full


def forced_score(model: VisionEncoderDecoderModel, inputs: torch.Tensor, tokens: list[int], given: int = 1) -> float:
    """Mean log-probability of a token row (start token first) behind the first `given`, one forward pass."""
    row = torch.tensor([tokens])
    first = first_position(model.decoder)
    positions = torch.arange(first, first + len(tokens) - 1)[None]
    for i in range(given if first else 0):  # in a prompt RoBERTa does not count padding
        positions[0, i] -= tokens[:i].count(first - 1)
    if first:  # as RoBERTa does it when it is given one token after another
        positions = positions.masked_fill(row[:, :-1] == first - 1, first - 1)
    with torch.no_grad():
        logits = model(pixel_values=inputs[None], decoder_input_ids=row[:, :-1], decoder_position_ids=positions).logits
    return logits.log_softmax(-1)[0].gather(1, row[0, 1:, None])[given - 1 :].mean().item()
