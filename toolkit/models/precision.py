"""Where a model runs and in which precision, and uint8 pixels as the floats that its encoder takes."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import nn

from toolkit.data.pixels import PixelTransform, centre
from toolkit.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PixelNormalizer(nn.Module):
    """uint8 (..., C, H, W) -> float (..., C, H, W), on whatever device it lives: the processor's rescale and normalise.

    Of pixels with a margin, as `preprocess --pixel-margin` stores them, it takes the centre: what the processor crops.

    `x / 255` in float32 is what the processors' float64 product rounds to; multiplying by float32(1 / 255) is not.
    """

    def __init__(self, transform: PixelTransform) -> None:
        super().__init__()
        self.size = transform.shape[1:]  # (height, width) that the encoder takes
        self.by_255 = abs(transform.rescale_factor * 255 - 1) < 1e-9
        self.rescale_factor = transform.rescale_factor
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(transform.mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = centre(pixels, *self.size)
        scaled = pixels.float() / 255 if self.by_255 else (pixels.double() * self.rescale_factor).float()
        return (scaled - self.mean) / self.std


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, then Apple's, then the CPU; under `accelerate launch` the CPU if its config says `use_cpu`.

    Raises:
        ModelError: the device is not there.
    """
    if name == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        name = "cpu"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ModelError(f"--device {name}: not on this machine; use --device auto.") from None
    return device


def resolve_precision(precision: str, device: torch.device, training: bool = False) -> str:
    """The name of the precision that `auto` stands for: bf16 on a GPU that has it in hardware; on a CPU fp32 for
    captioning, so that captions are the same on every machine, and for training bf16 where `cpu_has_bf16`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":  # without the argument a GPU that only emulates it, slower than fp32, would do
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if training and device.type == "cpu" and cpu_has_bf16() else "fp32"


def describe_precision(asked: str, used: str) -> str:
    """What is computed in, and why, for the log and the card."""
    if asked != "auto":
        return used
    return f"{used} (auto: {'there is hardware for it' if used == 'bf16' else 'bf16 would not be faster'})"


# Limits of oneDNN (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html) that leave it no bf16.
WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (AVX512-BF16, AMX, Arm's BF16), and oneDNN may use that.

    torch's own two questions miss one half each: `_is_mkldnn_bf16_supported` is also true where AVX512 emulates it, and
    `torch.cpu._is_avx512_bf16_supported` does not know of a limit set by ONEDNN_MAX_CPU_ISA.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags()) and limit.upper() not in WITHOUT_BF16


@cache
def _cpu_flags() -> frozenset[str]:
    """What the processor can do, by the names that Linux has for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return frozenset(
            word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()
        )
    except OSError:  # macOS, Windows
        known = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx_bf16": torch.cpu._is_amx_tile_supported()}
        known["bf16"] = platform.machine() == "arm64" and _sysctl("hw.optional.arm.FEAT_BF16") == "1"
        return frozenset(name for name, there in known.items() if there)


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
