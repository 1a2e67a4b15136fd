"""Captioners that are told what to do: any model that AutoModelForImageTextToText loads, with its processor.

    image + Asked -> chat template or bare prompt -> processor -> inputs of one image -> a padded batch -> generate -> Decoded

Each image goes through the processor by itself, as in the model's documented use; `collate` makes a batch of what comes of
it. Prompts in front of a caption are padded on the left; what an encoder reads, whose positions count from the left, on the
right.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig

from toolkit.captioning.base import Captioner, Decoded
from toolkit.captioning.generate import read_output
from toolkit.captioning.prompts import Asked, Earlier, Prompts, caption_of
from toolkit.captioning.settings import DEFAULT_LENGTH, Setting, Settings, settled
from toolkit.errors import ImageError, InputError, ModelError, RunError, is_bug
from toolkit.models.chat import load_chat_model, load_chat_processor, processor_settings
from toolkit.models.precision import resolve_precision
from toolkit.options import GenerationOptions, PromptOptions
from toolkit.runtime.hashing import hash_hex

Inputs = dict[str, Any]  # of one image or of a batch, as the model takes them

# Processors that put the image's token into a bare prompt themselves, or have none; before others' prompts it is put here.
PLACES_THE_IMAGE = frozenset(
    ("florence2", "blip-2", "instructblip", "kosmos-2", "kosmos-2.5", "fuyu", "pix2struct", "git")
)
# Settings of decoding that also look at the prompt, and at what it is padded with.
LOOK_AT_PROMPT = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
HINT = "name a captioner that transformers knows, with --model"


@dataclass
class PromptedCaptioner(Captioner):
    """
    Attributes:
        processor: the model's own, with Pillow's image processor.
        prompted: "must" be told what to do, or "may" be (BLIP-2, which captions without, too).
    """

    processor: Any = None
    prompted: str = "must"
    _lock: Any = field(default_factory=Lock, repr=False)  # tokenizers' padding settings are not for several threads

    @classmethod
    def beside(cls, plain: Captioner, name: str | Path) -> PromptedCaptioner:
        """A captioner that captions as `plain` does, and also takes prompts."""
        own = {f.name: getattr(plain, f.name) for f in fields(plain)} | {"prompted": "may"}
        return cls(**own, processor=load_chat_processor(name, "--model", HINT))

    @property
    def processing(self) -> dict[str, Any]:
        """What turns an image and a prompt into inputs."""
        return processor_settings(self.processor)

    @property
    def encodes(self) -> bool:
        """Whether the prompt is read by an encoder."""
        config = self.model.config
        return bool(config.is_encoder_decoder or getattr(config.get_text_config(), "is_encoder_decoder", False))

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def prompts(self, options: PromptOptions, seed: int, earlier: Earlier | None = None) -> Prompts | None:
        """As of any captioner; each prompt is tried on a blank image.

        Raises:
            InputError: as there; or the model's processor or chat template can't take a prompt, or no system message.
        """
        prompts = super().prompts(options, seed, earlier)
        if prompts is None:
            return None
        blank = {"name": "name", "folder": "folder", "caption": "caption"}
        for one in prompts.alternatives:
            asked = replace(prompts, alternatives=(one,)).ask("", blank)
            if asked.system is not None:
                self._check_system(asked)
            try:
                self.inputs(Image.new("RGB", (64, 48), (90, 120, 150)), asked)
            except Exception as error:  # of templates and processors it is no narrower
                if is_bug(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"--prompt {one.text}: the model's processor can't take it ({reason}); change it."
                ) from None
        return prompts

    def _check_system(self, asked: Asked) -> None:
        kind = self.model.config.model_type
        if self._template is None:
            raise InputError(
                f"--system-prompt: this {kind} has no chat template, and no place for it; put it into --prompt."
            )
        try:
            heard = str(asked.system) in self._rendered(asked)
        except Exception as error:  # whatever the template raises
            if is_bug(error):
                raise
            heard = False
        if not heard:
            raise InputError(f"--system-prompt: the chat template of this {kind} takes none; put it into --prompt.")

    @property
    def _template(self) -> Any:
        return getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)

    def _messages(self, asked: Asked, image: Image.Image | None = None) -> list[dict[str, Any]]:
        picture = {"type": "image"} if image is None else {"type": "image", "image": image}
        user = {"role": "user", "content": [picture, {"type": "text", "text": asked.text}]}
        system = {"role": "system", "content": [{"type": "text", "text": asked.system}]}
        return [user] if asked.system is None else [system, user]

    def _rendered(self, asked: Asked) -> str:
        return str(
            self.processor.apply_chat_template(
                self._messages(asked), chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        )

    def inputs(self, image: Image.Image, asked: Asked) -> Inputs:
        """What the processor makes of an image and a prompt, on the CPU: tensors (1, ...), or of Qwen's kind (patches, D)."""
        with self._lock:
            if self._template is not None:
                found = self.processor.apply_chat_template(
                    self._messages(asked, image), chat_template=self._template, add_generation_prompt=True,
                    tokenize=True, return_dict=True, return_tensors="pt",
                )  # fmt: skip
            else:
                found = self.processor(images=image, text=self.bare(asked.text), return_tensors="pt")
        return {name: value for name, value in found.items() if name != "labels"}

    def bare(self, prompt: str) -> str:
        """A prompt for a model without a chat template, with a place for the image."""
        token = getattr(self.processor, "image_token", None)
        token = getattr(token, "content", token)
        if self.model.config.model_type in PLACES_THE_IMAGE or token is None or token in prompt:
            return prompt
        return f"{token}{prompt}"

    # ---- captions ---------------------------------------------------------------------------------------------------

    def settings(self, options: GenerationOptions) -> Settings:
        """As of any captioner, counted without the prompt: a `max_length` that is given becomes `max_new_tokens`, for which
        transformers' default is 20.

        Raises:
            InputError: as there; or --start-with, which belongs into the prompt here.
        """
        if options.start_with is not None and self.prompted == "must":
            raise InputError("--start-with: a model that is told what to do is told this too; put it into --prompt.")
        if self.prompted == "may":
            return settled(self.model, self.tokenizer, options)
        given = {"max_length": options.max_length, "min_length": options.min_length}
        if options.max_length is not None:
            options = replace(options, max_length=None, max_new_tokens=options.max_length - 1)
        found = settled(self.model, self.tokenizer, options)
        config, told, own = found.config, dict(found.told), self.model.generation_config
        if config.max_new_tokens is None:
            config.max_length = own.max_length  # which counts the prompt, as `generate` does
            if own.max_length is None:
                config.max_new_tokens = DEFAULT_LENGTH
                told.pop("max_length", None)
                told = {"max_new_tokens": Setting(DEFAULT_LENGTH, "default"), **told}
        elif given["max_length"] is not None:
            told["max_new_tokens"] = Setting(config.max_new_tokens, "option")
        if given["min_length"] is not None:
            config.min_length, config.min_new_tokens = None, max(0, given["min_length"] - 1)
        return Settings(config, (), told)

    def prepare(self, image: Image.Image, asked: Asked | None = None) -> Any:
        if asked is None:
            return super().prepare(image)
        try:
            return self.inputs(image, asked)
        except ValueError as error:
            raise ImageError(f"the model's processor can't take it: {' '.join(str(error).split())[:120]}") from None

    def answer(self, prepared: Sequence[Any], options: GenerationOptions) -> list[Decoded]:
        """One `Decoded` for each image of a batch, which does not depend on the other images."""
        if prepared and isinstance(prepared[0], np.ndarray):
            return super().answer(prepared, options)
        config = self._for_prompts(options)
        found: dict[int, Decoded] = {}
        for places in self._groups(prepared, config):
            seed = None
            if config.do_sample:
                (place,) = places
                seed = int(hash_hex(str(options.seed), *_bytes_of(prepared[place]))[:15], 16)
            decoded = self._generate([prepared[place] for place in places], config, seed)
            found.update(zip(places, decoded, strict=True))
        return [found[place] for place in range(len(prepared))]

    def _for_prompts(self, options: GenerationOptions) -> GenerationConfig:
        return (self if self.prompted == "must" else replace(self, prompted="must")).settings(options).config

    def _groups(self, prepared: Sequence[Inputs], config: GenerationConfig) -> list[list[int]]:
        """Which images are generated together: those whose inputs fit, one at a time when sampling, and of equal length where
        the settings count or look at the prompt."""
        exact = not self.encodes and (
            config.max_new_tokens is None
            or bool(config.min_length)
            or config.repetition_penalty not in (None, 1.0)
            or any(getattr(config, name) for name in LOOK_AT_PROMPT)
        )
        groups: dict[Any, list[int]] = {}
        for place, inputs in enumerate(prepared):
            key: Any = (length_of(inputs) if exact else 0, shapes_of(inputs))
            groups.setdefault(place if config.do_sample else key, []).append(place)
        return list(groups.values())

    def _generate(self, batch: Sequence[Inputs], config: GenerationConfig, seed: int | None) -> list[Decoded]:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        inputs = {
            name: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            if isinstance(value, torch.Tensor) else value
            for name, value in collate(batch, pad or 0, left=not self.encodes).items()
        }  # fmt: skip
        config, length = copy.deepcopy(config), length_of(inputs)
        if config.max_new_tokens is None:
            config.max_new_tokens = (config.max_length or 0) - (1 if self.encodes else length)
            config.max_length = None
            if config.max_new_tokens < 1:
                raise RunError(
                    f"--max-new-tokens: the prompt and the image have {length} tokens, and the model's folder says at most "
                    f"{config.max_new_tokens + length} with the caption; say how many the caption may have."
                )
        if seed is not None:
            torch.manual_seed(seed)
        beams = config.num_beams > 1
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, generation_config=config, return_dict_in_generate=True, output_scores=beams,
                output_logits=not beams,
            )  # fmt: skip
        ids = inputs["input_ids"].repeat_interleave(config.num_return_sequences, 0)
        returned = (
            not self.encodes and output.sequences.shape[1] >= length and torch.equal(output.sequences[:, :length], ids)
        )
        before = 1 if self.encodes else length if returned else 0
        decoded = []
        for found in read_output(output, config, before):
            raw = self.tokenizer.batch_decode(found.tokens, skip_special_tokens=False)
            captions = tuple(caption_of(text) for text in self.decode(found.tokens))
            decoded.append(Decoded(captions, tuple(found.scores), tuple(found.ended), tuple(raw)))
        return decoded


# ---- batches --------------------------------------------------------------------------------------------------------


def length_of(inputs: Inputs) -> int:
    """Tokens of the prompt, the image's places among them."""
    return int(inputs["input_ids"].shape[1])


def _is_of_tokens(name: str, value: Any, inputs: Inputs) -> bool:
    """Whether it has a value for each token: (n, T) or (n, T, ...)."""
    tokens = inputs["input_ids"].shape
    return isinstance(value, torch.Tensor) and value.shape[:2] == tokens and not name.startswith(("pixel", "image"))


def shapes_of(inputs: Inputs) -> Any:
    """Equal for inputs that `collate` can make a batch of: those with a mask or sizes of their images whatever the shapes."""
    masked = "pixel_attention_mask" in inputs or "image_sizes" in inputs
    shapes: list[tuple[str, Any]] = []
    for name, value in sorted(inputs.items()):
        if not isinstance(value, torch.Tensor):
            shapes.append((name, id(value)))  # nothing is known of it: alone
        elif not _is_of_tokens(name, value, inputs):
            shapes.append((name, value.ndim if masked else tuple(value.shape[1:])))
    return tuple(shapes)


def collate(batch: Sequence[Inputs], pad: int, left: bool) -> Inputs:
    """A batch of the inputs of single images: tokens padded on one side, other tensors one behind the other, padded with
    zeros at their ends where they differ.

    >>> # input_ids (1, 5) and (1, 7) -> (2, 7); pixel_values (1, 2, 3, H, W) and (1, 1, 3, H, W) -> (2, 2, 3, H, W)
    """
    if len(batch) == 1:
        return batch[0]
    length = max(map(length_of, batch))
    joined: Inputs = {}
    for name in batch[0]:
        values = [inputs[name] for inputs in batch]
        if _is_of_tokens(name, values[0], batch[0]):
            fill = pad if name == "input_ids" else 0
            values = [_padded(value, length, fill, left) for value in values]
        elif values[0].ndim > 1:
            sides = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
            values = [_enlarged(value, sides) for value in values]
        joined[name] = torch.cat(values)
    return joined


def _padded(value: torch.Tensor, length: int, fill: int, left: bool) -> torch.Tensor:
    padding = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
    return torch.cat((padding, value) if left else (value, padding), 1)


def _enlarged(value: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    if list(value.shape[1:]) == list(sides):
        return value
    larger = value.new_zeros((value.shape[0], *sides))
    larger[tuple(slice(size) for size in value.shape)] = value
    return larger


def _bytes_of(inputs: Inputs) -> list[Any]:
    tensors = [value for _, value in sorted(inputs.items()) if isinstance(value, torch.Tensor)]
    return [value.contiguous().numpy().tobytes() for value in tensors]


# ---- loading --------------------------------------------------------------------------------------------------------


def load_prompted(name: str | Path, where: torch.device, precision: str) -> Captioner:
    """Any model that AutoModelForImageTextToText loads.

    Raises:
        ModelError: it, or its processor, can't be loaded.
    """
    precision = resolve_precision(precision, where)
    if precision == "int8":
        raise ModelError(
            f"--precision int8: only for a VisionEncoderDecoderModel on a CPU; use bf16 for --model {name}."
        )
    processor = load_chat_processor(name, "--model", HINT)
    model = load_chat_model(name, "--model", HINT, where, precision)
    tokenizer = processor.tokenizer
    settings = model.generation_config
    if settings.eos_token_id is None:
        settings.eos_token_id = model.config.get_text_config(decoder=True).eos_token_id or tokenizer.eos_token_id
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return PromptedCaptioner(
        model, tokenizer, processor.image_processor, transform=None, normalizer=nn.Identity(), precision=precision,
        processor=processor,
    )  # fmt: skip
