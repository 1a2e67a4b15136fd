"""`--trainer-arg KEY=VALUE`: arguments of Trainer's that have no option of their own."""

from __future__ import annotations

import difflib
import json
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, get_scheduler

from toolkit.errors import InputError
from toolkit.options import FinetuneOptions

# Trainer's names for what options say.
OPTIONS = {
    "output_dir": "--output-dir",
    "num_train_epochs": "--epochs",
    "max_steps": "--max-steps",
    "per_device_train_batch_size": "--batch-size",
    "per_device_eval_batch_size": "--eval-batch-size",
    "auto_find_batch_size": "--batch-size",
    "learning_rate": "--lr",
    "lr_scheduler_type": "--lr-scheduler-type",
    "weight_decay": "--weight-decay",
    "warmup_steps": "--warmup-steps",
    "gradient_accumulation_steps": "--gradient-accumulation-steps",
    "label_smoothing_factor": "--label-smoothing",
    "bf16": "--precision",
    "fp16": "--precision",
    "bf16_full_eval": "--precision",
    "fp16_full_eval": "--precision",
    "activation_checkpointing": "--gradient-checkpointing",
    "gradient_checkpointing": "--gradient-checkpointing",
    "torch_compile": "--compile",
    "fsdp": "--fsdp",
    "eval_strategy": "--eval-steps",
    "eval_steps": "--eval-steps",
    "save_strategy": "--save-steps",
    "save_steps": "--save-steps",
    "save_total_limit": "--save-total-limit",
    "metric_for_best_model": "--eval-metric",
    "greater_is_better": "--eval-metric",
    "resume_from_checkpoint": "--resume",
    "seed": "--seed",
    "data_seed": "--seed",
    "dataloader_num_workers": "--num-workers",
    "report_to": "--report-to",
    "run_name": "--run-name",
    "generation_max_length": "--max-length",
    "generation_num_beams": "--num-beams",
    "generation_config": "--num-beams and --max-length",
    "push_to_hub": "--push-to-hub",
    "hub_model_id": "--push-to-hub",
    "hub_private_repo": "--private",
}
# What toolkit's own batches, loss, checkpoints and evaluations rest on.
FIXED = (
    "accelerator_config", "activation_checkpointing_kwargs", "average_tokens_across_devices", "batch_eval_metrics",
    "dataloader_drop_last", "dataloader_in_order", "dataloader_persistent_workers", "dataloader_pin_memory",
    "ddp_find_unused_parameters", "deepspeed", "disable_tqdm", "do_eval", "do_predict", "do_train",
    "enable_jit_checkpoint", "eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_use_gather_object",
    "fsdp_config", "gradient_checkpointing_kwargs", "hub_always_push",
    "hub_revision", "hub_strategy", "hub_token", "ignore_data_skip", "include_for_metrics",
    "include_num_input_tokens_seen", "label_names", "length_column_name", "liger_kernel_config",
    "load_best_model_at_end", "local_rank", "log_level_replica", "logging_first_step", "logging_steps",
    "logging_strategy", "parallelism_config", "predict_with_generate", "prediction_loss_only",
    "remove_unused_columns", "restore_callback_states_from_checkpoint", "save_on_each_node", "save_only_model",
    "sortish_sampler", "tf32", "train_sampling_strategy", "use_cache", "use_cpu", "use_liger_kernel",
)  # fmt: skip


def check_trainer_args(options: FinetuneOptions) -> None:
    """Whether Trainer takes them, tried before anything is loaded.

    Raises:
        InputError: as `trainer_args`, or it does not.
    """
    given = trainer_args(options.trainer_arg)
    for name in ("torch_compile_backend", "torch_compile_mode"):
        if name in given and not options.compile:
            raise InputError(f"--trainer-arg {name}={given[name]}: only applies with --compile; add that.")
    if not given:
        return
    try:
        schedule = options.lr_scheduler_type or "linear"  # None: the default, which needs no settings of its own
        arguments = Seq2SeqTrainingArguments("none", use_cpu=True, lr_scheduler_type=schedule, **given)
        Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = torch.optim.SGD([torch.zeros(1)])
        settings = arguments.lr_scheduler_kwargs
        get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=settings)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        listed = " ".join(f"--trainer-arg {one}" for one in options.trainer_arg)
        raise InputError(f"{listed}: Trainer does not take it ({reason}); give another value.") from None


def trainer_args(given: Sequence[str]) -> dict[str, Any]:
    """The arguments by name, each of its field's type, as `HfArgumentParser` reads them.

    Args:
        given: KEY=VALUE; of fields that hold a dict or a list the value is JSON.

    Raises:
        InputError: no such argument, one that an option or toolkit itself sets, or no value of its type.
    """
    kinds = get_type_hints(Seq2SeqTrainingArguments)
    free = [f.name for f in fields(Seq2SeqTrainingArguments) if f.init and f.name not in {*OPTIONS, *FIXED}]
    parser, found = HfArgumentParser(Seq2SeqTrainingArguments, exit_on_error=False, allow_abbrev=False), {}
    for one in given:
        name, _, value = one.partition("=")
        if name in OPTIONS:
            raise InputError(f"--trainer-arg {one}: {OPTIONS[name]} sets it; use that.")
        if name in FIXED:
            raise InputError(f"--trainer-arg {one}: toolkit sets {name} itself; leave it out.")
        if name not in free:
            near = difflib.get_close_matches(name, [*free, *OPTIONS], 3) or ["max_grad_norm", "optim", "adam_beta2"]
            raise InputError(f"--trainer-arg {one}: Trainer has no such argument; the nearest are {', '.join(near)}.")
        try:
            if value[:1] in ("{", "["):
                found[name] = json.loads(value)
            else:
                found[name] = getattr(parser.parse_args([f"--{name}={value}", "--output_dir=x"]), name)
        except (ArgumentError, ValueError):
            kind = getattr(kinds[name], "__name__", None) or str(kinds[name])
            raise InputError(f"--trainer-arg {one}: is no value of {name}, which is {kind}.") from None
    return found
