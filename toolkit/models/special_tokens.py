"""The one place where special tokens are settled, from tokenizer to generation settings."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationConfig, VisionEncoderDecoderModel

from toolkit.errors import ModelError
from toolkit.options import GenerationOptions
from toolkit.records import SpecialTokens


def special_tokens_of(tokenizer: Any, name: str = "the tokenizer") -> SpecialTokens:
    """BERT-like tokenizers start with [CLS] and end with [SEP]; GPT-2-like ones do both with one token.

    Raises:
        ModelError: the tokenizer has neither an EOS nor a SEP token.
    """
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if eos is None:
        raise ModelError(f"{name}: its tokenizer has no EOS token, so captions could not end; name another --decoder.")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    pad = tokenizer.pad_token_id
    return SpecialTokens(start=start if start is not None else eos, eos=eos, pad=pad if pad is not None else eos)


def settle_special_tokens(model: VisionEncoderDecoderModel, tokens: SpecialTokens) -> None:
    """Writes the ids wherever transformers looks for them: the only place in toolkit that does."""
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = tokens.start
        config.bos_token_id = tokens.start
        config.eos_token_id = tokens.eos
        config.pad_token_id = tokens.pad
    # The decoder's own pad id makes some models warn about, or drop, start tokens that share it; RoBERTa-likes need it.
    if not first_position(model.decoder):
        model.config.decoder.pad_token_id = None


def first_position(decoder: nn.Module) -> int:
    """What a decoder calls the position of its first token: 0, but RoBERTa-likes count on from their padding id."""
    for name, module in decoder.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def generation_config(options: GenerationOptions, tokens: SpecialTokens) -> GenerationConfig:
    """What a model's folder is to say; beam settings only where there are beams, else saving it fails."""
    settings: dict[str, Any] = {
        "num_return_sequences": 1,
        "early_stopping": False,
        **options.given(),
        "decoder_start_token_id": tokens.start,
        "bos_token_id": tokens.start,
        "eos_token_id": tokens.eos,
        "pad_token_id": tokens.pad,
    }
    if settings.get("num_beams", 1) == 1:
        settings.pop("early_stopping")
        settings.pop("length_penalty", None)
    return GenerationConfig(**settings)


def settle_generation(model: Any) -> None:
    """Special tokens where decoding looks for them: BLIP and its like keep them with their text model's settings, and
    what they have in `generation_config` may lack them."""
    text = model.config.get_text_config()
    settings = model.generation_config
    settings.decoder_start_token_id = settings.bos_token_id = text.bos_token_id
    if getattr(text, "is_encoder_decoder", False):  # T5 in BLIP-2
        settings.decoder_start_token_id = text.decoder_start_token_id
    settings.eos_token_id = text.sep_token_id if model.config.model_type == "blip" else text.eos_token_id
    settings.pad_token_id = text.pad_token_id
