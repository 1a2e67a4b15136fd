"""Runs of several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}


def torchrun(ranks: int, *command: str, **named: Any) -> subprocess.Popen[str]:
    """In a session of its own, whose processes can be ended together."""
    return subprocess.Popen(
        [*TORCHRUN, str(ranks), *command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **named,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, list[str], str]:
    """Exit code, what it printed, the errors it told, and all that it told."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    # torchrun's own traceback begins in runpy.
    assert re.findall(r'Traceback .*\n(?:\[rank\d+\]:)? +File "(?!<frozen runpy>)', err) == [], err
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("Error: ")], err


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
