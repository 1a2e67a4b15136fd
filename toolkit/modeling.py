"""Captioners: building, loading and saving them, and the one place where special tokens are settled.

A captioner is a plain `VisionEncoderDecoderModel` with its tokenizer and image processor; nothing of toolkit is needed
to use a saved one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from toolkit.errors import ModelError, is_bug
from toolkit.freezing import freeze_unused
from toolkit.hub import WAYS_OUT, out_of_reach, why_not
from toolkit.lora import is_adapter, read_base, with_adapter
from toolkit.options import TINY_POSITIONS, GenerationOptions
from toolkit.pixels import PixelTransform, ProcessorTransform, transform_of

# The tiny preset: learns toolkit's own drawn scenes from scratch in minutes on two cores (tests/test_demo.py).
TINY_IMAGE_SIZE = 64
TINY_VOCAB_SIZE = 384
# The usual initializer_range of 0.02 belongs to models 768 wide; at 128 it is 1 / sqrt(128), or nothing moves for long.
TINY_ENCODER = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
    "image_size": TINY_IMAGE_SIZE, "patch_size": 16, "initializer_range": 0.07,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TINY_DECODER = {
    "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": TINY_POSITIONS, "initializer_range": 0.07,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that a captioner needs; for GPT-2 all three are 50256.

    Padding may share its id with EOS, since labels are masked by length (toolkit/labels.py).
    """

    start: int
    eos: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, name: str = "the tokenizer") -> SpecialTokens:
        """BERT-like tokenizers start with [CLS] and end with [SEP]; GPT-2-like ones do both with one token.

        Raises:
            ModelError: the tokenizer has neither an EOS nor a SEP token.
        """
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if eos is None:
            raise ModelError(
                f"{name}: its tokenizer has no EOS token, so captions could not end; name another --decoder."
            )
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        pad = tokenizer.pad_token_id
        return cls(start=start if start is not None else eos, eos=eos, pad=pad if pad is not None else eos)


class PixelNormalizer(nn.Module):
    """uint8 (..., C, H, W) -> float (..., C, H, W), on whatever device it lives: the processor's rescale and normalise.

    `x / 255` in float32 is what the processors' float64 product rounds to; multiplying by float32(1 / 255) is not.
    """

    def __init__(self, transform: PixelTransform) -> None:
        super().__init__()
        self.by_255 = abs(transform.rescale_factor * 255 - 1) < 1e-9
        self.rescale_factor = transform.rescale_factor
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(transform.mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scaled = pixels.float() / 255 if self.by_255 else (pixels.double() * self.rescale_factor).float()
        return (scaled - self.mean) / self.std


@dataclass
class Captioner:
    """A model with all that it takes to go from images to words.

    Attributes:
        model: one of `CAPTIONERS`.
        transform: an RGB image -> what `normalizer` takes, (C, H, W): uint8, or float32 of a `ProcessorTransform`.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    transform: PixelTransform | ProcessorTransform
    normalizer: nn.Module

    @property
    def device(self) -> torch.device:
        return self.model.device

    def decode(self, tokens: torch.Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Token rows -> captions, special tokens and surrounding white space dropped."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _load(what: str, option: str, name: str, load: Callable[..., Any], hint: str) -> Any:
    """Calls `load(local_files_only=...)`; a model that is not there becomes one sentence."""
    loud = logging.getLogger("transformers"), logging.getLogger("huggingface_hub")
    levels = [logger.level for logger in loud]
    for logger in loud:  # transformers explains a failed download on its own logger before it raises
        logger.setLevel(logging.CRITICAL)
    try:
        return load(local_files_only=out_of_reach(name))
    except ModelError:
        raise
    except Exception as error:  # of tokenizers' it is no narrower
        if is_bug(error):
            raise
        reason = " ".join(str(error).split())[:200]
        if name.startswith((".", "/")) and not Path(name).exists():
            raise ModelError(f"{option} {name}: no such folder, seen from here; {hint}.") from None
        if Path(name).exists():
            raise ModelError(f"{option} {name}: no {what} can be loaded from this folder ({reason}); {hint}.") from None
        raise ModelError(
            f"{option} {name}: the {what} could not be loaded from the Hugging Face hub: {why_not(name, error, hint)}."
        ) from None
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def load_image_processor(name: str, option: str = "--encoder", hint: str = WAYS_OUT) -> Any:
    """The encoder's image processor on its Pillow backend; torchvision is not needed, and gives other pixels."""
    return _load(
        "image processor",
        option,
        name,
        lambda **where: AutoImageProcessor.from_pretrained(name, backend="pil", **where),
        hint,
    )


def load_tokenizer(name: str, option: str = "--decoder", hint: str = WAYS_OUT) -> Any:
    return _load("tokenizer", option, name, lambda **where: AutoTokenizer.from_pretrained(name, **where), hint)


def tiny_image_processor() -> Any:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})


def train_tiny_tokenizer(captions: Any, vocab_size: int = TINY_VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the captions (an iterable of strings); deterministic for the same captions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end, model_max_length=1024
    )


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


def build_captioner(
    encoder: str, decoder: str, preset: str | None, vocab_size: int, tokens: SpecialTokens, seed: int
) -> VisionEncoderDecoderModel:
    """Encoder and decoder joined into one model, ready to be trained.

    Args:
        vocab_size: tokens the tokenizer knows; the embeddings grow to it if need be.
        seed: of whatever has no pretrained weights (all of the tiny preset; else the new cross-attention).

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
        model = VisionEncoderDecoderModel(encoder=_load_encoder(encoder), decoder=_load_decoder(decoder))
        if vocab_size > model.decoder.get_input_embeddings().weight.shape[0]:
            model.decoder.resize_token_embeddings(vocab_size)
            model.config.decoder.vocab_size = vocab_size
    settle_special_tokens(model, tokens)
    freeze_unused(model.encoder)
    return model


def first_position(decoder: nn.Module) -> int:
    """What a decoder calls the position of its first token: 0, but RoBERTa-likes count on from their padding id."""
    for name, module in decoder.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def _load_encoder(name: str) -> Any:
    def load(**where: Any) -> Any:
        config = AutoConfig.from_pretrained(name, **where)
        if config.model_type == "vision-encoder-decoder":
            raise ModelError(
                f"--encoder {name}: a whole captioner; go on from it with `toolkit finetune --init-from {name}`."
            )
        if hasattr(config, "vision_config"):  # CLIP, SigLIP and their like: the vision half alone
            classes = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
            if config.model_type not in classes:
                raise ValueError(f"model type {config.model_type} has no vision encoder that toolkit knows")
            return getattr(transformers, classes[config.model_type]).from_pretrained(name, dtype=torch.float32, **where)
        return AutoModel.from_pretrained(name, dtype=torch.float32, **where)

    return _load("vision encoder", "--encoder", name, load, WAYS_OUT)


def _load_decoder(name: str) -> Any:
    def load(**where: Any) -> Any:
        config = AutoConfig.from_pretrained(name, **where)
        config.is_decoder = True
        config.add_cross_attention = True
        return AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32, **where)

    return _load("text decoder", "--decoder", name, load, WAYS_OUT)


def generation_config(options: GenerationOptions, tokens: SpecialTokens) -> GenerationConfig:
    """The options as transformers' own object; beam settings only where there are beams, else saving it fails."""
    settings: dict[str, Any] = {
        "max_length": options.max_length,
        "num_beams": options.num_beams,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        "num_return_sequences": options.num_captions,
        "decoder_start_token_id": tokens.start,
        "bos_token_id": tokens.start,
        "eos_token_id": tokens.eos,
        "pad_token_id": tokens.pad,
    }
    if options.num_beams > 1:
        settings["length_penalty"] = options.length_penalty
        settings["early_stopping"] = {"false": False, "true": True, "never": "never"}[options.early_stopping]
    if options.sample:
        settings.update(do_sample=True, top_k=options.top_k, top_p=options.top_p, temperature=options.temperature)
    return GenerationConfig(**settings)


OURS = "vision-encoder-decoder"
# Model types that caption an image without being told how; the others that transformers calls image-text-to-text are
# talked to in prompts.
CAPTIONERS = (OURS, "blip", "git", "blip-2")


def load_model(name: str, option: str, hint: str, kinds: Sequence[str] = (OURS,)) -> Any:
    """A captioner's model from a folder or the hub, in fp32 on the CPU.

    Args:
        option: that `name` was given with.
        kinds: model types that will do.

    Raises:
        ModelError: no such folder or name, or not a captioner.
    """

    def check_kind(kind: str | None) -> None:
        if kind not in kinds:
            raise ModelError(f"{option} {name}: a model of type {kind}, not a {' or '.join(kinds)} captioner; {hint}.")

    path = Path(name)
    if is_adapter(path):
        base = read_base(name, option)
        if base["init_from"] is not None:
            model = load_model(base["init_from"], f"{option} {name}, an adapter of", hint)
        else:
            parts = (base["encoder"], base["decoder"], base["preset"], base["vocab_size"])
            model = build_captioner(*parts, SpecialTokens(*base["tokens"]), base["seed"])
        return with_adapter(model, base, name, option)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{option} {name}: not a model folder (no config.json); {hint}.")
    if path.is_file():
        raise ModelError(f"{option} {name}: a file, where a model folder is meant; {hint}.")
    if path.is_dir():
        try:
            check_kind(json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type"))
        except (ValueError, AttributeError):
            check_kind(None)
    elif name == "model" or path.is_absolute() or name.startswith(".") or (path.parent.name and path.parent.is_dir()):
        raise ModelError(f"{option} {name}: no such folder; {hint}.")

    def load(**where: Any) -> Any:
        check_kind(AutoConfig.from_pretrained(name, **where).model_type)
        return AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32, **where)

    return _load("captioner", option, name, load, hint)


def load_captioner(name: str, device: str = "auto", precision: str = "auto") -> Captioner:
    """A captioner from a folder or the hub, in evaluation mode; `toolkit.captioners` has one that takes pictures.

    Raises:
        ModelError: no such folder or name, or not a captioner.
    """
    hint = "name a folder that `toolkit finetune` wrote, or a captioner on the hub, with --model"
    model = load_model(name, "--model", hint, CAPTIONERS)
    tokenizer = load_tokenizer(name, "--model", hint)
    processor = load_image_processor(name, "--model", hint)
    transform = transform_of(processor, json.loads(processor.to_json_string()), f"--model {name}")
    if model.config.model_type != OURS:
        settle_generation(model)
    normalizer = PixelNormalizer(transform) if isinstance(transform, PixelTransform) else nn.Identity()
    where = pick_device(device)
    model.to(device=where, dtype=pick_dtype(precision, where)).eval()
    return Captioner(model, tokenizer, processor, transform, normalizer.to(where))


def settle_generation(model: Any) -> None:
    """Special tokens where decoding looks for them: BLIP and its like keep them with their text model's settings, and
    what they have in `generation_config` may lack them."""
    text = model.config.get_text_config()
    settings = model.generation_config
    settings.decoder_start_token_id = settings.bos_token_id = text.bos_token_id
    settings.eos_token_id = text.sep_token_id if model.config.model_type == "blip" else text.eos_token_id
    settings.pad_token_id = text.pad_token_id


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, then Apple's, then the CPU.

    Raises:
        ModelError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ModelError(f"--device {name}: not on this machine; use --device auto.") from None
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU that has it, else fp32."""
    if precision == "auto":
        # Without the argument a GPU that only emulates it, slower than fp32, would do.
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if fast else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


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
