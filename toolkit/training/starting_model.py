"""The model that training starts from: built from encoder and decoder, or another captioner; and what of it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, VisionEncoderDecoderModel

from toolkit.cache.schema import Cache
from toolkit.data.pixels import PixelTransform
from toolkit.errors import ModelError
from toolkit.models.freezing import freeze_encoder, freeze_unused
from toolkit.models.loading import build_captioner, load_image_processor, load_model, load_tokenizer
from toolkit.models.lora import add_lora
from toolkit.models.special_tokens import settle_special_tokens
from toolkit.options import FinetuneOptions
from toolkit.options.preprocess import NEW_DECODERS
from toolkit.records import SpecialTokens
from toolkit.runtime.progress import say


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
    if options.decoder_dropout is not None:
        set_dropout(model.decoder, options.decoder_dropout)
    elif options.objective == "cider":  # a caption's gradient is that of the very model that it was drawn from
        rest_dropout(model.decoder)
    if options.trains_no_encoder:
        freeze_encoder(model.encoder, options.unfreeze_last or 0)
    if options.lora_rank is not None:
        if options.init_from is None:
            _check_words(made, cache.manifest["labels"]["vocab_size"])
        model = add_lora(model, options.lora_rank, options.lora_targets, options.init_from is not None)
    return model.train()


DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob")


def set_dropout(decoder: Any, share: float) -> None:
    """The same dropout everywhere in a decoder, and in its config under the names that it has there."""
    rest_dropout(decoder, share)
    for name in DROPOUTS:
        if hasattr(decoder.config, name):
            setattr(decoder.config, name, share)


def rest_dropout(decoder: Any, share: float = 0.0) -> None:
    """The same dropout everywhere in a decoder as long as it is in memory; its config, which is saved, keeps its own."""
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def finished_model(name: str, tokens: SpecialTokens) -> Any:
    """The model that a run has ended with, to be evaluated again."""
    model = load_model(name, "--output-dir", "train it again with --overwrite")
    settle_special_tokens(model, tokens)
    return model


def _check_words(made: dict[str, Any], vocabulary: int) -> None:
    """LoRA leaves the embeddings as they are; tokens that the tokenizer alone knows would stay random."""
    if made["decoder"] in NEW_DECODERS:
        say(f"note: the weights of --decoder {made['decoder']} are random, and LoRA leaves most of them as they are")
    elif made["preset"]:
        say(f"note: the weights of preset {made['preset']} are random, and LoRA leaves most of them as they are")
    elif AutoConfig.from_pretrained(made["decoder"], local_files_only=True).vocab_size < vocabulary:
        raise ModelError(
            f"--lora-rank: the tokenizer of {made['decoder']} has words that its decoder has still to learn, which "
            "low-rank updates of the attention can't; leave --lora-rank out."
        )


def base_of(options: FinetuneOptions, cache: Cache, tokens: SpecialTokens) -> dict[str, Any]:
    """What an adapter of this run belongs to (toolkit/models/lora.py), local folders by their full path."""

    def place(name: str | None) -> str | None:
        return str(Path(name).resolve()) if name and Path(name).is_dir() else name

    made = cache.manifest["options"]
    return {
        "init_from": place(options.init_from),
        "encoder": place(made["encoder"]),
        "decoder": made["decoder"] if made["decoder"] in NEW_DECODERS else place(made["decoder"]),
        "preset": made["preset"],
        "seed": options.seed,
        "vocab_size": cache.manifest["labels"]["vocab_size"],
        "tokens": [tokens.start, tokens.eos, tokens.pad],
    }


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
    """What a tokenizer or an image processor does, without the version that wrote its files."""
    if hasattr(processor, "backend_tokenizer"):
        settings = json.loads(processor.backend_tokenizer.to_str())
        return {k: v for k, v in settings.items() if k not in ("truncation", "padding", "version")}
    return PixelTransform.from_processor_config(json.loads(processor.to_json_string()))
