"""Graphs by torch's older exporter: of the same modules, and in a second instead of ten."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from toolkit.models.onnx_graphs import OPSET


def trace_quickly(
    module: nn.Module, inputs: dict[str, tuple[torch.Tensor, dict[int, str]]], outputs: list[str], path: Path
) -> None:
    """Stands for `toolkit.models.onnx_graphs.trace`."""
    torch.onnx.export(
        module, tuple(example for example, _ in inputs.values()), str(path), input_names=list(inputs),
        output_names=outputs, dynamic_axes={name: axes for name, (_, axes) in inputs.items()}, dynamo=False,
        opset_version=OPSET - 1,
    )  # fmt: skip
