"""Captions from pixels. Knows no files: tensors in, `Decoded` out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toolkit.modeling import Captioner, SpecialTokens, generation_config
from toolkit.options import GenerationOptions


@dataclass(frozen=True)
class Decoded:
    """The captions of one image.

    Attributes:
        captions: `num_captions` of them, best first.
        scores: mean log-probability of each one's tokens, EOS included, in nats; 0 is certainty.
        ended: whether each ended with EOS, or ran into `max_length`.
    """

    captions: tuple[str, ...]
    scores: tuple[float, ...]
    ended: tuple[bool, ...]


def generate_captions(captioner: Captioner, pixels: torch.Tensor, options: GenerationOptions) -> list[Decoded]:
    """One `Decoded` an image.

    Args:
        pixels: uint8 (n, C, H, W), as `PixelTransform` makes them.
    """
    model = captioner.model
    settings = model.generation_config
    tokens = SpecialTokens(settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id)
    config = generation_config(options, tokens)
    if options.sample:
        torch.manual_seed(options.seed)
    beams = options.num_beams > 1 and not options.sample
    with torch.inference_mode():
        normalized = captioner.normalizer(pixels.to(captioner.device)).to(model.dtype)
        output = model.generate(
            pixel_values=normalized,
            generation_config=config,
            return_dict_in_generate=True,
            output_scores=beams,
            output_logits=not beams,
        )
    sequences = output.sequences[:, 1:]  # the start token is nobody's caption
    lengths, ended = caption_lengths(sequences, tokens)
    if beams:
        # A beam's score is its log-probability over length ** length_penalty.
        scores = output.sequences_scores.float() * lengths.float() ** (options.length_penalty - 1)
    else:
        # What the model thinks of the token, not what was left of it after top-k or banned n-grams.
        steps = [
            logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0]
            for logits, token in zip(output.logits, sequences.T, strict=False)
        ]
        inside = torch.arange(len(steps), device=lengths.device) < lengths[:, None]
        scores = torch.stack(steps, dim=1).masked_fill(~inside, 0).sum(1) / lengths
    texts = captioner.decode(sequences)
    n = options.num_captions
    return [
        Decoded(tuple(texts[i : i + n]), tuple(scores[i : i + n].tolist()), tuple(ended[i : i + n].tolist()))
        for i in range(0, len(texts), n)
    ]


def caption_lengths(sequences: torch.Tensor, tokens: SpecialTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens up to and including the first EOS, and whether there is one: int64 (n,), bool (n,).

    Args:
        sequences: int64 (n, T) without the start token, which may be the same id as EOS.
    """
    is_eos = sequences == tokens.eos
    ended = is_eos.any(dim=1)
    first = is_eos.int().argmax(dim=1) + 1
    return torch.where(ended, first, sequences.shape[1]), ended
