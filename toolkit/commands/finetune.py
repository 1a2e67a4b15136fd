"""`toolkit finetune`: a cache to a fine-tuned captioner, by a thin Seq2SeqTrainer run."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Seq2SeqTrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations

from toolkit.cache.schema import Cache, open_cache
from toolkit.cache.uploads import local_cache
from toolkit.cache.urls import local_model, local_only, localized, named, renamed_summary
from toolkit.data.pixels import PixelTransform
from toolkit.errors import InputError, ModelError, RunError
from toolkit.evaluation.spacing import Spacing
from toolkit.models.loading import load_image_processor, load_tokenizer, silence_transformers
from toolkit.models.lora import plain_model
from toolkit.models.precision import PixelNormalizer, pick_device, pick_dtype
from toolkit.models.special_tokens import SpecialTokens, first_position, generation_config
from toolkit.options import FinetuneOptions
from toolkit.options.fields import to_json
from toolkit.records import Summary
from toolkit.reports.finished_run import Ending
from toolkit.runtime.progress import say
from toolkit.training.callbacks import CaptionMetrics, TrainingLog
from toolkit.training.checkpoints import last_checkpoint
from toolkit.training.collator import CaptionCollator, CaptionDataset, SimilarLengths, caption_loss
from toolkit.training.distributed import agreeing, from_first, joined, rank, ranks
from toolkit.training.features import FeatureDataset, encode_splits
from toolkit.training.run_files import CHECKPOINTS, LOG
from toolkit.training.run_folder import (
    Plan,
    check_place,
    check_shared,
    finish_swap,
    holding,
    look,
    run_identity,
    start,
    was_cut,
)
from toolkit.training.selfcheck import check_training
from toolkit.training.setup import finished_model, starting_model
from toolkit.training.sharding import check_sharding, sharding_config
from toolkit.training.trainer import CaptionTrainer, Patience


def finetune(options: FinetuneOptions) -> Summary:
    """Trains, or goes on training, or finds the model finished.

    Raises:
        InputError: no cache, or one with nothing to train on.
        OutputError: `--output-dir` holds something else, or a model of other options.
        ModelError: an encoder or decoder can't be loaded or doesn't fit.
        RunError: the self-check failed, or the run was stopped; the same command goes on.
    """
    with joined():
        with agreeing():
            local_only(options, "output_dir")
            options, names = localized(options, {"cache": local_cache, "init_from": local_model})
        with named(names):
            return renamed_summary(_finetune(options), names)


def _finetune(options: FinetuneOptions) -> Summary:
    with agreeing():
        cache = open_cache(options.cache)
        options = options.resolved(cache.manifest["options"]["preset"])
        if not len(cache["train"]):
            raise InputError(f"{options.cache}: its train split is empty; preprocess more images.")
        if options.early_stopping_patience is not None and not len(cache["validation"]):
            raise InputError(
                f"--early-stopping-patience {options.early_stopping_patience}: {options.cache} has no validation images, so "
                "that nothing says when to stop; leave it out, or preprocess with validation images."
            )
        _check_length(options, cache)
        _check_reporter(options.report_to)
        if options.precision == "fp16" and pick_device("auto").type != "cuda":
            raise InputError("--precision fp16: training in it needs a GPU; use auto.")
        check_sharding(options, pick_device("auto"))
    identity = run_identity(options, cache, ranks())
    with ExitStack() as held:
        plan = from_first(lambda: _plan(options, identity, held)).seen_from_here(options.output_dir)
        if plan.task != "nothing":
            return _train(options, cache, identity, plan)
    summary = {name: value for name, value in (plan.summary or {}).items() if name != "files"}
    return Summary(f"{options.output_dir}: finished already, nothing to do.", summary, said_elsewhere=rank() > 0)


def _plan(options: FinetuneOptions, identity: dict[str, Any], held: ExitStack) -> Plan:
    """What there is to do, with `--output-dir` held if that is anything."""
    if not was_cut(check_place(options)):
        plan = look(options, identity)
        if plan.task == "nothing":
            return plan
    held.enter_context(holding(options))
    finish_swap(options)
    return look(options, identity)


def _check_reporter(name: str) -> None:
    if name not in ("none", "all", *get_available_reporting_integrations()):
        way = "pip install tensorboard" if name == "tensorboard" else "install it, or use none or tensorboard"
        raise InputError(f"--report-to {name}: not installed here, or unknown to transformers; {way}.")


def _check_length(options: FinetuneOptions, cache: Cache) -> None:
    rows = cache.manifest["options"]["max_length"]
    if options.generation.max_length < 3:
        raise InputError(f"--max-length {options.generation.max_length}: leaves no room for a word; 50 is usual.")
    if rows > options.generation.max_length:
        say(
            f"note: captions may be {rows} tokens long in the cache, but are generated up to {options.generation.max_length}"
        )


def _train(options: FinetuneOptions, cache: Cache, identity: dict[str, Any], plan: Plan) -> Summary:
    silence_transformers()
    set_seed(options.seed)
    partial, manifest, again = plan.partial, cache.manifest, plan.task == "evaluate"
    tokenizer = load_tokenizer(str(cache.directory / "tokenizer"))
    image_processor = load_image_processor(str(cache.directory / "image_processor"))
    labels = manifest["labels"]
    tokens = SpecialTokens(labels["start"], labels["eos"], labels["pad"])
    normalizer = PixelNormalizer(PixelTransform.from_processor_config(json.loads(image_processor.to_json_string())))
    captions = None if options.captions_per_image in (None, "all") else int(options.captions_per_image)
    train_set = CaptionDataset(cache["train"], captions, options.seed)
    validation = cache["validation"]
    eval_set = CaptionDataset(validation)
    notes = _notes(cache)
    for note in notes:
        say(f"note: {note}")
    scratch = bool(manifest["options"]["preset"]) and options.init_from is None
    with agreeing():
        model = finished_model(str(plan.place), tokens) if again else starting_model(options, cache, tokens)
        _check_fit(model, cache, options)
        collator = CaptionCollator(tokens, first_position(model.decoder))
        start_loss = check_training(
            model,
            collator([train_set[i] for i in range(min(2, len(train_set)))]),
            normalizer,
            tokens,
            scratch and not again,
        )
    say(f"self-check passed: loss {start_loss:.3f} nats a token before training")
    from_first(lambda: start(plan, options, identity))
    with agreeing():
        check_shared(plan, options.output_dir)
    # What is evaluated alone needs neither the minutes of compiling nor to be spread.
    given = replace(options, compile=False, fsdp=False) if again else options
    args = _arguments(given, partial, len(validation), model)
    if options.cache_features:
        kept, dtype = options.feature_precision, pick_dtype(options.precision, args.device)
        splits = ("validation",) if again else ("train", "validation")
        features = encode_splits(cache, splits, model.encoder, normalizer, kept, dtype, args.device)
        if not again:
            train_set = FeatureDataset(features["train"], cache["train"], captions, options.seed)
        eval_set = FeatureDataset(features["validation"], validation)
    # Training never reads a cache of keys and values; left on, each forward would fill one.
    use_cache, model.decoder.config.use_cache = model.decoder.config.use_cache, False
    plain_model(model).accepts_loss_kwargs = False  # the loss below does what Trainer would ask of the model
    settings = generation_config(options.generation, tokens)
    metrics = CaptionMetrics(
        validation.column("captions"),
        lambda rows: [t.strip() for t in tokenizer.batch_decode(rows, skip_special_tokens=True)],
        tokens,
    )
    log = TrainingLog(partial / LOG, metrics, to_json(options.generation) if again else None)
    trainer = CaptionTrainer(
        model=model,
        # From scratch a batch should hold all sorts of images: of drawn scenes, those with one object have the short
        # captions, and sorting 32 batches together left 95.9 % of the demo's captions right instead of 99.4 %.
        sorted_together=1 if scratch else SimilarLengths.WINDOW,
        args=args,
        train_dataset=train_set,
        eval_dataset=eval_set if len(validation) else None,
        data_collator=collator,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: caption_loss(
            outputs.logits, labels, num_items_in_batch, options.label_smoothing
        ),
        compute_metrics=metrics,
        normalizer=normalizer,
        generation={"generation_config": settings},
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)  # `log` prints for people
    if options.early_stopping_patience is not None and not again:
        trainer.add_callback(Patience(options.early_stopping_patience))
    ending = Ending(options, identity, plan, cache, log, settings, notes)
    started = time.monotonic()
    try:
        if again:
            before = plan.summary or {}
            trainer.state.global_step, trainer.state.epoch = before["steps"], before["epochs"]
            trainer.evaluate()
            return replace(from_first(ending.save_evaluation), said_elsewhere=rank() > 0)
        checkpoint = from_first(lambda: last_checkpoint(partial / CHECKPOINTS, say))
        if checkpoint:
            say(f"going on from {checkpoint}")
        if rank() > 0:
            set_seed((options.seed + rank()) % 2**32)  # each rank draws its own dropout
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model.decoder.config.use_cache = use_cache
        trained, seconds = trainer.trained_model(), time.monotonic() - started
        saved = from_first(lambda: ending.save(trainer, trained, tokenizer, image_processor, seconds))
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the last checkpoint.") from None
    finally:
        log.close()
    return replace(saved, said_elsewhere=rank() > 0)


def _check_fit(model: Any, cache: Cache, options: FinetuneOptions) -> None:
    """Whether the model can take the cache's images and rows at all, said before an index error says it."""
    encoder, decoder = model.config.encoder, model.config.decoder
    size = getattr(encoder, "image_size", None)
    height, width = cache.shape[1:]
    if isinstance(size, int) and (height, width) != (size, size):
        raise ModelError(
            f"{options.cache}: images of {height}x{width}, but the encoder wants {size}x{size}; preprocess with it."
        )
    positions = getattr(decoder, "max_position_embeddings", None) or getattr(decoder, "n_positions", None)
    longest = max(cache.manifest["options"]["max_length"], options.generation.max_length)
    if positions is not None and longest > positions:
        raise ModelError(f"--max-length {longest}: the decoder has {positions} positions; use a smaller one.")


def _arguments(options: FinetuneOptions, folder: Path, validation_images: int, model: Any) -> Seq2SeqTrainingArguments:
    """Our options in Trainer's words."""
    device = pick_device("auto").type
    dtype = pick_dtype(options.precision, torch.device(device))
    warmup = options.warmup_steps if options.warmup_steps is not None else options.warmup_ratio or 0
    return Seq2SeqTrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.eval_batch_size,
        learning_rate=options.lr,
        weight_decay=options.weight_decay,
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
        eval_strategy="epoch" if validation_images else "no",
        save_strategy="epoch",
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
        report_to=options.report_to,
        restore_callback_states_from_checkpoint=True,  # or patience would start anew
        log_level_replica="passive",  # as it is, not back to warnings
        disable_tqdm=True,
    )


def _notes(cache: Cache) -> list[str]:
    """What there is to know of the figures on validation."""
    note = Spacing(caption for said in cache["validation"].column("captions") for caption in said).note()
    return [] if note is None else [note]
