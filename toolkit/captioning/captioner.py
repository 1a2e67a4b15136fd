"""Any captioner, warm: `load_captioner("model").caption(["a.jpg", "b.png"])`. Which loader a model type has.

Ours, any other VisionEncoderDecoderModel, BLIP and GIT caption without being told how; BLIP-2 may be told, and all others
that transformers calls image-text-to-text must be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from toolkit.captioning.base import Batches, Captioner, Decoded, Picture, result
from toolkit.captioning.exported import load_exported
from toolkit.captioning.onnx_model import is_exported
from toolkit.captioning.prompted import PromptedCaptioner, load_prompted
from toolkit.data.pixels import PixelTransform, transform_of
from toolkit.errors import ModelError
from toolkit.models.freezing import hash_weights
from toolkit.models.loading import (
    CAPTIONERS,
    OURS,
    load_image_processor,
    load_model,
    load_tokenizer,
    model_type_of,
    silence_transformers,
)
from toolkit.models.packed import PRECISIONS, pack_linears, why_not_int8
from toolkit.models.precision import DTYPES, PixelNormalizer, cpu_has_bf16, pick_device, resolve_precision
from toolkit.models.special_tokens import settle_generation
from toolkit.runtime.progress import say

__all__ = ["Batches", "Captioner", "Decoded", "Picture", "faster_precision", "load_captioner", "result"]

HINT = "name a folder that `toolkit finetune` wrote, or a captioner on the hub, with --model"


def load_captioner(name: str | Path = "model", device: str = "auto", precision: str = "auto") -> Captioner:
    """A captioner from a folder or the hub, in evaluation mode: ours, any other VisionEncoderDecoderModel, BLIP, GIT, one
    that `toolkit export` wrote, and what transformers' AutoModelForImageTextToText loads.

    Raises:
        ModelError: no such folder or name, or a model that can't caption.
    """
    silence_transformers()
    if is_exported(Path(name)):
        return load_exported(name, device, precision, HINT)
    load = KINDS.get(model_type_of(name, "--model", HINT), load_prompted)
    return load(name, pick_device(device), precision)


def load_plain(name: str | Path, where: torch.device, precision: str) -> Captioner:
    """One that captions without being told how."""
    model = load_model(name, "--model", HINT, CAPTIONERS)
    tokenizer = load_tokenizer(name, "--model", HINT)
    processor = load_image_processor(name, "--model", HINT)
    transform = transform_of(processor, json.loads(processor.to_json_string()), f"--model {name}")
    if model.config.model_type != OURS:
        settle_generation(model)
    normalizer = PixelNormalizer(transform) if isinstance(transform, PixelTransform) else nn.Identity()
    precision = resolve_precision(precision, where)
    loaded = None
    if where.type == "cpu" and precision in PRECISIONS and model.config.model_type == OURS:
        reason = why_not_int8() if precision == "int8" else None
        if reason:
            raise ModelError(f"--precision int8: {reason}; use bf16 or fp32.")
        if precision == "bf16" and not cpu_has_bf16():
            say("--precision bf16: this processor has no bf16 arithmetic and emulates it, slower than fp32")
        loaded = hash_weights(model.state_dict())
        pack_linears(model, precision)
    elif precision == "int8":
        raise ModelError(
            f"--precision int8: only for a VisionEncoderDecoderModel on a CPU, not {model.config.model_type} on {where}; use bf16."
        )
    else:
        model.to(device=where, dtype=DTYPES[precision])
    return Captioner(model.eval(), tokenizer, processor, transform, normalizer.to(where), precision, loaded)


def load_blip_2(name: str | Path, where: torch.device, precision: str) -> Captioner:
    """One that may be told how."""
    return PromptedCaptioner.beside(load_plain(name, where, precision), name)


KINDS: dict[str, Callable[[str | Path, torch.device, str], Captioner]] = {
    OURS: load_plain, "blip": load_plain, "git": load_plain, "blip-2": load_blip_2,
}  # fmt: skip


def faster_precision(captioner: Captioner) -> str | None:
    """What to say where this processor has faster arithmetic than what the captioner uses; None where it has none.

    By width, as measured (docs/benchmarks.md): bf16 gains from 256 on, int8 is known to gain at 768 and not at 256.
    """
    if captioner.precision != "fp32" or captioner.device.type != "cpu" or captioner.kind != OURS:
        return None
    width = captioner.model.config.decoder.hidden_size
    if width < 256 or not cpu_has_bf16():
        return None
    names = "--precision bf16 is" if width < 768 else "--precision bf16 and --precision int8 are"
    return (
        f"captioning in fp32, which gives the same captions on every machine; {names} faster on this processor (`toolkit "
        "inspect MODEL --precision bf16` says how much, and which captions change)"
    )
