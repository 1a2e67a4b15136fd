"""Options of `toolkit finetune`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from toolkit.options.fields import (
    PRECISIONS,
    TOKENIZE,
    Groups,
    Options,
    check,
    check_at_least,
    check_seed,
    check_unused,
    nested,
    option,
    to_json,
)
from toolkit.options.generation import BEAM_SEARCH, OWN, TRAINED, GenerationOptions, check_generation
from toolkit.options.objective import OBJECTIVES, check_objective
from toolkit.options.preprocess import NEW_DECODERS
from toolkit.options.push import HUB, HubOptions
from toolkit.options.trainer_names import REFUSED, check_reporters

# What `None` in FinetuneOptions stands for. Fine-tuning wants a small learning rate and few epochs; a model that
# starts from random weights (preset tiny) wants the opposite. CIDEr, which rewards rare wordings, is a poor judge of a
# handful of templates: there the loss decides. "new decoder" is one with random weights beside a pretrained encoder.
TRAINING_DEFAULTS: dict[str | None, dict[str, Any]] = {
    None: {
        "epochs": 3.0,
        "lr_scheduler_type": "linear",
        "batch_size": 8,
        "lr": 5e-5,
        "warmup_ratio": 0.0,
        "captions_per_image": "all",
        "eval_metric": "cider",
    },
    "tiny": {
        "epochs": 8.0,
        "lr_scheduler_type": "linear",
        "batch_size": 32,
        "lr": 1.5e-3,
        "warmup_ratio": 0.06,
        "captions_per_image": "2",
        "eval_metric": "loss",
    },
    "new decoder": {
        "epochs": 6.0,  # measured with the schedule on Flickr8k (docs/finetuning.md)
        "lr_scheduler_type": "cosine",
        "batch_size": 32,
        "lr": 1e-3,
        "encoder_lr": 5e-5,
        "decoder_dropout": 0.0,  # better on three seeds of 1,500 images and on all 6,000 (docs/finetuning.md)
        "warmup_ratio": 0.06,
        "captions_per_image": "all",
        "eval_metric": "cider",
    },
    "cider": {
        "epochs": 3.0,
        "lr_scheduler_type": "linear",
        "batch_size": 32,
        "lr": 1e-5,
        "warmup_ratio": 0.1,
        "samples_per_image": 5,
        "reward": "cider:1",
        "xe_weight": 0.2,  # with this and the rate above validation gained on Flickr8k (docs/finetuning.md)
        "kl_weight": 0.0,
        "eval_metric": "cider",
    },
}

# Low-rank updates start at zero and want a higher one: at 5e-5 they hardly move (docs/finetuning.md).
LORA_LR = 5e-4


SCORES = ("cider", "bleu_4", "rouge_l")  # on validation: each may say which checkpoint is the best
BEAMS_HELP = {"num_beams": "Beams in evaluation, and the saved model's default; 1 is greedy decoding."}
# Those of Trainer's that need no more settings than a rate and a warm-up.
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
)  # fmt: skip
AUGMENTS = ("off", "light", "strong")


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """Options of `toolkit finetune`; a None is filled in from `TRAINING_DEFAULTS`."""

    groups: ClassVar[Groups] = {
        "Input and output": ("output_dir", "init_from", "overwrite", "resume"),
        "Training": (
            "epochs", "batch_size", "lr", "precision", "captions_per_image", "seed", "max_steps",
            "gradient_accumulation_steps",
        ),
        "What is trained": (
            "freeze_encoder", "cache_features", "feature_precision", "unfreeze_last", "unfreeze_after", "lora_rank",
            "lora_targets", "lora_save",
        ),
        "Schedule and regularisation": (
            "lr_scheduler_type", "warmup_steps", "warmup_ratio", "encoder_lr", "weight_decay", "label_smoothing",
            "decoder_dropout", "augment", "flip", "ema", "group_by_length",
        ),
        "Evaluation": (
            "eval_metric", "eval_steps", "eval_images", "eval_batch_size", "early_stopping_patience", "tokenize",
            "num_beams", "max_length", "length_penalty", "no_repeat_ngram_size",
        ),
        "Training for the metric": ("objective", "samples_per_image", "reward", "xe_weight", "kl_weight"),
        "Checkpoints and logs": ("save_steps", "save_minutes", "save_total_limit", "report_to", "run_name"),
        "On the hub": ("push_to_hub", *HUB),
        "Machine": ("gradient_checkpointing", "compile", "fsdp", "num_workers", "trainer_arg"),
    }  # fmt: skip
    refused = REFUSED

    cache: Path = option(Path("cache/dataset"), "The cache that preprocess wrote.", positional=True)
    output_dir: Path = option(Path("model"), "Where the model is written.", output=True)
    epochs: float | None = option(
        None, "Passes over the images. [default: 3; tiny preset: 8; new decoder: 6]", aliases=("num_train_epochs",)
    )
    max_steps: int = option(-1, "Stop after this many updates, whatever --epochs says; -1 for no limit.")
    batch_size: int | None = option(
        None, "Images per step and process, with their captions. [default: 8; tiny preset, new decoder: 32]"
    )
    eval_batch_size: int = option(32, "Images per batch in evaluation.")
    lr: float | None = option(
        None,
        "Peak learning rate. [default: 5e-5, with --lora-rank 5e-4; tiny preset: 1.5e-3; new decoder: 1e-3; objective cider: 1e-5]",
        aliases=("learning_rate",),
    )
    encoder_lr: float | None = option(
        None, "Peak learning rate of the encoder's weights. [default: as --lr; new decoder: 5e-5]"
    )
    lr_scheduler_type: str | None = option(
        None,
        f"Course of the learning rates after warm-up: {', '.join(SCHEDULES)}. [default: linear; new decoder: cosine]",
        choices=SCHEDULES,
    )
    decoder_dropout: float | None = option(
        None, "Dropout of the decoder. [default: what its config says; new decoder: 0]"
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    warmup_steps: int | None = option(None, "Updates until the learning rate is at its peak.")
    warmup_ratio: float | None = option(
        None, "The same, as a share of all updates. [default: 0; tiny preset, new decoder: 0.06]"
    )
    gradient_accumulation_steps: int = option(1, "Batches per update.")
    precision: str = option(
        "auto",
        "auto, fp32, bf16 or fp16; auto is bf16 on a GPU or CPU that has it, else fp32, as for the tiny preset on a CPU.",
        choices=PRECISIONS,
    )
    captions_per_image: str | None = option(
        None, "Captions per image and epoch: all, or a number, drawn again each epoch. [default: all; tiny preset: 2]"
    )
    group_by_length: bool | None = option(
        None, "Put images with about as many tokens into the same batch. [default: yes; tiny preset: no]"
    )
    augment: str = option(
        "off",
        "Show other crops, rotations, brightness, contrast and colour of the training images in each epoch: off, light "
        "or strong.",
        choices=AUGMENTS,
    )
    flip: bool = option(
        False,
        "With --augment: also mirror half of the images, but none with a caption that says left or right (in English).",
        flag=True,
    )
    ema: float | None = option(
        None, "Average the weights over the updates with this decay, 0.999 for instance; evaluate and save the average."
    )
    label_smoothing: float = option(
        0.0, "Share of the target probability spread over the vocabulary.", aliases=("label_smoothing_factor",)
    )
    objective: str = option(
        "cross-entropy",
        f"{' or '.join(OBJECTIVES)}: learn to write the training captions, or, from --init-from on, captions with a high CIDEr.",
        choices=OBJECTIVES,
    )
    samples_per_image: int | None = option(
        None, "With --objective cider: captions drawn of each image, and compared with each other. [default: 5]"
    )
    reward: str | None = option(
        None, "With --objective cider: what a drawn caption is worth, as cider:1,bleu_4:0.5. [default: cider:1]"
    )
    xe_weight: float | None = option(
        None, "With --objective cider: weight of the cross-entropy of the training captions, mixed in. [default: 0.2]"
    )
    kl_weight: float | None = option(
        None, "With --objective cider: weight of the divergence (KL) from the captioner of --init-from. [default: 0]"
    )
    init_from: str | None = option(
        None, "Start from this captioner, a folder or hub name, instead of the cache's encoder and decoder.", path=True
    )
    freeze_encoder: bool = option(False, "Train only the decoder.", flag=True)
    unfreeze_last: int | None = option(None, "Train only the encoder's last N layers.")
    unfreeze_after: int | None = option(None, "Train only the decoder for the first N epochs, then the encoder too.")
    cache_features: bool = option(
        False, "Freeze the encoder and run it once per image; its features are kept in the cache.", flag=True
    )
    feature_precision: str = option("fp16", "What --cache-features stores: fp16, bf16 or fp32.", choices=PRECISIONS[1:])
    lora_rank: int | None = option(
        None, "Train low-rank updates of the attention instead of all weights; 8 and 16 are usual. Needs peft."
    )
    lora_targets: str = option(
        "both", "With --lora-rank: encoder, decoder or both.", choices=("both", "encoder", "decoder")
    )
    lora_save: str = option(
        "merged",
        "With --lora-rank: merged saves a plain model, adapter only the updates.",
        choices=("merged", "adapter"),
    )
    compile: bool = option(
        False, "Compile the model: faster steps, after minutes at the start.", aliases=("torch_compile",)
    )
    gradient_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, a third slower.",
        flag=True,
        aliases=("activation_checkpointing",),
    )
    fsdp: bool = option(
        False,
        "Under torchrun: shard weights, gradients and optimizer over the GPUs, instead of a copy on each.",
        flag=True,
    )
    seed: int = option(42, "Seed of initial weights, data order and dropout.")
    early_stopping_patience: int | None = option(None, "Stop after this many evaluations without a better one.")
    eval_metric: str | None = option(
        None,
        f"Metric that makes a checkpoint the best: {', '.join(SCORES)} or loss. [default: cider; tiny preset: loss]",
        choices=(*SCORES, "loss"),
        aliases=("metric_for_best_model",),
    )
    eval_steps: int | None = option(
        None, "Evaluate and save a checkpoint every N updates and at the end, instead of after each epoch."
    )
    eval_images: int | None = option(
        None, "Evaluate N validation images, always the same ones, during training; all of them at the end."
    )
    tokenize: str = option(
        "auto",
        "What a word is in evaluation: ptb, intl, char, or auto: by the script of the validation captions, as in evaluate.",
        choices=TOKENIZE,
    )
    save_total_limit: int = option(1, "Checkpoints kept besides the best.")
    save_steps: int | None = option(None, "Also save a checkpoint every N updates, not only after each evaluation.")
    save_minutes: float | None = option(None, "Also save a checkpoint when the last one is so many minutes old.")
    resume: bool = option(
        True, "Continue from the last checkpoint of an unfinished run, or extend a finished one.", by_hand=(False,)
    )
    generation: GenerationOptions = nested(
        TRAINED, BEAM_SEARCH, lambda name, text: BEAMS_HELP.get(name, text.removesuffix(OWN))
    )
    push_to_hub: str | None = option(
        None, "Also put the finished model on the Hugging Face hub: OWNER/NAME, or NAME for one of yours. Name, token and "
        "the right to write are checked before training.", by_hand=True,
    )  # fmt: skip
    hub: HubOptions = nested(HubOptions(), HUB, lambda name, text: f"With --push-to-hub: {text[0].lower()}{text[1:]}")
    report_to: str = option(
        "none",
        "Where training is logged too: none, or names with commas between: wandb, trackio, tensorboard, or another reporter "
        "that transformers knows.",
        suggested=("none", "tensorboard", "trackio", "wandb"),
    )
    run_name: str | None = option(None, "With --report-to: the name of the run. [default: the reporter makes one up]")
    trainer_arg: tuple[str, ...] = option(
        (), "KEY=VALUE, an argument of Trainer's that has no option of its own, as max_grad_norm=0.5. May be repeated."
    )
    num_workers: int = option(
        0, "Loader processes; 0 suits cached pixels, which cost no decoding.", aliases=("dataloader_num_workers",)
    )
    overwrite: bool = option(
        False,
        "Train again and replace the finished model at --output-dir, and at --push-to-hub.",
        flag=True,
        by_hand=True,
    )
    more_caches: tuple[str, ...] = option(
        (), "More caches with the same pixels and tokenizer; B:0.5 draws half of B's images each epoch, B:2 each twice.",
        positional=True, path=True,
    )  # fmt: skip

    def validate(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "batch_size", "eval_batch_size", "gradient_accumulation_steps")
        check_at_least(
            self, 0, "save_minutes", "epochs", "lr", "encoder_lr", "weight_decay", "warmup_steps", "num_workers"
        )
        check_at_least(self, 1, "early_stopping_patience", "save_total_limit")
        check_generation(self.generation, TRAINED)
        check_at_least(
            self, 1, "unfreeze_after", "unfreeze_last", "lora_rank", "save_steps", "eval_steps", "eval_images"
        )
        frozen = "--cache-features" if self.cache_features else "--freeze-encoder" if self.freeze_encoder else None
        check(self.decoder_dropout is None or 0 <= self.decoder_dropout < 1, "decoder_dropout", self.decoder_dropout,
              "must be at least 0 and below 1")  # fmt: skip
        fixed = frozen or ("--lora-targets decoder" if self.lora_targets == "decoder" else None)
        check(not fixed or self.encoder_lr is None, "encoder_lr", self.encoder_lr,
              f"{fixed} leaves the encoder as it is; leave one of the two out")  # fmt: skip
        check(not (frozen and self.unfreeze_last), "unfreeze_last", self.unfreeze_last,
              f"{frozen} freezes all of the encoder; leave one of the two out")  # fmt: skip
        other = frozen or ("--unfreeze-last" if self.unfreeze_last else "--lora-rank" if self.lora_rank else None)
        check(self.unfreeze_after is None or other is None, "unfreeze_after", self.unfreeze_after,
              f"{other} says what is trained all along; leave one of the two out")  # fmt: skip
        check(self.lora_rank is None or self.unfreeze_last is None, "unfreeze_last", self.unfreeze_last,
              "with --lora-rank the encoder's own weights are not trained; leave one of the two out")  # fmt: skip
        check(not (frozen and self.lora_rank and self.lora_targets != "decoder"), "lora_targets", self.lora_targets,
              f"{frozen} leaves the encoder as it is; add --lora-targets decoder")  # fmt: skip
        check(self.lora_rank is not None or self.lora_targets == "both", "lora_targets", self.lora_targets,
              "only applies with --lora-rank; add that")  # fmt: skip
        check(self.lora_rank is not None or self.lora_save == "merged", "lora_save", self.lora_save,
              "only applies with --lora-rank; add that")  # fmt: skip
        check(self.cache_features or self.feature_precision == "fp16", "feature_precision", self.feature_precision,
              "only applies with --cache-features; add that")  # fmt: skip
        check(self.augment == "off" or not self.cache_features, "augment", self.augment,
              "--cache-features runs the encoder once, on the images as they are; leave one of the two out")  # fmt: skip
        check(self.augment != "off" or not self.flip, "flip", self.flip, "only applies with --augment; add that")
        check(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "must be above 0 and below 1")
        check(self.ema is None or not self.fsdp, "ema", self.ema,
              "--fsdp leaves each process only a part of the weights; leave one of the two out")  # fmt: skip
        for given in self.trainer_arg:
            name = given.partition("=")[0]
            check(bool(name) and "=" in given, "trainer_arg", given, "is a name, =, and a value, as max_grad_norm=0.5")
            twice = sum(other.partition("=")[0] == name for other in self.trainer_arg)
            check(twice == 1, "trainer_arg", given, f"{name} is given {twice} times; give it once")
        check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "must be at least 0 and below 1")
        check(self.captions_per_image in (None, "all") or (self.captions_per_image.isdigit()
              and int(self.captions_per_image) > 0), "captions_per_image", self.captions_per_image,
              "must be all, or a number of at least 1")  # fmt: skip
        check(self.warmup_ratio is None or self.warmup_steps is None, "warmup_ratio", self.warmup_ratio,
              f"--warmup-steps {self.warmup_steps} sets it already; leave one of the two out")  # fmt: skip
        check(self.warmup_ratio is None or 0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio,
              "must be a share of at least 0 and below 1")  # fmt: skip

        check_reporters(self)
        if self.push_to_hub is None:
            check_unused(self.hub, HUB, "only applies with --push-to-hub; add that, or leave it out")
        check_objective(self, type(self).output_dir)

    @property
    def reporters(self) -> tuple[str, ...]:
        """What `--report-to` names; () for none."""
        return tuple(name.strip() for name in self.report_to.split(",") if name.strip() != "none")

    @property
    def longest(self) -> int:
        """Tokens of the longest caption that the model is evaluated with, start token and EOS included."""
        return self.generation.max_length or 0  # which is never None here: see `TRAINED`

    @property
    def trains_no_encoder(self) -> bool:
        """Or but its last layers."""
        return self.freeze_encoder or self.cache_features or self.unfreeze_last is not None

    def resolved(self, preset: str | None, decoder: str | None = None) -> FinetuneOptions:
        """The same options with each `None` of `TRAINING_DEFAULTS` filled in for this preset, or this decoder."""
        preset = preset or ("new decoder" if decoder in NEW_DECODERS else None)
        preset = preset if self.init_from is None else None  # which is not from random weights any more
        preset = "cider" if self.objective == "cider" else preset
        known = {k: v for k, v in TRAINING_DEFAULTS[preset].items() if getattr(self, k) is None}
        if self.lora_rank is not None and preset is None and self.lr is None:
            known["lr"] = LORA_LR
        if self.freeze_encoder or self.cache_features or self.lora_rank is not None:
            known.pop("encoder_lr", None)
        if self.warmup_steps is not None:  # the user's own count beats the preset's share
            known.pop("warmup_ratio", None)
        return replace(self, **known, trainer_arg=tuple(sorted(self.trainer_arg)))  # in any order it is the same run


# What an option stood for in runs that are older than it.
BEFORE = {**to_json(FinetuneOptions()), "lr_scheduler_type": "linear"}
