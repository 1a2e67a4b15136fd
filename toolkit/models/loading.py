"""Models, tokenizers and image processors: building, loading and saving them.

A captioner on disk is a plain `VisionEncoderDecoderModel` with its tokenizer and image processor; toolkit is not needed
to use a saved one. `toolkit.captioning.captioner` loads all three together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from toolkit.errors import ModelError, is_bug
from toolkit.models.freezing import freeze_unused
from toolkit.models.lora import BASE, is_adapter, read_base, with_adapter
from toolkit.models.presets import NEW_DECODERS, TINY_DECODER, TINY_ENCODER
from toolkit.models.special_tokens import settle_special_tokens
from toolkit.records import SpecialTokens
from toolkit.runtime.files import read_object
from toolkit.runtime.hub import WAYS_OUT, out_of_reach, why_not


def load_part(what: str, option: str, name: str | Path, load: Callable[..., Any], hint: str) -> Any:
    """Calls `load(local_files_only=...)`; a model that is not there becomes one sentence."""
    loud = logging.getLogger("transformers"), logging.getLogger("huggingface_hub")
    levels = [logger.level for logger in loud]
    for logger in loud:  # transformers explains a failed download on its own logger before it raises
        logger.setLevel(logging.CRITICAL)
    try:
        return load(local_files_only=out_of_reach(str(name)))
    except ModelError:
        raise
    except Exception as error:  # of tokenizers' it is no narrower
        if is_bug(error):
            raise
        reason = " ".join(str(error).split())[:200]
        if str(name).startswith((".", "/")) and not Path(name).exists():
            raise ModelError(f"{option} {name}: no such folder (relative to the current directory); {hint}.") from None
        if Path(name).exists():
            raise ModelError(f"{option} {name}: no {what} can be loaded from this folder ({reason}); {hint}.") from None
        raise ModelError(
            f"{option} {name}: the {what} could not be loaded from the Hugging Face hub: {why_not(str(name), error, hint)}."
        ) from None
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def load_image_processor(name: str | Path, option: str = "--encoder", hint: str = WAYS_OUT) -> Any:
    """The encoder's image processor on its Pillow backend; torchvision is not needed, and gives other pixels."""
    return load_part(
        "image processor",
        option,
        name,
        lambda **where: AutoImageProcessor.from_pretrained(str(name), backend="pil", **where),
        hint,
    )


def load_tokenizer(name: str | Path, option: str = "--decoder", hint: str = WAYS_OUT) -> Any:
    return load_part("tokenizer", option, name, lambda **where: AutoTokenizer.from_pretrained(str(name), **where), hint)


def build_captioner(
    encoder: str, decoder: str, preset: str | None, vocab_size: int, tokens: SpecialTokens, seed: int
) -> VisionEncoderDecoderModel:
    """Encoder and decoder joined into one model, ready to be trained.

    Args:
        vocab_size: tokens the tokenizer knows; the embeddings grow to it if need be.
        seed: of whatever has no pretrained weights (all of the tiny preset and of a decoder of `NEW_DECODERS`; else the cross-attention).

    Raises:
        ModelError: a part could not be loaded.
    """
    torch.manual_seed(seed)
    if preset == "tiny":
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            ViTConfig(**TINY_ENCODER), GPT2Config(vocab_size=vocab_size, **TINY_DECODER)
        )
        model = VisionEncoderDecoderModel(config=config)
    else:
        # Not from_encoder_decoder_pretrained: it crashes on every GPT-2 whose config.json lacks `is_decoder`.
        # The encoder first: what the decoder lacks is drawn after what the encoder lacks, as ever.
        vision = _load_encoder(encoder)
        language = new_decoder(decoder, vocab_size) if decoder in NEW_DECODERS else _load_decoder(decoder)
        model = VisionEncoderDecoderModel(encoder=vision, decoder=language)
        if vocab_size > model.decoder.get_input_embeddings().weight.shape[0]:
            model.decoder.resize_token_embeddings(vocab_size)
            model.config.decoder.vocab_size = vocab_size
    settle_special_tokens(model, tokens)
    freeze_unused(model.encoder)
    return model


def _load_encoder(name: str) -> Any:
    def load(**where: Any) -> Any:
        config = AutoConfig.from_pretrained(str(name), **where)
        if config.model_type == "vision-encoder-decoder":
            raise ModelError(
                f"--encoder {name}: is a whole captioner; fine-tune it with `toolkit finetune --init-from {name}`."
            )
        if hasattr(config, "vision_config"):  # CLIP, SigLIP and their like: the vision half alone
            classes = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
            if config.model_type not in classes:
                raise ValueError(f"model type {config.model_type} has no vision encoder that toolkit knows")
            return getattr(transformers, classes[config.model_type]).from_pretrained(name, dtype=torch.float32, **where)
        return AutoModel.from_pretrained(name, dtype=torch.float32, **where)

    return load_part("vision encoder", "--encoder", name, load, WAYS_OUT)


def new_decoder(name: str, vocab_size: int) -> GPT2LMHeadModel:
    """A decoder of `NEW_DECODERS`, with weights drawn from torch's generator."""
    own = {"bos_token_id": None, "eos_token_id": None, "is_decoder": True, "add_cross_attention": True}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **own, **NEW_DECODERS[name]))


def _load_decoder(name: str) -> Any:
    def load(**where: Any) -> Any:
        config = AutoConfig.from_pretrained(str(name), **where)
        config.is_decoder = True
        config.add_cross_attention = True
        return AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32, **where)

    return load_part("text decoder", "--decoder", name, load, WAYS_OUT)


OURS = "vision-encoder-decoder"
# Model types that caption an image without being told how; the others that transformers calls image-text-to-text have to
# be told.
CAPTIONERS = (OURS, "blip", "git", "blip-2")
KINDS = {OURS, *CAPTIONERS, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}


def model_type_of(name: str | Path, option: str, hint: str) -> str:
    """The model type of a captioner, from its config alone; of an adapter that of what it adapts.

    Raises:
        ModelError: no such folder or name, or not a captioner.
    """
    path = Path(name)
    if is_adapter(path):
        if (path / BASE).exists():
            return OURS
        base = (read_object(path / "adapter_config.json") or {}).get("base_model_name_or_path")
        return model_type_of(base, f"{option} {name}, an adapter of", hint) if base else OURS
    _check_place(name, option, hint)

    def load(**where: Any) -> str:
        if path.is_dir():
            found = (read_object(path / "config.json") or {}).get("model_type")
        else:
            found = AutoConfig.from_pretrained(str(name), **where).model_type
        _check_kind(found, KINDS, name, option, hint)
        return str(found)

    return str(load_part("captioner", option, name, load, hint))


def _check_kind(kind: Any, kinds: Collection[str], name: str | Path, option: str, hint: str) -> None:
    if kind not in kinds:
        known = kinds if len(kinds) < 9 else (*CAPTIONERS, "image-text-to-text")
        raise ModelError(f"{option} {name}: a model of type {kind}, not a {' or '.join(known)} captioner; {hint}.")


def _check_place(name: str | Path, option: str, hint: str) -> None:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{option} {name}: not a model folder (no config.json); {hint}.")
    if path.is_file():
        raise ModelError(f"{option} {name}: is a file, not a model folder; {hint}.")
    if not path.is_dir() and (
        name == "model"
        or path.is_absolute()
        or str(name).startswith(".")
        or (path.parent.name and path.parent.is_dir())
    ):
        raise ModelError(f"{option} {name}: no such folder; {hint}.")


def load_model(name: str | Path, option: str, hint: str, kinds: Sequence[str] = (OURS,)) -> Any:
    """A captioner's model from a folder or the hub, in fp32 on the CPU.

    Args:
        option: that `name` was given with.
        kinds: model types that will do.

    Raises:
        ModelError: no such folder or name, or not a captioner.
    """

    path = Path(name)
    if is_adapter(path):
        base = read_base(name, option)
        if base["init_from"] is not None:
            model = load_model(base["init_from"], f"{option} {name}, an adapter of", hint)
        else:
            parts = (base["encoder"], base["decoder"], base["preset"], base["vocab_size"])
            model = build_captioner(*parts, SpecialTokens(*base["tokens"]), base["seed"])
        return with_adapter(model, base, name, option)
    _check_place(name, option, hint)
    if path.is_dir():
        _check_kind((read_object(path / "config.json") or {}).get("model_type"), kinds, name, option, hint)

    def load(**where: Any) -> Any:
        _check_kind(AutoConfig.from_pretrained(str(name), **where).model_type, kinds, name, option, hint)
        return AutoModelForImageTextToText.from_pretrained(str(name), dtype=torch.float32, **where)

    return load_part("captioner", option, name, load, hint)


def save_captioner(
    model: VisionEncoderDecoderModel, tokenizer: Any, image_processor: Any, settings: GenerationConfig, directory: Path
) -> None:
    """Writes a model folder that `from_pretrained` opens with no toolkit installed; of an adapted model the adapter."""
    model.generation_config = settings
    model.save_pretrained(directory)
    settings.save_pretrained(directory)  # with an adapter none are saved
    tokenizer.save_pretrained(directory)
    image_processor.save_pretrained(directory)


def silence_transformers() -> None:
    """Progress bars and advice of the libraries are not for our users; warnings stay."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_clip_model(name: str | Path, option: str, hint: str) -> Any:
    """A CLIP model with both halves from a folder or the hub, in fp32 on the CPU.

    Raises:
        ModelError: no such folder or name, or another kind of model.
    """
    path = Path(name)
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        raise ModelError(f"{option} {name}: not a model folder (no config.json); {hint}.")

    def load(**where: Any) -> Any:
        kind = AutoConfig.from_pretrained(str(name), **where).model_type
        if kind != "clip":
            raise ModelError(f"{option} {name}: a model of type {kind}, not a CLIP model; {hint}.")
        return transformers.CLIPModel.from_pretrained(str(name), dtype=torch.float32, **where)

    return load_part("CLIP model", option, name, load, hint)
