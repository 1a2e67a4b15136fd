"""Names that Trainer has and finetune has otherwise, and `--report-to`, whose values are Trainer's."""

from __future__ import annotations

from typing import Any

from toolkit.options.fields import check, check_unused

# Options of Trainer's that are another thing here, or in another form.
PER_DEVICE = "counts captions there, and here images with all their captions; give {} instead, in images"
REFUSED = {
    "per_device_train_batch_size": PER_DEVICE.format("--batch-size"),
    "per_device_eval_batch_size": PER_DEVICE.format("--eval-batch-size"),
    "bf16": "is --precision bf16 here",
    "fp16": "is --precision fp16 here",
    "overwrite_output_dir": "is --overwrite here, which trains again and replaces the model",
    "resume_from_checkpoint": "is not needed, because the same command goes on from the last checkpoint; --no-resume starts anew",
    "eval_strategy": "is --eval-steps N here; without it, each epoch is evaluated",
    "save_strategy": "is --save-steps N here; without it, each evaluation saves a checkpoint",
    "data_seed": "is --seed here",
    **{
        name: f"is given as --trainer-arg {name}=VALUE here"
        for name in (
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "lr_scheduler_kwargs",
            "max_grad_norm",
            "optim",
            "optim_args",
        )
    },
}
NAMED_RUNS = ("wandb", "trackio", "mlflow", "comet_ml", "swanlab", "all")  # reporters whose runs have names


def check_reporters(options: Any) -> None:
    """Refuses values of `--report-to` that name nothing, and a `--run-name` that no reporter would use."""
    names = [name.strip() for name in options.report_to.split(",")]
    check(all(names) and len({*names}) == len(names), "report_to", repr(options.report_to),
          "is none, or names with commas between, as wandb,tensorboard")  # fmt: skip
    check(len(names) == 1 or not {"none", "all"} & {*names}, "report_to", options.report_to,
          "none and all stand alone; leave out the others")  # fmt: skip
    check(options.run_name is None or bool(options.run_name.strip()), "run_name", repr(options.run_name),
          "is blank; leave it out")  # fmt: skip
    if not {*names} & {*NAMED_RUNS}:
        listed = f"{', '.join(NAMED_RUNS[:-1])} or {NAMED_RUNS[-1]}"
        check_unused(options, ("run_name",), f"only applies with --report-to {listed}; add that")
