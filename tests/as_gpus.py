"""`python as_gpus.py finetune ...`: the toolkit, with accelerate believing that CPUs are GPUs.

Accelerate shards models on GPUs alone; `fully_shard` itself works on CPUs as well. So Trainer's whole way with FSDP is run
where there is no GPU, but for NCCL and CUDA.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import toolkit.commands.finetune
import toolkit.training.trainer
from toolkit.cli import main

state.PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
toolkit.commands.finetune.check_sharding = lambda *_: None
whole_model = toolkit.training.trainer.whole_model


def checked(model: Any, kind: type) -> Any:
    """A share of each weight must lie here, and not all of it."""
    weights = list(model.parameters())
    held = sum(w.to_local().numel() for w in weights if isinstance(w, DTensor))
    print(f"{type(model).__name__}: {held / sum(w.numel() for w in weights):.2f} of the weights", file=sys.stderr)
    return whole_model(model, kind)


toolkit.training.trainer.whole_model = checked
main()
