"""How a captioner decodes: the model's own settings, and what the options say instead.

In: a model with its `generation_config`, its tokenizer, and options. Out: `Settings`, complete. Start with `settled`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import GenerationConfig

from toolkit.captioning.bad_words import bad_words_ids, read_bad_words
from toolkit.captioning.beam_search import longest
from toolkit.errors import InputError
from toolkit.options import GenerationOptions
from toolkit.options.fields import check_unused

DEFAULT_LENGTH = 20  # new tokens that transformers generates where nobody says how many
SAMPLING = ("do_sample", "top_k", "top_p", "temperature")
NEUTRAL = (None, False, 0, 1)
ORIGINS = {"option": "options", "model": "the model's generation_config.json", "default": "defaults"}


@dataclass(frozen=True)
class Setting:
    """A setting as people are told it; `origin` is "option", "model" (its generation_config.json) or "default"."""

    value: Any
    origin: str

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "from": self.origin}


@dataclass(frozen=True)
class Settings:
    """What captions are decoded with.

    Attributes:
        config: as `generate` takes it; whatever changes a caption is set.
        prefix: tokens that every caption begins with, behind the start token.
        told: by the names of GenerationConfig, those that do something; and bad_words, start_with, seed.
    """

    config: GenerationConfig
    prefix: tuple[int, ...]
    told: dict[str, Setting]

    def to_json(self) -> dict[str, Any]:
        return {name: setting.to_json() for name, setting in self.told.items()}

    def sentence(self) -> str:
        """One line: each setting, by where it comes from."""
        parts = []
        for origin, words in ORIGINS.items():
            names = [f"{name} {_short(s.value)}" for name, s in self.told.items() if s.origin == origin]
            if names:
                parts.append(f"{', '.join(names)} ({words})")
        return "decoding with " + "; ".join(parts)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value[:3])) + (f" and {len(value) - 3} more" if len(value) > 3 else "")
    return repr(value) if isinstance(value, str) and " " in value else str(value)


def with_words(options: GenerationOptions) -> GenerationOptions:
    """The options with the words of the file of --bad-words in its place, which then is read once and on one machine.

    Raises:
        InputError: the file can't be read.
    """
    words = options.bad_words
    return replace(options, bad_words=read_bad_words(words)) if isinstance(words, Path) else options


def settled(model: Any, tokenizer: Any, options: GenerationOptions) -> Settings:
    """The model's own settings, overridden by the options that are given.

    Raises:
        InputError: an option has no effect, or can't be met, with the model's other settings.
    """
    options = with_words(options)
    own, given = _own(model), options.given()
    for length, of_new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if length in given:  # the other would count instead
            own.pop(of_new, None)
    if "max_new_tokens" in given:
        own.pop("max_length", None)
    if options.sample:
        given["num_beams"] = 1
    if isinstance(options.bad_words, tuple):
        given["bad_words_ids"] = _banned(tokenizer, options.bad_words)
    prefix = tuple(_prefix(tokenizer, options.start_with)) if options.start_with else ()
    start = own.get("decoder_start_token_id", own.get("bos_token_id"))
    ids = {"decoder_start_token_id": start, "bos_token_id": start}
    config = completed(_with(GenerationConfig(), {**own, **ids, **given}))
    if config.max_length is None and config.max_new_tokens is None:
        config.max_length = 1 + len(prefix) + DEFAULT_LENGTH
    _check(options, config, prefix)
    return Settings(config, prefix, _told(config, own, given, options))


def completed(config: GenerationConfig) -> GenerationConfig:
    """With transformers' defaults for what is None and changes a caption."""
    config = copy.deepcopy(config)
    _with(config, {"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "top_k": 50}, only_none=True)
    config.length_penalty, config.do_sample = float(config.length_penalty), bool(config.do_sample)
    if config.num_beams > 1:
        _with(config, {"early_stopping": False}, only_none=True)
    if config.do_sample:
        _with(config, {"top_p": 1.0, "temperature": 1.0}, only_none=True)
    return config


def _with(config: GenerationConfig, settings: dict[str, Any], only_none: bool = False) -> GenerationConfig:
    """Sets them, in place; unlike `update`, without judging what is not complete yet."""
    for name, value in settings.items():
        if hasattr(config, name) and not (only_none and getattr(config, name) is not None):
            setattr(config, name, value)
    return config


def _own(model: Any) -> dict[str, Any]:
    """What the model's folder says, without what it does not say."""
    own = {name: value for name, value in model.generation_config.to_dict().items() if value is not None}
    own.pop("_from_model_config", None)
    places = image_places(model)
    for name in ("max_length", "min_length"):
        if name in own:
            own[name] = max(0, own[name] - places)
    return own


def image_places(model: Any) -> int:
    """Tokens of the image in front of the start token, in BLIP-2: its lengths count them, and ours do not. With an
    encoder-decoder such as T5 they are in the encoder, and there are none in front of the caption."""
    if getattr(model.config.get_text_config(), "is_encoder_decoder", False):
        return 0
    return int(getattr(model.config, "num_query_tokens", 0))


def _prefix(tokenizer: Any, text: str) -> list[int]:
    """As the tokens of a label begin; a space at the end would be a token that no caption goes on from."""
    more = {"split_special_tokens": True} if tokenizer.is_fast else {}
    return list(tokenizer(text.strip(), add_special_tokens=False, **more).input_ids)


_known: WeakKeyDictionary[Any, dict[tuple[str, ...], list[list[int]]]] = WeakKeyDictionary()


def _banned(tokenizer: Any, words: tuple[str, ...]) -> list[list[int]]:
    known = _known.setdefault(tokenizer, {})
    if words not in known:
        known[words] = bad_words_ids(tokenizer, words)
    return known[words]


def _check(options: GenerationOptions, config: GenerationConfig, prefix: tuple[int, ...]) -> None:
    """Refuses what has no effect, or can't be, with what the model's own settings say."""
    if config.num_beams == 1:
        check_unused(options, ("length_penalty", "early_stopping"),
                     "has no effect, because there is one beam; add --num-beams, or leave it out")  # fmt: skip
    captions, room = config.num_return_sequences, longest(config, len(prefix))
    if captions > config.num_beams and not config.do_sample:
        origin = "the model's folder" if options.num_beams is None else "--num-beams"
        raise InputError(
            f"--num-captions {captions}: needs as many beams ({origin} has {config.num_beams}); add --num-beams "
            f"{captions}, or --sample."
        )
    if len(prefix) + 1 >= room:
        raise InputError(
            f"--start-with {options.start_with!r}: has {len(prefix)} tokens, and with max_length {room} nothing could "
            "follow; use a longer --max-length."
        )
    if options.min_length is not None and options.min_length > room:
        raise InputError(f"--min-length {options.min_length}: is above the max_length {room}; use less, or raise that.")


def _told(
    config: GenerationConfig, own: dict[str, Any], given: dict[str, Any], options: GenerationOptions
) -> dict[str, Setting]:
    names = ["num_beams", "max_length" if config.max_new_tokens is None else "max_new_tokens", "no_repeat_ngram_size"]
    names += ["length_penalty", "early_stopping"] if config.num_beams > 1 else []
    names += SAMPLING if config.do_sample else []
    quiet = {
        *names,
        *SAMPLING,
        "length_penalty",
        "early_stopping",
        "max_length",
        "transformers_version",
        "bad_words_ids",
    }
    if options.bad_words is None:
        quiet.discard("bad_words_ids")
    names += [
        name
        for name, value in config.to_diff_dict().items()
        if name not in quiet and not name.startswith("_") and not name.endswith("_id") and value not in NEUTRAL
    ]
    told = {}
    for name in names:
        value = getattr(config, name)
        origin = "option" if name in given else "model" if name in own else "default"
        told[name] = Setting(0 if value is None else value, origin)
    if isinstance(options.bad_words, tuple):
        told["bad_words"] = Setting(list(options.bad_words), "option")
    if options.start_with is not None:
        told["start_with"] = Setting(options.start_with.strip(), "option")
    if config.do_sample:
        told["seed"] = Setting(options.seed, "default" if options.seed == GenerationOptions.seed else "option")
    return told
