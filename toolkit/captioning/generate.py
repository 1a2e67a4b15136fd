"""Token rows from pixels or from encoder features: tensors in, `Found` out.

toolkit's own decoder gives in fp32 the tokens that `transformers.generate` gives, several times faster
(docs/benchmarks.md); a model or a setting that it does not support goes to `generate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig

from toolkit.captioning.beam_search import Found, longest, search_for
from toolkit.captioning.kv_cache import DECODERS, Steps, prepared
from toolkit.captioning.onnx_model import OnnxModel, OnnxSteps
from toolkit.captioning.settings import completed, image_places
from toolkit.models.loading import OURS
from toolkit.models.packed import packing
from toolkit.models.twins import forget_twins, turn
from toolkit.records import SpecialTokens
from toolkit.runtime.progress import say

# Raised when the same model, image and settings give another caption than before: batch-caption then captions again.
DECODING_VERSION = 2

# The settings that toolkit's own decoder knows; with any other, `generate` decodes.
SETTINGS = {
    "num_beams", "num_return_sequences", "length_penalty", "early_stopping", "no_repeat_ngram_size",
    "repetition_penalty", "min_length", "min_new_tokens", "max_length", "max_new_tokens", "do_sample", "top_k", "top_p",
    "temperature", "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version",
    "use_cache", "bad_words_ids", "output_scores", "output_logits", "output_attentions", "output_hidden_states",
    "return_dict_in_generate",
}  # fmt: skip
_said: set[str] = set()


def _completed(model: Any, config: GenerationConfig) -> GenerationConfig:
    config = copy.deepcopy(config)
    config.update(**model.generation_config.to_dict(), defaults_only=True)
    return completed(config)


def decode(
    model: Any,
    config: GenerationConfig,
    pixels: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
    seeds: Sequence[int] = (),
    prefix: Sequence[int] = (),
) -> list[Found]:
    """Tokens and scores of each image, given by its pixels or its encoder features.

    Args:
        config: as for `generate`; settings that are None are taken from the model's own.
        pixels: normalised, (n, C, H, W), on the model's device.
        features: encoder features of the images, (n, S, D); only if `is_supported`.
        seeds: of each image, for sampling.
        prefix: tokens that every caption begins with, behind the start token.
    """
    config = _completed(model, config)
    reason = unsupported(model, config)
    with torch.inference_mode():
        if isinstance(model, OnnxModel):
            assert pixels is not None
            assert reason is None, reason  # refused by the captioner
            return Engine(model, config, len(pixels), prefix).run(model.encode(pixels), seeds)
        if reason:
            if reason not in _said:
                _said.add(reason)
                say(f"Captions come from transformers' own generate, which is slower: {reason}.")
            assert pixels is not None
            return stock(model, pixels, config, seeds, prefix)
        with turn(model):
            twin = prepared(model)
            if features is None:
                assert pixels is not None
                # In int8 two images at a time: what lies between the layers stays in the processor's cache.
                parts = pixels.split(2 if packing(twin.encoder).startswith("int8") else len(pixels))
                features = torch.cat([twin.encoder(pixel_values=part).last_hidden_state for part in parts])
            return _engine(twin, config, len(features), prefix).run(features, seeds)


def is_supported(model: Any, config: GenerationConfig) -> bool:
    """Whether toolkit's own decoder can do it."""
    return why_not_supported(model, config) is None


def why_not_supported(model: Any, config: GenerationConfig) -> str | None:
    """Why toolkit's own decoder can't do it, settings that are None taken from the model's own; None if it can."""
    return unsupported(model, _completed(model, config))


def release(model: nn.Module) -> None:
    """Gives back the memory that decoding keeps for its next call."""
    forget_twins(model)


def unsupported(model: Any, config: GenerationConfig) -> str | None:
    """Why toolkit's own decoder can't do it; None if it can."""
    kind = getattr(model.config, "decoder", None)
    if model.config.model_type != OURS or kind is None or kind.model_type not in DECODERS:
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

    def __init__(self, model: Any, config: GenerationConfig, slots: int, prefix: Sequence[int] = ()) -> None:
        self.start, self.slots, self.prefix = config.decoder_start_token_id, slots, prefix
        self.project = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.limit = longest(config, len(prefix))
        self.search = search_for(config, slots, model.device, prefix)
        rows = self.search.rows
        self.steps: Any = (
            OnnxSteps(model, rows) if isinstance(model, OnnxModel) else Steps(model.decoder, slots, rows, self.limit)
        )
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
            logits = self.steps.admit(self.project(features), self.start, self.prefix)
            self.search.admit(0, len(images), seeds)
            self.search.advance(logits, 0, len(images))
        first = new = 1 + len(self.prefix)  # tokens of each
        while images:
            done = (
                self.search.done[: len(images)].tolist() if (new - first) % self.every == 0 else [False] * len(images)
            )
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


def _engine(model: Any, config: GenerationConfig, slots: int, prefix: Sequence[int]) -> Engine:
    """The engine of the last call if it fits: its memory is allocated, and on a GPU its graph captured."""
    autocast = torch.get_autocast_dtype(model.device.type) if torch.is_autocast_enabled(model.device.type) else None
    weights = [p.data_ptr() for p in model.decoder.parameters()]
    key = config.to_json_string(), tuple(prefix), model.device, model.dtype, autocast, weights
    known, engine = _engines.pop(model, (None, None))
    if engine is None or known != key or engine.slots < slots or engine.steps.active:
        engine = Engine(model, config, slots, prefix)
    _engines[model] = key, engine
    return engine


# ---- transformers' own ----------------------------------------------------------------------------------------------


def stock(
    model: Any,
    pixels: torch.Tensor,
    config: GenerationConfig,
    seeds: Sequence[int] = (),
    prefix: Sequence[int] = (),
) -> list[Found]:
    """The same from `generate`, for any model and settings."""
    if seeds and len(pixels) > 1:  # one by one, since samples would depend on the other images
        return [
            found
            for i in range(len(pixels))
            for found in stock(model, pixels[i : i + 1], config, seeds[i : i + 1], prefix)
        ]
    beams = config.num_beams > 1
    places = image_places(model)
    if places:
        config = copy.deepcopy(config)
        least = max(0, (config.min_length or 0) - 1 - len(prefix))
        config.update(
            max_new_tokens=longest(config, len(prefix)) - 1 - len(prefix), max_length=None,
            min_new_tokens=least if config.min_new_tokens is None else config.min_new_tokens, min_length=None,
        )  # fmt: skip
    if seeds:
        torch.manual_seed(seeds[0])
    output = model.generate(
        pixel_values=pixels,
        generation_config=config,
        return_dict_in_generate=True,
        output_scores=beams,
        output_logits=not beams,
        **(_beginning(model, config, prefix, len(pixels)) if prefix else {}),
    )
    return read_output(output, config, places + 1 + len(prefix), prefix)


def read_output(output: Any, config: GenerationConfig, before: int, prefix: Sequence[int] = ()) -> list[Found]:
    """What `generate` returned, an image's captions together.

    Args:
        output: with `sequences_scores` where there are beams, else with `logits`.
        before: tokens of each sequence that are not new.
        prefix: tokens at the end of those that belong to the captions.
    """
    beams = config.num_beams > 1
    sequences = output.sequences[:, before:]
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
    rows = [[*prefix, *row[:m]] for row, m in zip(sequences.tolist(), lengths.tolist(), strict=True)]
    return [
        Found(rows[i : i + n], scores[i : i + n].tolist(), ended[i : i + n].tolist()) for i in range(0, len(rows), n)
    ]


def _beginning(model: Any, config: GenerationConfig, prefix: Sequence[int], n: int) -> dict[str, torch.Tensor]:
    """The argument by which each kind of captioner is told how its captions begin, as its own page has it: (n, T)."""
    row = [config.decoder_start_token_id, *prefix]
    if model.config.model_type == "blip":
        row.append(model.config.text_config.sep_token_id)  # its generate drops the last token
    elif image_places(model):
        row = [model.config.image_token_index] * model.config.num_query_tokens + row
    encodes = model.config.model_type == "blip-2" and not image_places(model)  # the prompt, in an encoder of its own
    name = "decoder_input_ids" if model.config.model_type == OURS or encodes else "input_ids"
    return {name: torch.tensor([row], device=model.device).repeat(n, 1)}


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
