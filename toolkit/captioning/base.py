"""What every captioner does: `caption(["a.jpg", "b.png"])`, batch by batch, and what comes of it.

`Captioner` is one without prompts: ours, any other VisionEncoderDecoderModel, BLIP and GIT. prompted.py has the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from toolkit.captioning.generate import decode
from toolkit.captioning.prompts import Asked, Earlier, Prompts
from toolkit.captioning.settings import Settings, settled, with_words
from toolkit.data.images import read_file, read_image
from toolkit.data.pixels import PixelTransform, ProcessorTransform
from toolkit.data.sources import FoundImage
from toolkit.errors import ImageError, InputError, ModelError, RunError, UnusedOption
from toolkit.models.freezing import hash_weights
from toolkit.models.packed import packing
from toolkit.options import GenerationOptions, PromptOptions
from toolkit.records import CaptionResult
from toolkit.runtime.hashing import Hasher, hash_hex
from toolkit.runtime.progress import say

Picture = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Decoded:
    """The captions of one image.

    Attributes:
        captions: `num_captions` of them, best first.
        scores: mean log-probability of each one's tokens, EOS included, in nats; 0 is certainty. As the model gives it,
            before top-k, banned n-grams or a repetition penalty; without the tokens of `start_with`.
        ended: whether each ended with EOS, or ran into `max_length`.
        raw: of each what the model wrote, special tokens and all; only of captioners that are prompted.
    """

    captions: tuple[str, ...]
    scores: tuple[float, ...]
    ended: tuple[bool, ...]
    raw: tuple[str, ...] = ()


@dataclass
class Captioner:
    """A model with all that it takes to go from a picture to words; it stays in memory.

    Attributes:
        model: one of `CAPTIONERS`.
        transform: an RGB image -> what `normalizer` takes, (C, H, W): uint8, or float32 of a `ProcessorTransform`; None of
            one that always needs a prompt.
        precision: "fp32", "bf16", "fp16" or "int8".
        loaded: the hash of the weights as they were loaded, where packing has rounded them since.
        prompted: whether it is told in words what to do: "never", "may" be or "must" be.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    transform: PixelTransform | ProcessorTransform | None
    normalizer: nn.Module
    precision: str = "fp32"
    loaded: Hasher | None = None
    prompted: str = "never"

    def hash_weights(self) -> Hasher:
        """A running hash of the weights as they were loaded."""
        return self.loaded.copy() if self.loaded is not None else hash_weights(self.model.state_dict())

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def kind(self) -> str:
        """The type of the model: its config's, or "ONNX", which has no modules of torch's to look into."""
        return str(self.model.config.model_type)

    @property
    def arithmetic(self) -> str:
        """What decides, besides weights and settings, how numbers come out."""
        return packing(self.model) or str(self.model.dtype)

    @property
    def processing(self) -> dict[str, Any]:
        """The settings of whatever turns an image into what the model takes."""
        settings: dict[str, Any] = json.loads(self.image_processor.to_json_string())
        return settings

    def decode(self, tokens: torch.Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Token rows -> captions, special tokens and surrounding white space dropped."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def settings(self, options: GenerationOptions) -> Settings:
        """What captions are decoded with: the model's own settings, and the options that are given.

        Raises:
            InputError: an option has no effect, or can't be met, with the model's other settings.
        """
        return settled(self.model, self.tokenizer, options)

    def prepare(self, image: Image.Image, asked: Asked | None = None) -> Any:
        """An RGB image, and what is asked about it, as `answer` takes them; called in several threads.

        Raises:
            ImageError: an image that the model can't take.
        """
        if self.transform is None:
            raise ModelError("a model that is told what to do takes no image without a prompt; give one.")
        return self.transform(image)

    def answer(self, prepared: Sequence[Any], options: GenerationOptions) -> list[Decoded]:
        """One `Decoded` for each image of a batch."""
        return self.generate(torch.from_numpy(np.stack(prepared)), options)

    def generate(self, pixels: torch.Tensor, options: GenerationOptions) -> list[Decoded]:
        """One `Decoded` an image, which does not depend on the other images of the batch.

        Args:
            pixels: (n, C, H, W), as `transform` makes them.
        """
        seeds, settings = [], self.settings(options)
        if settings.config.do_sample:
            seeds = [int(hash_hex(str(options.seed), image.numpy())[:15], 16) for image in pixels.cpu().contiguous()]
        normalised = self.normalizer(pixels.to(self.device)).to(self.model.dtype)
        found = decode(self.model, settings.config, normalised, seeds=seeds, prefix=settings.prefix)
        texts = iter(self.decode([row for image in found for row in image.tokens]))
        return [
            Decoded(tuple(next(texts) for _ in image.tokens), tuple(image.scores), tuple(image.ended))
            for image in found
        ]

    def caption(
        self,
        images: Sequence[Picture],
        options: GenerationOptions | None = None,
        batch_size: int = 8,
        prompting: PromptOptions | None = None,
    ) -> list[CaptionResult]:
        """A caption for each picture, in order, the same as batch-caption's with the same options. Threads may share it.

        Args:
            images: paths, encoded images as bytes, Pillow images, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4); read by
                the one policy of toolkit/data/images.py.
            options: `GenerationOptions(num_beams=1)`, say; whatever is None in it, or None for all, is as the model's folder says.
            batch_size: images a batch.
            prompting: `PromptOptions(prompt="Describe the image.")`, say, for captioners that are told what to do.

        Returns:
            Of each: `image` (its path, else its place in the list), `caption`, `captions` (all `num_captions` of them),
            `score`, `ended`, `width`, `height`; `error` says why where a picture can't be read, and the rest is None.

        Raises:
            InputError: something that is no picture at all, or no option.
            RunError: a batch does not fit in the device's memory.
        """
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            raise InputError("caption() takes a list of images; put a single one into [brackets].")
        if options is not None and not isinstance(options, GenerationOptions):
            raise InputError(
                f"caption() takes its options as GenerationOptions, not as a {type(options).__name__}; write "
                "GenerationOptions(num_beams=1), say."
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"caption(batch_size={batch_size!r}): must be a whole number of at least 1.")
        options = with_words(options or GenerationOptions())
        self.settings(options)  # refused before an image is read
        prompting = prompting or PromptOptions()
        if prompting.captions_from is not None:
            raise InputError(
                "caption() reads no captions_from; write the caption into the prompt, or use batch_caption."
            )
        prompts = self.prompts(prompting, options.seed)
        return list(self._results(images, options, batch_size, prompts))

    def prompts(self, options: PromptOptions, seed: int, earlier: Earlier | None = None) -> Prompts | None:
        """What images are asked; None where the captioner asks nothing.

        Raises:
            InputError: it takes no prompts and there is one, or it needs one and there is none; or as `Prompts.of`.
        """
        prompts, kind = Prompts.of(options, seed, earlier), self.model.config.model_type
        if prompts is not None and self.prompted == "never":
            name = "prompt" if options.prompt is not None else "prompt_file"
            value = options.prompt if options.prompt is not None else "with prompts"
            raise UnusedOption(
                f"--{name.replace('_', '-')} {value}: a captioner of type {kind} captions without being told how; leave it out.",
                name,
            )
        if prompts is None and self.prompted == "must":
            raise InputError(
                f"--prompt: a model of type {kind} has to be told what to do; add --prompt 'Describe the image.', say."
            )
        return prompts

    def _results(
        self, images: Sequence[Picture], options: GenerationOptions, size: int, prompts: Prompts | None
    ) -> Iterator[CaptionResult]:
        source, batches = iter(enumerate(images)), Batches(self, options, size)
        while batch := list(islice(source, size)):
            read = [self._read(picture, place, prompts) for place, picture in batch]
            decoded = iter(batches.generate([prepared for prepared, _, _ in read if prepared is not None]))
            for (place, picture), (found, shape, error) in zip(batch, read, strict=True):
                name = str(picture) if isinstance(picture, (str, Path)) else str(place)
                yield CaptionResult(name, error=error) if found is None else result(name, next(decoded), shape)

    def _read(
        self, picture: Picture, place: int, prompts: Prompts | None
    ) -> tuple[np.ndarray | None, tuple[int, int], str | None]:
        try:
            source = _openable(picture)
            data = read_file(source).data if isinstance(source, Path) else source
            image = read_image(data)
            asked = None
            if prompts is not None:
                content = hashlib.sha256(data if isinstance(data, bytes) else image.tobytes()).hexdigest()
                nameless = {"name": str(place), "folder": "", "caption": None}
                named = FoundImage(source.parent, source.name) if isinstance(source, Path) else None
                asked = prompts.ask(content, prompts.fields(named) if named else nameless)
            return self.prepare(image, asked), image.size, None
        except ImageError as error:
            return None, (0, 0), str(error)


class Batches:
    """Captions of prepared images, batch by batch; with size "auto", a batch that does not fit in memory is done again in halves.

    Attributes:
        size: images a batch, from here on.
    """

    def __init__(self, captioner: Captioner, options: GenerationOptions, size: int | str) -> None:
        self.captioner, self.options, self.auto = captioner, options, size == "auto"
        self.size = (64 if captioner.device.type == "cuda" else 8) if self.auto else int(size)

    def generate(self, prepared: Sequence[Any]) -> list[Decoded]:
        """One `Decoded` for each image, as `prepare` gives it.

        Raises:
            RunError: a batch does not fit in memory, nor does with "auto" a single image.
        """
        found: list[Decoded] = []
        while len(found) < len(prepared):
            batch = prepared[len(found) : len(found) + self.size]
            try:
                found += self.captioner.answer(batch, self.options)
                continue
            except torch.OutOfMemoryError:
                if len(batch) == 1 or not self.auto:
                    raise RunError(
                        f"{len(batch)} images do not fit in the device's memory together; use a smaller --batch-size, or "
                        "fewer --num-beams."
                    ) from None
            # outside of except, whose traceback holds the tensors that did not fit
            self.size = len(batch) // 2
            torch.cuda.empty_cache()
            say(f"a batch of {len(batch)} does not fit in memory: continuing with {self.size}")
        return found


def _openable(picture: Picture) -> Path | bytes | Image.Image:
    if isinstance(picture, np.ndarray):
        if (
            picture.dtype != np.uint8
            or picture.ndim not in (2, 3)
            or (picture.ndim == 3 and picture.shape[2] not in (3, 4))
            or 0 in picture.shape
        ):
            raise InputError(
                f"an array of {picture.dtype} {picture.shape} is not an image; give uint8 (height, width, 3), or "
                "(height, width) for grey."
            )
        return Image.fromarray(picture)
    if not isinstance(picture, (str, Path, bytes, Image.Image)):
        raise InputError(f"{type(picture).__name__} is not an image; give a path, bytes, a Pillow image or an array.")
    return Path(picture) if isinstance(picture, str) else picture


def result(name: str, decoded: Decoded, size: tuple[int, int] | None) -> CaptionResult:
    """What was decoded, as a row of captions.jsonl has it."""
    several = len(decoded.captions) > 1
    return CaptionResult(
        image=name,
        caption=decoded.captions[0],
        captions=decoded.captions,
        score=round(decoded.scores[0], 4),
        ended=decoded.ended[0],
        width=size[0] if size else None,
        height=size[1] if size else None,
        raw=decoded.raw,
        scores=tuple(round(score, 4) for score in decoded.scores) if several else (),
        ends=decoded.ended if several else (),
    )
