"""Any captioner, warm: `load_captioner("model").caption(["a.jpg", "b.png"])`.

Ours, any other VisionEncoderDecoderModel, BLIP, GIT and BLIP-2, with their own image processor and tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from toolkit.captioning.generate import Decoded, generate_captions
from toolkit.data.images import read_image
from toolkit.errors import ImageError, InputError
from toolkit.models import loading as modeling
from toolkit.models.loading import silence_transformers
from toolkit.options import GenerationOptions
from toolkit.records import CaptionResult

Picture = str | Path | bytes | Image.Image | np.ndarray


@dataclass
class Captioner(modeling.Captioner):
    """A captioner with all that it takes from a picture to words; stays in memory, call it as often as you like."""

    def caption(
        self, images: Sequence[Picture], options: GenerationOptions | None = None, batch_size: int = 8
    ) -> list[CaptionResult]:
        """A caption for each picture, in order, the same as batch-caption's with the same options. Threads may share it.

        Args:
            images: paths, encoded images as bytes, Pillow images, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4); read by
                the one policy of toolkit/data/images.py.
            options: `GenerationOptions(num_beams=1)`, say; None for the defaults of batch-caption.
            batch_size: images a batch.

        Returns:
            Of each: `image` (its path, else its place in the list), `caption`, `captions` (all `num_captions` of them),
            `score`, `ended`, `width`, `height`; `error` says why where a picture can't be read, and the rest is None.

        Raises:
            InputError: something that is no picture at all, or no option.
        """
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            raise InputError("caption() takes a list of pictures; put the one into [brackets].")
        if options is not None and not isinstance(options, GenerationOptions):
            raise InputError(
                f"caption() takes its options as GenerationOptions, not as a {type(options).__name__}; write "
                "GenerationOptions(num_beams=1), say."
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"caption(batch_size={batch_size!r}): must be a whole number from 1 on.")
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
            or 0 in picture.shape
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
        score=round(decoded.scores[0], 4),
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
