"""A training run made ready: model, data sets and Trainer, from options and a cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import GenerationConfig, PrinterCallback, Seq2SeqTrainingArguments, set_seed

from toolkit.cache.schema import Cache
from toolkit.data.pixels import PixelTransform
from toolkit.errors import ModelError
from toolkit.evaluation.tokenizers import TOKENIZERS
from toolkit.models.loading import load_image_processor, load_tokenizer, silence_transformers
from toolkit.models.lora import plain_model
from toolkit.models.precision import DTYPES, PixelNormalizer, pick_device
from toolkit.models.special_tokens import first_position, generation_config
from toolkit.options import FinetuneOptions
from toolkit.options.preprocess import NEW_DECODERS
from toolkit.records import SpecialTokens
from toolkit.runtime.progress import say
from toolkit.training.augment import STRENGTHS, Augmentation, without_sides
from toolkit.training.averaging import WeightAverage
from toolkit.training.callbacks import SAMPLES, CaptionMetrics, Saving, TrainingLog, TwoPhases
from toolkit.training.collator import CaptionCollator, CaptionDataset, LengthGroupedSampler, caption_loss
from toolkit.training.distributed import agreeing, broadcast_from_rank_0, sharding_config
from toolkit.training.features import FeatureDataset, JoinedFeatures, encode_splits
from toolkit.training.launcher import tell_accelerate
from toolkit.training.mixture import Mixture
from toolkit.training.run_files import CHECKPOINTS, LOG
from toolkit.training.run_folder import Plan, RunIdentity, check_shared, start, tokenizer_of
from toolkit.training.self_critical import SelfCritical, SelfCriticalTrainer, self_critical_data
from toolkit.training.selfcheck import check_training
from toolkit.training.starting_model import finished_model, starting_model
from toolkit.training.trainer import CaptionTrainer, Patience
from toolkit.training.trainer_args import trainer_args


@dataclass(frozen=True)
class Processors:
    """What a cache was made with, and what its pixels and labels need on their way into a model."""

    tokenizer: Any
    image_processor: Any
    tokens: SpecialTokens
    normalizer: PixelNormalizer

    @classmethod
    def of(cls, cache: Cache) -> Processors:
        image_processor = load_image_processor(str(cache.directory / "image_processor"))
        return cls(
            load_tokenizer(str(cache.directory / "tokenizer")),
            image_processor,
            cache.special_tokens,
            PixelNormalizer(PixelTransform.from_processor_config(json.loads(image_processor.to_json_string()))),
        )

    def decode(self, rows: Any) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


@dataclass(frozen=True)
class TrainingRun:
    """A run that is ready to start.

    Attributes:
        use_cache: whether the decoder keeps keys and values when it generates; off while it is trained.
        notes: what there is to know of the metrics on validation.
        whole: with `--eval-images` all of the validation split and its metrics, for the end; else None.
    """

    options: FinetuneOptions
    cache: Cache
    identity: RunIdentity
    plan: Plan
    processors: Processors
    model: Any
    use_cache: bool
    trainer: CaptionTrainer
    generation: GenerationConfig
    log: TrainingLog
    notes: list[str]
    whole: tuple[Any, CaptionMetrics] | None = None

    def evaluate_all(self) -> None:
        """The best checkpoint on the whole validation split, if only a sample was evaluated so far. All ranks call it."""
        if self.whole is None:
            return
        images, metrics = self.whole
        self.trainer.compute_metrics = self.log.metrics = metrics
        self.log.marks = {"final": self.trainer.state.best_global_step}
        self.trainer.evaluate(images)


def prepare(options: FinetuneOptions, cache: Cache, identity: RunIdentity, plan: Plan) -> TrainingRun:
    """Loads everything, tries a batch, and makes the folder that the run lives in."""
    silence_transformers()
    set_seed(options.seed)
    again = plan.task == "evaluate"
    processors, notes = Processors.of(cache), _notes(options, cache, plan)
    model, collator = _checked_model(options, cache, plan, processors)
    broadcast_from_rank_0(lambda: start(plan, options, identity))
    with agreeing():
        check_shared(plan, options.output_dir)
    if again:  # evaluation alone needs neither the minutes of compiling nor sharding
        options = replace(options, compile=False, fsdp=False)
    arguments = trainer_arguments(options, plan.partial, len(cache["validation"]), model)
    train_set, every = _data_sets(options, cache, model, processors.normalizer, arguments.device, again)
    eval_set: Any = every
    # Training never reads a cache of keys and values; left on, each forward would fill one.
    use_cache, model.decoder.config.use_cache = model.decoder.config.use_cache, False
    plain_model(model).accepts_loss_kwargs = False  # the loss below does what Trainer would ask of the model
    generation = generation_config(options.generation, processors.tokens)
    references = cache["validation"].column("captions")
    sample = sampled(len(references), options)
    followed = range(SAMPLES) if sample is None else sample[:SAMPLES]
    parts = cache.positions("validation") if isinstance(cache, Mixture) else {}
    judging = partial(
        CaptionMetrics, decode=processors.decode, tokens=processors.tokens, tokenizer=TOKENIZERS[plan.tokenizer]
    )
    metrics, whole = judging(references, shown=followed, parts=parts), None
    if sample is not None and not again:
        whole, eval_set = (every, metrics), Subset(every, sample)
        chosen = {name: [k for k, i in enumerate(sample) if i in rows] for name, rows in parts.items()}
        metrics = judging([references[i] for i in sample], parts=chosen)
    log = TrainingLog(plan.partial / LOG, metrics, options.generation.given() if again else None)
    kind: Any = CaptionTrainer
    data: dict[str, Any] = {"train_dataset": train_set, "data_collator": collator, "compute_metrics": metrics}
    if options.objective == "cider" and not again:
        phase = SelfCritical.of(options, cache, model, collator, metrics)
        kind, data = partial(SelfCriticalTrainer, self_critical=phase), self_critical_data(data, log)
    trainer = kind(
        model=model,
        sorted_together=length_window(options, cache),
        args=arguments,
        eval_dataset=eval_set if len(eval_set) else None,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: caption_loss(
            outputs.logits, labels, num_items_in_batch, options.label_smoothing
        ),
        **data,
        normalizer=processors.normalizer,
        generation={"generation_config": generation},
        encoder_lr=options.encoder_lr,
        average=None if options.ema is None or again else WeightAverage(options.ema),
        callbacks=[log],
    )
    trainer.add_callback(Saving(options.save_steps, options.save_minutes))
    if options.unfreeze_after is not None and not again:
        trainer.add_callback(TwoPhases(options.unfreeze_after))
    trainer.remove_callback(PrinterCallback)  # `log` prints for people
    if options.early_stopping_patience is not None and not again:
        trainer.add_callback(Patience(options.early_stopping_patience))
    return TrainingRun(
        options, cache, identity, plan, processors, model, use_cache, trainer, generation, log, notes, whole
    )


def sampled(images: int, options: FinetuneOptions) -> list[int] | None:
    """The rows of the validation split that `--eval-images` evaluates, in their order; None for all. They depend on
    `--seed` and the number of rows alone."""
    if options.eval_images is None or options.eval_images >= images:
        return None
    chosen = np.random.default_rng(options.seed).choice(images, options.eval_images, replace=False)
    return [int(i) for i in np.sort(chosen)]


def length_window(options: FinetuneOptions, cache: Cache) -> int:
    """How many batches `LengthGroupedSampler` sorts at a time.

    From scratch a batch should hold all sorts of images: of drawn scenes, those with one object have the short captions,
    and sorted batches leave fewer of the demo's captions right.
    """
    grouped = options.group_by_length
    if grouped is None:
        grouped = not cache.manifest["options"]["preset"] or options.init_from is not None
    return LengthGroupedSampler.WINDOW if grouped else 1


def _checked_model(
    options: FinetuneOptions, cache: Cache, plan: Plan, processors: Processors
) -> tuple[Any, CaptionCollator]:
    """The model that training starts from, or that is evaluated again, tried with the first images."""
    tokens, again = processors.tokens, plan.task == "evaluate"
    with agreeing():
        model = finished_model(str(plan.place), tokens) if again else starting_model(options, cache, tokens)
        _check_fit(model, cache, options)
        collator = CaptionCollator(tokens, first_position(model.decoder))
        train_set = CaptionDataset(cache["train"], _captions(options), options.seed)
        batch = collator([train_set[i] for i in range(min(2, len(train_set)))])
        made = cache.manifest["options"]
        untrained = bool(made["preset"] or made["decoder"] in NEW_DECODERS) and options.init_from is None and not again
        loss = check_training(model, batch, processors.normalizer, tokens, untrained)
    say(f"self-check passed: loss {loss:.3f} nats a token before training")
    return model, collator


def _data_sets(
    options: FinetuneOptions, cache: Cache, model: Any, normalizer: PixelNormalizer, device: torch.device, again: bool
) -> tuple[CaptionDataset, CaptionDataset]:
    """Of training and of validation; with --cache-features, of what the encoder makes of their images."""
    drawn = (_captions(options), options.seed)
    eval_set = CaptionDataset(cache["validation"])
    if not options.cache_features:
        train_set = CaptionDataset(cache["train"], *drawn, None if again else _augmentation(options, cache))
        return _with_shares(train_set, cache, again), eval_set
    train_set = CaptionDataset(cache["train"], *drawn)
    splits, dtype = ("validation",) if again else ("train", "validation"), DTYPES[options.precision]
    encoder, normalizer = model.encoder.to(device), normalizer.to(device)
    each = [part.cache for part in cache.parts] if isinstance(cache, Mixture) else [cache]
    made = [encode_splits(c, splits, encoder, normalizer, options.feature_precision, dtype) for c in each]
    features = {split: JoinedFeatures([found[split] for found in made]) for split in splits}
    if not again:
        train_set = FeatureDataset(features["train"], cache["train"], *drawn)
    return _with_shares(train_set, cache, again), FeatureDataset(features["validation"], cache["validation"])


def _with_shares(train_set: CaptionDataset, cache: Cache, again: bool) -> CaptionDataset:
    if isinstance(cache, Mixture) and not again:
        train_set.shares = cache.shares
    return train_set


def _augmentation(options: FinetuneOptions, cache: Cache) -> Augmentation | None:
    """What --augment and --flip ask for."""
    if options.augment == "off":
        return None
    mirrored = without_sides(cache["train"]) if options.flip else None
    if mirrored is not None:
        number, kept = len(mirrored), int((~mirrored).sum())
        say(
            f"--flip: {kept} of {number} training images are never mirrored, for a caption of theirs says left or right"
        )
    stored = (cache.shape[1], cache.shape[2])
    return Augmentation(STRENGTHS[options.augment], options.seed, stored, cache.seen, mirrored)


def _captions(options: FinetuneOptions) -> int | None:
    """Captions of an image used each epoch; None for all."""
    return None if options.captions_per_image in (None, "all") else int(options.captions_per_image)


def _check_fit(model: Any, cache: Cache, options: FinetuneOptions) -> None:
    """Whether the model can take the cache's images and rows at all, said before an index error says it."""
    encoder, decoder = model.config.encoder, model.config.decoder
    size = getattr(encoder, "image_size", None)
    height, width = cache.seen
    if isinstance(size, int) and (height, width) != (size, size):
        raise ModelError(
            f"{options.cache}: images of {height}x{width}, but the encoder wants {size}x{size}; preprocess with it."
        )
    positions = getattr(decoder, "max_position_embeddings", None) or getattr(decoder, "n_positions", None)
    longest = max(cache.manifest["options"]["max_length"], options.longest)
    if positions is not None and longest > positions:
        raise ModelError(f"--max-length {longest}: the decoder has {positions} positions; use a smaller one.")


def trainer_arguments(
    options: FinetuneOptions, folder: Path, validation_images: int, model: Any
) -> Seq2SeqTrainingArguments:
    """Our options in Trainer's words."""
    device = pick_device("auto").type
    dtype = DTYPES[options.precision]
    tell_accelerate(options.precision)
    cadence = "steps" if options.eval_steps is not None else "epoch"
    warmup = options.warmup_steps if options.warmup_steps is not None else options.warmup_ratio or 0
    return Seq2SeqTrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.eval_batch_size,
        learning_rate=options.lr,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=warmup,  # below 1 it is a share
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        use_cpu=device == "cpu",
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        tf32=True if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else None,
        torch_compile=options.compile,
        # All that is trained has a gradient, since what an encoder leaves unused is frozen.
        ddp_find_unused_parameters=False,
        fsdp=options.fsdp or None,
        fsdp_config=sharding_config(model) if options.fsdp else None,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},  # the other kind drops gradients above frozen layers
        eval_strategy=cadence if validation_images else "no",
        save_strategy=cadence,
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps or 500,  # not 0
        load_best_model_at_end=bool(validation_images),
        metric_for_best_model=options.eval_metric if validation_images else None,
        greater_is_better=options.eval_metric != "loss" if validation_images else None,
        save_total_limit=options.save_total_limit,
        logging_strategy="steps",
        logging_steps=10,
        seed=options.seed,
        data_seed=options.seed,
        dataloader_num_workers=options.num_workers,
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=False,
        predict_with_generate=True,
        label_names=["labels"],
        report_to=list(options.reporters),
        run_name=options.run_name,
        restore_callback_states_from_checkpoint=True,  # or patience would start anew
        log_level_replica="passive",  # as it is, not back to warnings
        disable_tqdm=True,
        **trainer_args(options.trainer_arg),
    )


def _notes(options: FinetuneOptions, cache: Cache, plan: Plan) -> list[str]:
    """What there is to know of the metrics on validation; said as well."""
    if not len(cache["validation"]):
        return []
    chosen = tokenizer_of(options, cache)
    if chosen.tokenizer.name != plan.tokenizer:
        chosen = tokenizer_of(replace(options, tokenize=plan.tokenizer), cache)  # as the run began
    if chosen.usual:
        say(chosen.sentence or "")
    for note in chosen.notes():
        say(f"note: {note}")
    return chosen.notes()
