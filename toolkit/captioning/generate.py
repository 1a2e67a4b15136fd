"""Token rows from pixels or from encoder features: tensors in, `Found` out.

toolkit's own decoder gives in fp32 the tokens that `transformers.generate` gives, several times faster
(docs/benchmarks.md); a model or a setting that it does not support goes to `generate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig

from toolkit.captioning.beam_search import Found, longest, search_for
from toolkit.captioning.kv_cache import DECODERS, Steps, prepared
from toolkit.models.packed import packing
from toolkit.models.special_tokens import generation_config
from toolkit.models.twins import forget_twins, turn
from toolkit.options import GenerationOptions
from toolkit.records import SpecialTokens
from toolkit.runtime.progress import say

# Raised when the same model, image and settings give another caption than before: batch-caption then captions again.
DECODING_VERSION = 2

# The settings that toolkit's own decoder knows; with any other, `generate` decodes.
SETTINGS = {
    "num_beams", "num_return_sequences", "length_penalty", "early_stopping", "no_repeat_ngram_size",
    "repetition_penalty", "min_length", "min_new_tokens", "max_length", "max_new_tokens", "do_sample", "top_k", "top_p",
    "temperature", "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version",
    "use_cache", "output_scores", "output_logits", "output_attentions", "output_hidden_states",
    "return_dict_in_generate",
}  # fmt: skip
_said: set[str] = set()


def settled(model: Any, options: GenerationOptions) -> GenerationConfig:
    """The settings that captions are decoded with: the options, completed by the model's own settings."""
    own = model.generation_config
    if options.sample:
        options = replace(options, num_beams=1)
    config = generation_config(options, SpecialTokens(own.decoder_start_token_id, own.eos_token_id, own.pad_token_id))
    config.do_sample = options.sample
    return _completed(model, config)


def _completed(model: Any, config: GenerationConfig) -> GenerationConfig:
    config = copy.deepcopy(config)
    config.update(**model.generation_config.to_dict(), defaults_only=True)
    config.update(num_beams=1, num_return_sequences=1, length_penalty=1.0, top_k=50, defaults_only=True)
    return config


def describe_settings(model: Any, options: GenerationOptions) -> str:
    """One line: the settings that captions are decoded with, and where the model's own differ."""
    used, own = settled(model, options), model.generation_config
    names = ["num_beams", "max_length", "no_repeat_ngram_size"]
    if used.num_beams > 1:
        names += ["length_penalty", "early_stopping"]
    if options.sample:
        names += ["do_sample", "top_k", "top_p", "temperature"]
    if used.num_return_sequences > 1:
        names.append("num_return_sequences")
    has = [name for name in [*names, "do_sample"] if getattr(own, name, None) is not None]
    differing = [
        f"{name} {getattr(own, name)}" for name in dict.fromkeys(has) if getattr(own, name) != getattr(used, name)
    ]
    others = {"length_penalty", "early_stopping", "top_k", "top_p", "temperature", "do_sample", "num_return_sequences"}
    added = [
        f"{name} {value}"
        for name, value in own.to_diff_dict().items()
        if name not in {*names, *others} and not name.startswith("_") and not name.endswith("_id")
        and name != "transformers_version" and value is not None and value not in (False, 1.0)
    ]  # fmt: skip
    text = "decoding with " + ", ".join(f"{name} {getattr(used, name)}" for name in names)
    if added:
        text += f", and from the model's own generation_config.json {', '.join(added)}"
    if differing:
        return f"{text}; the model's own generation_config.json has {', '.join(differing)} instead"
    return text + ("; the model's own settings are the same" if has else "; the model has no settings of its own")


def decode(
    model: Any,
    config: GenerationConfig,
    pixels: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
    seeds: Sequence[int] = (),
) -> list[Found]:
    """Tokens and scores of each image, given by its pixels or its encoder features.

    Args:
        config: as for `generate`; settings that are None are taken from the model's own.
        pixels: normalised, (n, C, H, W), on the model's device.
        features: encoder features of the images, (n, S, D); only if `is_supported`.
        seeds: of each image, for sampling.
    """
    config = _completed(model, config)
    reason = unsupported(model, config)
    with torch.inference_mode():
        if reason:
            if reason not in _said:
                _said.add(reason)
                say(f"Captions come from transformers' own generate, which is slower: {reason}.")
            assert pixels is not None
            return stock(model, pixels, config, seeds)
        with turn(model):
            twin = prepared(model)
            if features is None:
                assert pixels is not None
                # In int8 two images at a time: what lies between the layers stays in the processor's cache.
                parts = pixels.split(2 if packing(twin.encoder).startswith("int8") else len(pixels))
                features = torch.cat([twin.encoder(pixel_values=part).last_hidden_state for part in parts])
            return _engine(twin, config, len(features)).run(features, seeds)


def is_supported(model: Any, config: GenerationConfig) -> bool:
    """Whether toolkit's own decoder can do it."""
    return unsupported(model, _completed(model, config)) is None


def release(model: nn.Module) -> None:
    """Gives back the memory that decoding keeps for its next call."""
    forget_twins(model)


def unsupported(model: Any, config: GenerationConfig) -> str | None:
    """Why toolkit's own decoder can't do it; None if it can."""
    kind = getattr(getattr(model, "decoder", None), "config", None)
    if model.config.model_type != "vision-encoder-decoder" or kind is None or kind.model_type not in DECODERS:
        return f"toolkit does not know a decoder of type {getattr(kind, 'model_type', model.config.model_type)}"
    for name, value in config.to_diff_dict().items():
        neutral = value is None or (value is not True and not name.endswith("_id") and value in (False, 0, 1))
        if name not in SETTINGS and not name.startswith("_") and not neutral:
            return f"the model's generation settings have {name}={value}"
    if not isinstance(config.eos_token_id, int) or not isinstance(config.pad_token_id, int):
        return f"eos_token_id is {config.eos_token_id} and pad_token_id {config.pad_token_id}"
    if config.do_sample and config.num_beams > 1:
        return "beam search and sampling are asked for together"
    if kind.vocab_size <= 2 * config.num_beams:
        return f"there are {config.num_beams} beams for a vocabulary of {kind.vocab_size} tokens"
    if config.num_return_sequences > config.num_beams and not config.do_sample:
        return f"{config.num_return_sequences} captions are asked for from {config.num_beams} beams"
    return None


# ---- the decoder ----------------------------------------------------------------------------------------------------


class Engine:
    """Decodes a batch of up to `slots` images; finished images leave it."""

    def __init__(self, model: Any, config: GenerationConfig, slots: int) -> None:
        self.start, self.slots = config.decoder_start_token_id, slots
        self.project = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.limit = longest(config)
        self.search = search_for(config, slots, model.device)
        self.steps = Steps(model.decoder, slots, self.search.rows, self.limit)
        self.graph: Any = None
        self.cuda = model.device.type == "cuda"
        # Under autocast no graph: it would hold on to autocast's copies of the weights, which are freed.
        self.captures = self.cuda and not torch.is_autocast_enabled("cuda")
        # Asking a GPU whether an image is done waits for it; further steps do not change an image that is done.
        self.every = 4 if self.cuda else 1

    def run(self, features: torch.Tensor, seeds: Sequence[int]) -> list[Found]:
        found: dict[int, Found] = {}
        images = list(range(len(features)))  # in the slots
        if images:
            logits = self.steps.admit(self.project(features), self.start)
            self.search.admit(0, len(images), seeds)
            self.search.advance(logits[:, None], 0, len(images))
        new = 1  # tokens of each
        while images:
            done = self.search.done[: len(images)].tolist() if (new - 1) % self.every == 0 else [False] * len(images)
            for slot in reversed(range(len(images))):
                if done[slot] or new + 1 >= self.limit:
                    found[images[slot]] = self.search.result(slot)
                    self._release(slot, images)
            if images:
                self._tick(len(images), new)
                new += 1
        return [found[i] for i in sorted(found)]

    def _tick(self, images: int, positions: int) -> None:
        """A step of all images; on a GPU of all slots and positions, so that all steps are the same CUDA graph."""
        if not self.captures:
            self._step(images, positions + 1)
            return
        if self.graph is None:
            self.graph = _capture(lambda: self._step(self.slots, self.limit), [*self.search.state, *self.steps.state])
        self.graph.replay()

    def _step(self, images: int, positions: int) -> None:
        parents = None if self.search.parents is None else self.search.parents[:images]
        self.search.advance(self.steps.step(self.search.last[:images], parents, positions), 0, images)

    def _release(self, slot: int, images: list[int]) -> None:
        """Moves the image of the last slot into the free one, so that the used slots come first."""
        last = len(images) - 1
        if slot != last:
            self.steps.move(last, slot)
            for tensor in self.search.state:
                tensor[slot] = tensor[last]
            images[slot] = images[last]
        images.pop()
        self.steps.active = last


def _capture(step: Callable[[], None], state: list[torch.Tensor]) -> Any:
    """The step as a CUDA graph: hundreds of kernels started at once. Its changes to `state` are undone."""
    before = [tensor.clone() for tensor in state]
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(2):  # libraries set themselves up in the first calls, which a graph must not record
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for tensor, old in zip(state, before, strict=True):
        tensor.copy_(old)
    return graph


_engines: WeakKeyDictionary[nn.Module, tuple[Any, Engine]] = WeakKeyDictionary()


def _engine(model: Any, config: GenerationConfig, slots: int) -> Engine:
    """The engine of the last call if it fits: its memory is allocated, and on a GPU its graph captured."""
    autocast = torch.get_autocast_dtype(model.device.type) if torch.is_autocast_enabled(model.device.type) else None
    weights = [p.data_ptr() for p in model.decoder.parameters()]
    key = config.to_json_string(), model.device, model.dtype, autocast, weights
    known, engine = _engines.pop(model, (None, None))
    if engine is None or known != key or engine.slots < slots or engine.steps.active:
        engine = Engine(model, config, slots)
    _engines[model] = key, engine
    return engine


# ---- transformers' own ----------------------------------------------------------------------------------------------


def stock(model: Any, pixels: torch.Tensor, config: GenerationConfig, seeds: Sequence[int] = ()) -> list[Found]:
    """The same from `generate`, for any model and settings."""
    if seeds and len(pixels) > 1:  # one by one, since samples would depend on the other images
        return [
            found for i in range(len(pixels)) for found in stock(model, pixels[i : i + 1], config, seeds[i : i + 1])
        ]
    beams = config.num_beams > 1
    prompt = 1 + getattr(model.config, "num_query_tokens", 0)  # BLIP-2: places for the image before the start token,
    if prompt > 1:  # which do not count as caption
        config = copy.deepcopy(config)
        config.update(max_length=None, max_new_tokens=config.max_new_tokens or config.max_length - 1)
    if seeds:
        torch.manual_seed(seeds[0])
    output = model.generate(
        pixel_values=pixels,
        generation_config=config,
        return_dict_in_generate=True,
        output_scores=beams,
        output_logits=not beams,
    )
    sequences = output.sequences[:, prompt:]  # without the start token
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    lengths, ended = caption_lengths(sequences, eos)
    if beams:
        # A beam's score is its log-probability over length ** length_penalty.
        scores = output.sequences_scores.float() * lengths.float() ** (config.length_penalty - 1)
    else:
        steps = [
            logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0]
            for logits, token in zip(output.logits, sequences.T, strict=False)
        ]
        inside = torch.arange(len(steps), device=lengths.device) < lengths[:, None]
        scores = torch.stack(steps, dim=1).masked_fill(~inside, 0).sum(1) / lengths
    n = config.num_return_sequences
    rows = [row[:m] for row, m in zip(sequences.tolist(), lengths.tolist(), strict=True)]
    return [
        Found(rows[i : i + n], scores[i : i + n].tolist(), ended[i : i + n].tolist()) for i in range(0, len(rows), n)
    ]


def caption_lengths(sequences: torch.Tensor, eos: Sequence[int] | SpecialTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens up to and including the first EOS, and whether there is one: int64 (n,), bool (n,).

    Args:
        sequences: int64 (n, T) without the start token, which may be the same id as EOS.
        eos: the ids that end a caption, or the special tokens that have it.
    """
    ids = [eos.eos] if isinstance(eos, SpecialTokens) else eos
    is_eos = torch.isin(sequences, torch.tensor(ids, device=sequences.device))
    ended = is_eos.any(dim=1)
    first = is_eos.int().argmax(dim=1) + 1
    return torch.where(ended, first, sequences.shape[1]), ended
