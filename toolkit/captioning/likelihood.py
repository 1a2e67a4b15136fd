"""How probable a captioner finds captions that are given: the score that it would have given them itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.cache.schema import Cache
from toolkit.captioning.base import Captioner
from toolkit.captioning.inputs import check_pixels
from toolkit.data.pixels import centre
from toolkit.errors import ModelError
from toolkit.models.loading import OURS
from toolkit.models.twins import turn
from toolkit.runtime.progress import Progress

IMAGES = 16  # a batch


def split_log_probs(captioner: Captioner, name: str, cache: Cache, split: str) -> list[list[float]]:
    """For each row of a cache's split the mean token log-probability of each of its captions, in nats, the end of text
    counted as a token.

    Args:
        name: of the model, for messages.

    Raises:
        ModelError: the model is none whose decoder can be asked, or prepares images in another way than the cache's.
    """
    if captioner.kind != OURS:
        raise ModelError(
            f"--model {name}: a model of type {captioner.kind} is not asked how probable captions are; name a "
            "VisionEncoderDecoderModel, or leave it out."
        )
    check_pixels(captioner, name, cache, str(cache.directory))
    reader, found = cache[split], list[list[float]]()
    captions = reader.column("captions")
    with Progress("captions", len(reader)) as progress:
        for start in range(0, len(reader), IMAGES):
            rows = range(start, min(start + IMAGES, len(reader)))
            pixels = np.stack([centre(np.asarray(reader[row]["pixel_values"]), *cache.seen) for row in rows])
            found += log_probs(captioner, torch.from_numpy(pixels), [captions[row] for row in rows])
            progress.update(len(rows))
    return found


def log_probs(captioner: Captioner, pixels: torch.Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
    """The mean token log-probability of each caption of each image; each image is encoded once.

    Args:
        pixels: uint8 (n, C, H, W).
        captions: of each image; longer ones than the decoder has positions for are cut.
    """
    flat = [caption for of_image in captions for caption in of_image]
    if not flat:
        return [[] for _ in captions]
    model, tokens = captioner.model, model_tokens(captioner, flat)
    config = model.generation_config
    width = max(map(len, tokens))
    inputs = torch.full((len(flat), width), int(config.pad_token_id))
    labels = torch.full((len(flat), width), IGNORE_INDEX)
    for i, ids in enumerate(tokens):
        labels[i, : len(ids)] = torch.tensor(ids)
        inputs[i, : len(ids)] = torch.tensor([int(config.decoder_start_token_id), *ids[:-1]])
    image_of = torch.tensor([i for i, of_image in enumerate(captions) for _ in of_image])
    with torch.inference_mode(), turn(model):
        encoded = model.encoder(pixel_values=captioner.normalizer(pixels.to(captioner.device)).to(model.dtype))
        states = encoded.last_hidden_state[image_of.to(captioner.device)]
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=inputs.to(captioner.device),
            use_cache=False,
        ).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels.to(captioner.device), ignore_index=IGNORE_INDEX, reduction="none"
        ).cpu()
    means = (-losses.sum(1) / (labels != IGNORE_INDEX).sum(1)).tolist()
    values = iter(means)
    return [[next(values) for _ in of_image] for of_image in captions]


def model_tokens(captioner: Captioner, captions: Sequence[str]) -> list[list[int]]:
    """The tokens of captions by the model's own tokenizer, each with an EOS at its end, as it was trained on them."""
    with turn(captioner.model):
        encoded = captioner.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
    eos = captioner.model.generation_config.eos_token_id
    end = int(eos[0] if isinstance(eos, (list, tuple)) else eos)
    longest = getattr(captioner.model.config.decoder, "max_position_embeddings", None) or 10**6
    return [[*ids[: longest - 3], end] for ids in encoded]
