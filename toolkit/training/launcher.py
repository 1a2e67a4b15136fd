"""What `accelerate launch` tells the processes that it starts, from its config file: in environment variables.

The file (`accelerate config` writes it) is read by the launcher alone, by no library: a command that was started without it
knows nothing of it. Processes, machines and GPUs are the launcher's own work; the rest is here.
"""

from __future__ import annotations

import os
from dataclasses import replace

from toolkit.errors import InputError
from toolkit.options import FinetuneOptions
from toolkit.runtime.progress import say

PRECISION = "ACCELERATE_MIXED_PRECISION"  # "no" also where nobody has said anything
# What Accelerate would do to the model behind our back, with what to do instead.
REFUSED = {
    "ACCELERATE_USE_FSDP": ("FSDP", "toolkit sets it up itself; use `finetune --fsdp` instead"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "toolkit does not train with it; use `finetune --fsdp`, or MULTI_GPU"),
    "ACCELERATE_USE_MEGATRON_LM": (
        "Megatron-LM",
        "toolkit does not train with it; use `finetune --fsdp`, or MULTI_GPU",
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism config", "toolkit does not train with it; leave it out"),
}


def as_launched(options: FinetuneOptions) -> FinetuneOptions:
    """The options with what the launcher says where they say nothing: its bf16 or fp16 is what `--precision auto` is.

    Raises:
        InputError: it asks for what toolkit does not do, or sets up itself.
    """
    asked = os.environ.get(PRECISION, "no").lower()
    for variable, (what, way) in REFUSED.items():
        if os.environ.get(variable, "").lower() == "true":
            raise InputError(f"accelerate launch: asks for {what}; {way}.")
    if asked == "fp8":
        raise InputError(
            "accelerate launch: asks for fp8, which toolkit does not train in; set mixed_precision to bf16."
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if PRECISION in os.environ and backend.lower() not in ("", "no") and not options.compile:
        raise InputError(
            f"accelerate launch: asks for the dynamo backend {backend}; set it to no, and use `finetune --compile`."
        )
    if asked not in ("bf16", "fp16"):
        return options
    if options.precision != "auto":
        if options.precision != asked:
            say(f"note: accelerate's mixed_precision {asked} gives way to --precision {options.precision}")
        return options
    say(f"--precision {asked}: as accelerate launch says")
    return replace(options, precision=asked)


def tell_accelerate(precision: str) -> None:
    """Makes Accelerate, which reads the variable where neither bf16 nor fp16 is on, compute in what was decided."""
    if PRECISION in os.environ:
        os.environ[PRECISION] = "no" if precision == "fp32" else precision
