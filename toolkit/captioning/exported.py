"""A captioner that `toolkit export` wrote: ONNX graphs in place of torch's model, all else as in any other."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from toolkit.captioning.base import Captioner
from toolkit.captioning.generate import why_not_supported
from toolkit.captioning.onnx_model import OnnxModel, precisions
from toolkit.captioning.settings import Settings
from toolkit.data.pixels import PixelTransform, transform_of
from toolkit.errors import InputError, ModelError
from toolkit.models.loading import load_image_processor, load_part, load_tokenizer
from toolkit.models.precision import PixelNormalizer
from toolkit.options import GenerationOptions
from toolkit.runtime.hashing import Hasher


class ExportedCaptioner(Captioner):
    """One whose model is an `OnnxModel`."""

    kind = "ONNX"
    model: OnnxModel

    def hash_weights(self) -> Hasher:
        return self.model.hash_weights()

    @property
    def arithmetic(self) -> str:
        return f"onnxruntime {self.precision}"

    def settings(self, options: GenerationOptions) -> Settings:
        """As of any other.

        Raises:
            InputError: also for what only transformers' own `generate` can do.
        """
        settings = super().settings(options)
        reason = why_not_supported(self.model, settings.config)
        if reason:
            raise InputError(
                f"--model {self.model.folder}: {reason}, which a captioner in ONNX can't do; caption with the model that it "
                "was exported from."
            )
        return settings


def load_exported(name: str | Path, device: str, precision: str, hint: str) -> ExportedCaptioner:
    """The captioner in an exported folder.

    Raises:
        ModelError: the folder lacks something or is damaged, or has no graphs in this precision; or a device other than
            the CPU.
    """
    folder = Path(name)
    there = precisions(folder)
    if device not in ("auto", "cpu"):
        raise ModelError(f"--device {device}: {name} is a model in ONNX, which runs on the CPU here; use --device cpu.")
    if precision == "auto":
        precision = there[0]
    if precision not in there:
        remedy = "export it again with --int8" if precision == "int8" else f"use {' or '.join(there)}"
        raise ModelError(f"--precision {precision}: {name} has graphs in {' and '.join(there)} only; {remedy}.")
    model = load_part("captioner", "--model", name, lambda **where: OnnxModel(folder, precision), hint)
    tokenizer = load_tokenizer(name, "--model", hint)
    processor = load_image_processor(name, "--model", hint)
    transform = transform_of(processor, json.loads(processor.to_json_string()), f"--model {name}")
    normalizer = PixelNormalizer(transform) if isinstance(transform, PixelTransform) else nn.Identity()
    return ExportedCaptioner(model, tokenizer, processor, transform, normalizer.to(torch.device("cpu")), precision)
