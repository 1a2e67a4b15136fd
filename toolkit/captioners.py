"""Any captioner, warm: `load_captioner("model").caption(["a.jpg", "b.png"])`.

Each type of model has its way to captions, all with one signature (`GENERATORS`): ours is `decoding.generate_captions`;
BLIP, GIT and BLIP-2 go through the `generate` of transformers with their own image processor and tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from toolkit import decoding, modeling
from toolkit.decoding import Decoded, caption_lengths
from toolkit.errors import ImageError, InputError
from toolkit.hashing import hash_hex, hash_int
from toolkit.images import read_image
from toolkit.modeling import OURS, SpecialTokens, generation_config, silence_transformers
from toolkit.options import GenerationOptions
from toolkit.records import CaptionResult

Picture = str | Path | bytes | Image.Image | np.ndarray


def generate_captions(captioner: modeling.Captioner, pixels: torch.Tensor, options: GenerationOptions) -> list[Decoded]:
    """One `Decoded` an image, whatever the model; what it is does not depend on the other images.

    Args:
        pixels: (n, C, H, W) as `captioner.transform` makes them, uint8 for most.
    """
    return GENERATORS[captioner.model.config.model_type](captioner, pixels, options)


def stock_captions(captioner: modeling.Captioner, pixels: torch.Tensor, options: GenerationOptions) -> list[Decoded]:
    """Captions by the model's own `generate`.

    The prompt (a start token; with BLIP-2 places for the image before it) counts as one token of `max_length`.
    """
    if not options.sample:
        return _stock(captioner, pixels, options)
    options = replace(options, num_beams=1)  # tokens are drawn, not searched for
    found: list[Decoded] = []
    for image in pixels.split(1):  # alone, since what is drawn would depend on the others
        torch.manual_seed(hash_int(hash_hex(str(options.seed), image.contiguous().numpy())) >> 1)
        found += _stock(captioner, image, options)
    return found


def _stock(captioner: modeling.Captioner, pixels: torch.Tensor, options: GenerationOptions) -> list[Decoded]:
    model = captioner.model
    settings = model.generation_config
    tokens = SpecialTokens(settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id)
    config = generation_config(options, tokens)
    config.max_length, config.max_new_tokens = None, options.max_length - 1
    beams = options.num_beams > 1
    with torch.inference_mode():
        output = model.generate(
            pixel_values=captioner.normalizer(pixels.to(captioner.device)).to(model.dtype),
            generation_config=config,
            return_dict_in_generate=True,
            output_scores=beams,
            output_logits=not beams,
        )
    prompt = 1 + (model.config.num_query_tokens if model.config.model_type == "blip-2" else 0)
    sequences = output.sequences[:, prompt:]
    lengths, ended = caption_lengths(sequences, tokens)
    if beams:  # a beam's score is its log-probability over length ** length_penalty
        scores = output.sequences_scores.float() * lengths.float() ** (options.length_penalty - 1)
    else:
        logits = torch.stack(output.logits, dim=1).float()  # (n, T, vocabulary)
        chosen = logits.log_softmax(-1).gather(2, sequences[:, : logits.shape[1], None])[..., 0]
        inside = torch.arange(chosen.shape[1], device=lengths.device) < lengths[:, None]
        scores = chosen.masked_fill(~inside, 0).sum(1) / lengths
    texts, n = captioner.decode(sequences), options.num_captions
    return [
        Decoded(tuple(texts[i : i + n]), tuple(scores[i : i + n].tolist()), tuple(ended[i : i + n].tolist()))
        for i in range(0, len(texts), n)
    ]


GENERATORS: dict[str, Callable[[modeling.Captioner, torch.Tensor, GenerationOptions], list[Decoded]]] = {
    OURS: decoding.generate_captions,
    "blip": stock_captions,
    "git": stock_captions,
    "blip-2": stock_captions,
}


@dataclass
class Captioner(modeling.Captioner):
    """A captioner with all that it takes from a picture to words; stays in memory, call it as often as you like."""

    def caption(
        self, images: Sequence[Picture], options: GenerationOptions | None = None, batch_size: int = 8
    ) -> list[CaptionResult]:
        """A caption for each picture, in order, the same as batch-caption's with the same options.

        Args:
            images: paths, encoded images as bytes, Pillow images, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4); read by
                the one policy of toolkit/images.py.
            options: `GenerationOptions(num_beams=1)`, say; None for the defaults of batch-caption.
            batch_size: images a batch.

        Returns:
            Of each: `image` (its path, else its place in the list), `caption`, `captions` (all `num_captions` of them),
            `score`, `ended`, `width`, `height`; `error` says why where a picture can't be read, and the rest is None.

        Raises:
            InputError: something that is no picture at all.
        """
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            raise InputError("caption() takes a list of pictures; put the one into [brackets].")
        return list(self._results(images, options or GenerationOptions(), batch_size))

    def _results(self, images: Sequence[Picture], options: GenerationOptions, size: int) -> Iterator[CaptionResult]:
        source = iter(enumerate(images))
        while batch := list(islice(source, size)):
            read = [self._read(picture) for _, picture in batch]
            pixels = [pixels for pixels, _, _ in read if pixels is not None]
            decoded: Iterator[Decoded] = iter(())
            if pixels:
                decoded = iter(generate_captions(self, torch.from_numpy(np.stack(pixels)), options))
            for (place, picture), (found, shape, error) in zip(batch, read, strict=True):
                name = str(picture) if isinstance(picture, (str, Path)) else str(place)
                yield CaptionResult(name, error=error) if found is None else result(name, next(decoded), shape)

    def _read(self, picture: Picture) -> tuple[np.ndarray | None, tuple[int, int], str | None]:
        try:
            image = read_image(_openable(picture))
            return self.transform(image), image.size, None
        except ImageError as error:
            return None, (0, 0), str(error)


def _openable(picture: Picture) -> Path | bytes | Image.Image:
    if isinstance(picture, np.ndarray):
        if (
            picture.dtype != np.uint8
            or picture.ndim not in (2, 3)
            or (picture.ndim == 3 and picture.shape[2] not in (3, 4))
        ):
            raise InputError(
                f"an array of {picture.dtype} {picture.shape} is no picture; give uint8 (height, width, 3), or without the "
                "3 for grey."
            )
        return Image.fromarray(picture)
    if not isinstance(picture, (str, Path, bytes, Image.Image)):
        raise InputError(f"{type(picture).__name__} is no picture; give a path, bytes, a Pillow image or an array.")
    return Path(picture) if isinstance(picture, str) else picture


def result(name: str, decoded: Decoded, size: tuple[int, int]) -> CaptionResult:
    """What was decoded, as a row of captions.jsonl has it."""
    return CaptionResult(
        image=name,
        caption=decoded.captions[0],
        captions=decoded.captions,
        score=round(decoded.scores[0], 6),
        ended=decoded.ended[0],
        width=size[0],
        height=size[1],
    )


def load_captioner(name: str | Path = "model", device: str = "auto", precision: str = "auto") -> Captioner:
    """A captioner from a folder or the hub, in evaluation mode: ours, any other VisionEncoderDecoderModel, BLIP, GIT or
    BLIP-2.

    Raises:
        ModelError: no such folder or name, or a model that can't caption.
    """
    silence_transformers()
    parts: Any = modeling.load_captioner(str(name), device, precision)
    return Captioner(**vars(parts))
