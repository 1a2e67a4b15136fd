"""Where a model runs and in which precision, and uint8 pixels as the floats that its encoder takes."""

from __future__ import annotations

import torch
from torch import nn

from toolkit.data.pixels import PixelTransform
from toolkit.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    return DTYPES[precision]
