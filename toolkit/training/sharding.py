"""`--fsdp`: weights, gradients and optimizer spread over the ranks (torch's `fully_shard`, by Trainer)."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.errors import InputError
from toolkit.options import FinetuneOptions
from toolkit.training.distributed import ranks


def check_sharding(options: FinetuneOptions, device: torch.device) -> None:
    """
    Raises:
        InputError: the options can't be had together, or not here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise InputError("accelerate launch --use_fsdp: toolkit sets FSDP up itself; use `finetune --fsdp` instead.")
    if options.fsdp and (ranks() == 1 or device.type != "cuda"):
        raise InputError("--fsdp: needs several GPUs, a process each; start it with torchrun --nproc-per-node N.")
    if options.fsdp and (options.lora_rank is not None or options.compile):
        raise InputError("--fsdp: not together with --lora-rank or --compile; leave one of them out.")


def sharding_config(model: Any) -> dict[str, Any]:
    """Trainer's `fsdp_config`: what is gathered at a time is one layer of encoder or decoder."""
    layers = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    return {"version": 2, "transformer_layer_cls_to_wrap": sorted(layers), "state_dict_type": "FULL_STATE_DICT"}


def load_whole(model: Any, state: dict[str, Any]) -> None:
    """Every tensor of a state in its place, of which each rank keeps its share; none may be missing."""
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=True))


def whole_model(model: Any, kind: type) -> Any:
    """A sharded model as an ordinary one on the CPU. All ranks must call it; the first alone gets the weights.

    Args:
        kind: the class that it had before.
    """
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    plain = kind(model.config)
    if state:
        plain.load_state_dict(state, strict=True)
    return plain
