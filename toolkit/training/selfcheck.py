"""A check of model, labels and loss on one batch, before hours are spent on training."""

from __future__ import annotations

import math
from typing import Any

import torch

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.errors import RunError
from toolkit.models.precision import PixelNormalizer
from toolkit.records import SpecialTokens
from toolkit.training.collator import caption_loss


def check_training(
    model: Any, batch: dict[str, torch.Tensor], normalizer: PixelNormalizer, tokens: SpecialTokens, fresh: bool
) -> float:
    """Runs one batch through the model; takes a second or two.

    Args:
        batch: from `CaptionCollator`; a few images are enough.
        fresh: the decoder has random weights, so its loss must be near ln(vocabulary).

    Returns:
        The loss of the batch, in nats a token.

    Raises:
        RunError: a caption has no EOS to learn; the decoder inputs are not the labels shifted right once; the loss is
            not finite, or differs from that of a caption alone; an untrained decoder's is not ln(vocabulary); or the
            decoder's output does not depend on the image.
    """
    labels, inputs, positions = (batch[name] for name in ("labels", "decoder_input_ids", "decoder_position_ids"))
    used = labels != IGNORE_INDEX
    starts = used & (positions == positions[0, 0])
    ends = used & ~(used & ~starts).roll(-1, 1)
    if not bool((labels[ends] == tokens.eos).all()) or int(ends.sum()) != int(starts.sum()):
        raise RunError(
            "self-check: not every caption's labels end with one EOS; rebuild the cache with `toolkit preprocess`."
        )
    expected = torch.where(starts, tokens.start, labels.roll(1, 1))
    if not torch.equal(inputs[used], expected[used]):
        raise RunError("self-check: decoder inputs are not the labels shifted right once; this is a bug of toolkit's.")
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    pixels = normalizer(batch["pixel_values"].to(device))
    decoder_inputs = {name: value.to(device) for name, value in batch.items() if name.startswith("decoder_")}
    with torch.inference_mode():
        logits = model(pixel_values=pixels, **decoder_inputs).logits
        blind = model(pixel_values=torch.zeros_like(pixels), **decoder_inputs).logits
        loss = caption_loss(logits, labels.to(device)).item()
        # transformers' own loss of one caption alone, with the labels shifted there: the last caption of the first image,
        # which has others before it in its row.
        last = slice(int(starts[0].nonzero()[-1]), int(ends[0].nonzero()[-1]) + 1)
        theirs = model(pixel_values=pixels[:1], labels=labels[:1, last].to(device)).loss.item()
        ours = caption_loss(logits[:1, last], labels[:1, last].to(device)).item()
    model.train(was_training)
    if not math.isfinite(loss):
        raise RunError(f"self-check: the loss of a first batch is {loss}; try --precision fp32, or another decoder.")
    if abs(ours - theirs) > 1e-3 * max(1.0, abs(theirs)):
        raise RunError(
            f"self-check: the loss of a caption is {ours:.4f} here and {theirs:.4f} in transformers; either the decoder "
            "can't keep several captions in a row apart (GPT-2- and BERT-likes can), or this release shifts labels twice."
        )
    if fresh and abs(loss - math.log(logits.shape[-1])) > 0.15 * math.log(logits.shape[-1]):
        raise RunError(
            f"self-check: an untrained decoder's loss is {loss:.3f}, not near ln({logits.shape[-1]}) = "
            f"{math.log(logits.shape[-1]):.3f}; its weights are not random."
        )
    if torch.equal(logits, blind):
        raise RunError(
            "self-check: the decoder gives the same output for any image; name a --decoder with cross-attention."
        )
    return loss
