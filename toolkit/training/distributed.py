"""Several processes that train one captioner, as `torchrun` and `accelerate launch` start them: each is a rank.

Rank 0 decides, writes and prints. An error on one rank ends all of them: one rank reports it, and none is left waiting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.errors import InputError, RunError, SaidElsewhere, ToolkitError
from toolkit.options import FinetuneOptions
from toolkit.runtime import progress

T = TypeVar("T")

# Gloo has no error class of its own: what it says when the process at the other end of a line is gone, or the line is.
LOST = re.compile(r"Connection (closed|reset|refused)|Broken pipe|Socket closed|Timed out|gloo|NCCL")


def rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ.get("RANK") or 0) if ranks() > 1 else 0


def ranks() -> int:
    """The number of ranks; 1 without a launcher."""
    found = os.environ.get("WORLD_SIZE", "")
    return int(found) if found.isdigit() else 1


@contextmanager
def joined() -> Iterator[None]:
    """The block runs in all ranks, connected (gloo, and NCCL on GPUs); only rank 0 shows progress.

    Raises:
        RunError: they can't be connected, or another one has ended meanwhile.
    """
    if ranks() == 1:
        yield
        return
    quiet, progress.quiet = progress.quiet, progress.quiet or rank() > 0
    try:
        try:
            # Both where there are GPUs: what is agreed on travels on the CPU, gradients on the GPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"WORLD_SIZE {ranks()}: the processes can't be connected ({reason}); start them with torchrun or accelerate "
                "launch, or unset WORLD_SIZE."
            ) from None
        yield
        dist.destroy_process_group()  # not after an error: it would wait for the others
    except RuntimeError as error:
        if is_lost(error):
            raise RunError(
                f"rank {rank()}: another process of this run has ended, or does not answer; run the same command again to "
                "go on from the last checkpoint."
            ) from None
        raise
    finally:
        progress.quiet = quiet


def is_lost(error: Exception) -> bool:
    """Whether another rank is gone, or the line to it."""
    return ranks() > 1 and (isinstance(error, dist.DistError) or bool(LOST.search(str(error))))


@contextmanager
def writing(place: Path, what: str = "a checkpoint") -> Iterator[None]:
    """
    Raises:
        RunError: it can't be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is each of them, by file
        if is_lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{place}: {what} can't be written ({reason}); make room, and run the same command again to go on."
        ) from None


@contextmanager
def agreeing() -> Iterator[None]:
    """A block that all ranks finish, or none: an error on one is raised on all.

    Raises:
        ToolkitError: that of the block.
        SaidElsewhere: a rank before this one raises its own.
    """
    mine: ToolkitError | None = None
    try:
        yield
    except ToolkitError as error:
        mine = error
    found: list[str | None] = [None if mine is None else str(mine)]
    if ranks() > 1:
        found = [None] * ranks()
        dist.all_gather_object(found, None if mine is None else str(mine))
    if any(message is not None for message in found):
        speaker = next(i for i, message in enumerate(found) if message is not None)
        if mine is None or speaker != rank():
            raise SaidElsewhere(found[speaker])
        raise (type(mine)(f"rank {speaker}: {mine}") if speaker else mine) from None


def broadcast_from_rank_0(function: Callable[[], T]) -> T:
    """Calls `function` on rank 0 only; all ranks get its result, or raise its error."""
    found: list[Any] = [None]
    with agreeing():
        if rank() == 0:
            found = [function()]
    if ranks() > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


# ---- --fsdp: weights, gradients and optimizer sharded over the ranks (torch's `fully_shard`, set up by Trainer) ----


def check_sharding(options: FinetuneOptions, device: torch.device) -> None:
    """Whether `--fsdp` goes together with the other options, and with this machine.

    Raises:
        InputError: it does not.
    """
    if options.fsdp and (ranks() == 1 or device.type != "cuda"):
        raise InputError("--fsdp: needs several GPUs, a process each; start it with torchrun --nproc-per-node N.")
    if options.fsdp and (options.lora_rank is not None or options.compile):
        raise InputError("--fsdp: not together with --lora-rank or --compile; leave one of them out.")


def sharding_config(model: Any) -> dict[str, Any]:
    """Trainer's `fsdp_config`: one layer of encoder or decoder is gathered at a time."""
    layers = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    return {"version": 2, "transformer_layer_cls_to_wrap": sorted(layers), "state_dict_type": "FULL_STATE_DICT"}


def load_whole(model: Any, state: dict[str, Any]) -> None:
    """Loads a whole state dict, of which each rank keeps its shard; no tensor may be missing."""
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=True))


def whole_model(model: Any, kind: type) -> Any:
    """A sharded model as an ordinary one on the CPU. All ranks must call it; only rank 0 gets the weights.

    Args:
        kind: the class that it had before.
    """
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    plain = kind(model.config)
    if state:
        plain.load_state_dict(state, strict=True)
    return plain
