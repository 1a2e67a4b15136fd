"""The model that training starts from: built anew or another captioner, and what of it is to be trained."""

from __future__ import annotations

import json
from typing import Any

from transformers import VisionEncoderDecoderModel

from toolkit.cache import Cache
from toolkit.errors import ModelError
from toolkit.freezing import freeze_encoder, freeze_unused
from toolkit.modeling import (
    SpecialTokens,
    build_captioner,
    load_image_processor,
    load_model,
    load_tokenizer,
    settle_special_tokens,
)
from toolkit.options import FinetuneOptions
from toolkit.pixels import PixelTransform
from toolkit.progress import say


def starting_model(options: FinetuneOptions, cache: Cache, tokens: SpecialTokens) -> Any:
    """As the options want it, in training mode, in fp32.

    Raises:
        ModelError: a part can't be loaded, or the captioner of --init-from reads other pixels or tokens than the cache's.
    """
    made = cache.manifest["options"]
    if options.init_from is not None:
        model = _captioner(options.init_from, cache, tokens)
    else:
        vocabulary = cache.manifest["labels"]["vocab_size"]
        model = build_captioner(made["encoder"], made["decoder"], made["preset"], vocabulary, tokens, options.seed)
        if made["preset"] and options.trains_no_encoder:
            say(f"note: the encoder of preset {made['preset']} has random weights, and keeps them if it is frozen")
    if options.trains_no_encoder:
        freeze_encoder(model.encoder, options.unfreeze_last or 0)
    return model.train()


def _captioner(name: str, cache: Cache, tokens: SpecialTokens) -> VisionEncoderDecoderModel:
    """Another captioner, if the cache was made for it."""
    hint = "name a folder that `toolkit finetune` wrote, or a captioner on the hub"
    model = load_model(name, "--init-from", hint)
    theirs = load_tokenizer(name, "--init-from", hint), load_image_processor(name, "--init-from", hint)
    ours = (
        load_tokenizer(str(cache.directory / "tokenizer")),
        load_image_processor(str(cache.directory / "image_processor")),
    )
    for what, one, other in zip(
        ("tokenizer", "image processor"), map(_identity, ours), map(_identity, theirs), strict=True
    ):
        if one != other:
            raise ModelError(
                f"--init-from {name}: {cache.directory} was made for another {what}; make a cache for this captioner "
                f"with `toolkit preprocess --encoder {name} --decoder {name} --out FOLDER`."
            )
    settle_special_tokens(model, tokens)
    freeze_unused(model.encoder)
    return model


def _identity(processor: Any) -> Any:
    """What a tokenizer or an image processor does, whatever version of its files says so."""
    if hasattr(processor, "backend_tokenizer"):
        settings = json.loads(processor.backend_tokenizer.to_str())
        return {k: v for k, v in settings.items() if k not in ("truncation", "padding", "version")}
    return PixelTransform.from_processor_config(json.loads(processor.to_json_string()))
