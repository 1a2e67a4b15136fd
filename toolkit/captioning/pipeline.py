"""Images to captions, batch by batch: what batch-caption does here, and on each node of a cluster.

    read, hash and resize (threads, ahead) -> batch -> caption -> (image, row)

Knows the journal as what says which captions are there already, and no output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from toolkit.captioning.base import Batches, Captioner, Decoded, result
from toolkit.captioning.beam_search import longest
from toolkit.captioning.generate import DECODING_VERSION
from toolkit.captioning.journal import Fingerprint, Journal, State
from toolkit.captioning.prompts import Asked, Prompts
from toolkit.captioning.settings import Settings
from toolkit.data.images import PASSING, read_image
from toolkit.data.pixels import PixelTransform
from toolkit.data.sources import FoundImage
from toolkit.errors import ImageError
from toolkit.options import BatchCaptionOptions, GenerationOptions
from toolkit.options.generation import CONTROL
from toolkit.records import CaptionResult
from toolkit.runtime.ahead import in_threads
from toolkit.runtime.hashing import hash_hex


class Loaded(NamedTuple):
    found: FoundImage
    prepared: Any  # as the captioner takes it; None of what can't be read or is known
    size: tuple[int, int] | None  # (width, height) of the image; None where it isn't known
    error: str | None
    state: State
    key: str | None  # of the journal; None where nothing is known by the bytes: not opened, or an error that passes


class Captioned(NamedTuple):
    """An image and its captions; `kept` if its content was captioned before, also under another name or in this batch."""

    found: FoundImage
    state: State
    key: str | None
    kept: bool
    result: CaptionResult


def key_of(content: str, asked: Asked | None) -> str:
    """What a caption is known by besides the model: the image's content, and what is asked about it."""
    return content if asked is None else f"{content}:{asked.key}"


def known_result(
    found: FoundImage, journal: Journal, prompts: Prompts | None = None
) -> tuple[str, CaptionResult] | None:
    """Key and captions of an image whose file, and whose prompt, have not changed since it was captioned."""
    content = journal.content(found.place, found.state())
    if content is None:
        return None
    try:
        key = key_of(content, prompts.of_image(found, content) if prompts else None)
    except ImageError:
        return None
    result = journal.result(key)
    return (key, result) if result else None


def caption_images(
    captioner: Captioner,
    images: Iterable[FoundImage],
    options: BatchCaptionOptions,
    journal: Journal,
    prompts: Prompts | None = None,
) -> Iterator[list[Captioned]]:
    """Rows batch by batch, in the order of the images; a batch that does not fit in memory is done again in halves.

    Raises:
        RunError: not even one image fits in memory.
    """
    batches = Batches(captioner, options.generation, options.batch_size)
    load = partial(_load, captioner=captioner, journal=journal, prompts=prompts)
    keeps_raw = options.prompting.keep_raw
    with closing(in_threads(load, images, options.num_workers, ahead=4 * batches.size)) as source:
        while batch := list(islice(source, batches.size)):
            keys = {one.key for one in batch if one.key}
            # asked again: the image may have been read while a copy of it was in the batch before
            known = {key: result for key in keys if (result := journal.result(key)) is not None}
            fresh: dict[str, Loaded] = {}  # copies within the batch are captioned once
            for one in batch:
                if one.prepared is not None and one.key and one.key not in known:
                    fresh.setdefault(one.key, one)
            decoded = batches.generate([one.prepared for one in fresh.values()])
            for (key, one), its in zip(fresh.items(), decoded, strict=True):
                known[key] = _result(one, its if keeps_raw else replace(its, raw=()))
            yield [
                Captioned(one.found, one.state, one.key, fresh.get(one.key) is not one, known[one.key])
                if one.key in known
                else Captioned(one.found, one.state, one.key, False, _result(one, None))
                for one in batch
            ]  # fmt: skip


def _load(found: FoundImage, captioner: Captioner, journal: Journal, prompts: Prompts | None) -> Loaded:
    if (stored := found.pixels()) is not None:
        pixels = np.ascontiguousarray(stored)
        content = f"pixels-{hashlib.sha256(pixels.data).hexdigest()}"
        known = journal.result(content) is not None
        return Loaded(found, None if known else pixels, None, None, found.state(), content)
    try:
        data, state = found.read()
    except ImageError as error:
        return Loaded(found, None, None, str(error), (-1, -1), None)
    content = hashlib.sha256(data).hexdigest()
    try:
        asked = prompts.of_image(found, content) if prompts else None
    except ImageError as error:  # no caption to ask about: there may be one in the next run
        return Loaded(found, None, None, str(error), state, None)
    key = key_of(content, asked)
    if journal.result(key) is not None:
        return Loaded(found, None, None, None, state, key)
    try:
        image = read_image(data)
        return Loaded(found, captioner.prepare(image, asked), image.size, None, state, key)
    except ImageError as error:
        return Loaded(found, None, None, str(error), state, None if str(error) in PASSING else key)


def _result(loaded: Loaded, decoded: Decoded | None) -> CaptionResult:
    name = loaded.found.name
    if decoded is None:
        return CaptionResult(name, error=loaded.error)
    return result(name, decoded, loaded.size)


# ---- what decides a caption -----------------------------------------------------------------------------------------

FORMER_VERSION = "0.1.0"


def model_fingerprint(captioner: Captioner, options: GenerationOptions) -> Fingerprint:
    """All that decides a caption besides the image: weights and architecture, precision, tokenizer, image processor, the
    settings of decoding, the seed of sampling, and the version of decoding.

    Raises:
        InputError: an option has no effect, or can't be met, with the model's other settings.
    """
    weights, settings = captioner.hash_weights(), captioner.settings(options)
    parts = {
        "weights": weights.hex(),
        "architecture": _plain(captioner.model.config.to_diff_dict()),
        "precision": captioner.arithmetic,
        "tokenizer": _tokenizer(captioner.tokenizer),
        "image_processor": _processor(captioner),
        "decoding": _plain(settings.config.to_diff_dict()),
        "seed": options.seed if settings.config.do_sample else None,
    }
    if settings.prefix:
        parts["prefix"] = settings.prefix
    now = f"{DECODING_VERSION}:{hash_hex(json.dumps(parts, sort_keys=True, default=str))}"
    weights.update(json.dumps([FORMER_VERSION, _former(settings, options), captioner.arithmetic], sort_keys=True))
    return Fingerprint(now, weights.hex())


def _former(settings: Settings, options: GenerationOptions) -> dict[str, Any]:
    """The options of toolkit 0.1 that ask for the same; those that nobody could give there are added, and match none."""
    config, searches, samples = settings.config, settings.config.num_beams > 1, settings.config.do_sample
    stopping = {None: "false", False: "false", True: "true"}
    new = {name: getattr(options, name) for name in CONTROL if getattr(options, name) is not None}
    return {
        "num_beams": 4 if samples else config.num_beams,
        "max_length": longest(config, len(settings.prefix)),
        "length_penalty": config.length_penalty if searches else 2.0,
        "no_repeat_ngram_size": config.no_repeat_ngram_size or 0,
        "early_stopping": stopping.get(config.early_stopping, "never") if searches else "false",
        "sample": samples,
        "top_k": config.top_k if samples else 50,
        "top_p": config.top_p if samples else 1.0,
        "temperature": config.temperature if samples else 1.0,
        "num_captions": config.num_return_sequences,
        "seed": options.seed if samples else 42,
        **new,
    }


def _plain(settings: Any) -> Any:
    """Settings without where they come from and what wrote them."""
    if isinstance(settings, dict):
        said = ("transformers_version", "architectures", "dtype", "torch_dtype")
        return {k: _plain(v) for k, v in settings.items() if not str(k).startswith("_") and k not in said}
    return settings


def _tokenizer(tokenizer: Any) -> str:
    """Whatever turns tokens into words."""
    words = (
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    cleans = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    return hash_hex(words, json.dumps([type(tokenizer).__name__, sorted(tokenizer.all_special_ids), cleans]))


def _processor(captioner: Captioner) -> Any:
    """Whatever turns an image into pixels."""
    if isinstance(captioner.transform, PixelTransform):
        return asdict(captioner.transform)
    return _plain(captioner.processing)
