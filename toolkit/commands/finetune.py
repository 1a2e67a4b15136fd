"""`toolkit finetune`: a cache to a fine-tuned captioner, by a thin Seq2SeqTrainer run."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace

from transformers import set_seed

from toolkit.cache.schema import Cache
from toolkit.errors import InputError, RunError
from toolkit.models.precision import describe_precision, pick_device
from toolkit.options import FinetuneOptions
from toolkit.records import Summary
from toolkit.reports.finished_run import save_evaluation, save_trained
from toolkit.reports.hub_cards import model_card
from toolkit.reports.hub_push import check_base, model_contents
from toolkit.runtime.copies import fetch_model, with_copies
from toolkit.runtime.files import beside
from toolkit.runtime.hub_repo import HubRepo, claim_repo
from toolkit.runtime.progress import say
from toolkit.runtime.remote import local_only
from toolkit.training.checkpoints import last_checkpoint
from toolkit.training.distributed import agreeing, broadcast_from_rank_0, check_sharding, joined, rank, ranks
from toolkit.training.launcher import as_launched
from toolkit.training.mixture import Mixture, open_caches
from toolkit.training.reporters import check_reporters, reporting
from toolkit.training.run_files import CHECKPOINTS, is_cut
from toolkit.training.run_folder import Plan, RunIdentity, check_place, finish_swap, holding, look, run_identity
from toolkit.training.setup import TrainingRun, prepare
from toolkit.training.trainer_args import check_trainer_args


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
            options = as_launched(with_copies(options, init_from=fetch_model))
            cache = open_caches([options.cache, *options.more_caches])
            others = [str(part.cache.directory) for part in cache.parts[1:]] if isinstance(cache, Mixture) else []
            options = replace(options, cache=cache.directory, more_caches=tuple(others))
        return _finetune(options, cache)


def _finetune(options: FinetuneOptions, cache: Cache) -> Summary:
    with agreeing():
        if options.eval_metric is not None and not len(cache["validation"]):
            say(
                f"note: --eval-metric {options.eval_metric} has no effect, because {options.cache} has no validation images"
            )
        options = options.resolved(cache.manifest["options"]["preset"], cache.manifest["options"]["decoder"])
        _check(options, cache)
    identity = run_identity(options, cache, ranks())
    with ExitStack() as held:
        plan = broadcast_from_rank_0(lambda: _plan(options, identity, held))
        repo = broadcast_from_rank_0(lambda: _claimed(options, cache, plan))
        plan = replace(plan, place=options.output_dir.resolve())  # which may be mounted elsewhere than for rank 0
        if plan.task == "nothing":
            values = {name: value for name, value in (plan.summary or {}).items() if name != "files"}
            summary = Summary(f"{options.output_dir}: finished already, nothing to do.", values)
        else:
            if plan.task != "evaluate":
                say(f"training in {describe_precision(options.precision, plan.precision)}")
            options = replace(options, precision=plan.precision)
            summary = _carry_out(prepare(options, cache, identity, plan))
    if repo is not None:
        summary = broadcast_from_rank_0(lambda: _pushed(summary, repo, options))
    return replace(summary, said_elsewhere=rank() > 0)


def _claimed(options: FinetuneOptions, cache: Cache, plan: Plan) -> HubRepo | None:
    """The repository of --push-to-hub: what could be wrong with it is found out before training."""
    if options.push_to_hub is None:
        return None
    told = f"--push-to-hub {options.push_to_hub}"
    if options.lora_save == "adapter":
        check_base(told, {**cache.manifest["options"], "init_from": options.init_from})
    card = model_card(None, options.push_to_hub, options.hub)
    repo = claim_repo("--push-to-hub", options.push_to_hub, "model", options.hub.private, card)
    there = [] if plan.task == "nothing" or options.overwrite else sorted(repo.files())
    if there:
        raise repo.refused(
            f"holds files already ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}); name another repository, or leave it out "
            f"and use `toolkit push {options.output_dir} {options.push_to_hub} --overwrite` after training"
        )
    return repo


def _pushed(summary: Summary, repo: HubRepo, options: FinetuneOptions) -> Summary:
    """With the finished model on the hub; if that fails, the same command tries again, and trains nothing."""
    pushed = model_contents(options.output_dir, options.hub).push(repo, options.overwrite)
    text = f"{summary.text}\n  {pushed.url}: {pushed.sent} of {pushed.files} files sent"
    return replace(summary, text=text, values={**summary.values, "pushed": asdict(pushed)})


def _carry_out(run: TrainingRun) -> Summary:
    try:
        with reporting(run.options.reporters):
            return _evaluate_again(run) if run.plan.task == "evaluate" else _train(run)
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the last checkpoint.") from None
    finally:
        run.log.close()


def _check(options: FinetuneOptions, cache: Cache) -> None:
    """What can be found wrong before anything is loaded."""
    if not len(cache["train"]):
        raise InputError(f"{options.cache}: its train split is empty; preprocess more images.")
    if options.early_stopping_patience is not None and not len(cache["validation"]):
        raise InputError(
            f"--early-stopping-patience {options.early_stopping_patience}: {options.cache} has no validation images to "
            "tell when to stop; leave it out, or preprocess with validation images."
        )
    for name in ("eval_steps", "eval_images"):
        if getattr(options, name) is not None and not len(cache["validation"]):
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: {options.cache} has no validation images to "
                "evaluate; leave it out, or preprocess with validation images."
            )
    rows, longest = cache.manifest["options"]["max_length"], options.longest
    if longest < 3:
        raise InputError(f"--max-length {longest}: leaves no room for a word; 50 is usual.")
    if rows > longest:
        say(f"note: captions in the cache have up to {rows} tokens, but are generated with at most {longest}")
    first = options.unfreeze_after
    if first is not None and ranks() > 1:
        raise InputError(f"--unfreeze-after {first}: needs a single process; train in two commands, with --init-from.")
    if first is not None and options.max_steps <= 0 and first >= (options.epochs or 0):
        raise InputError(
            f"--unfreeze-after {first}: --epochs {options.epochs:g} ends before the encoder is trained; use --freeze-encoder."
        )
    check_reporters(options.reporters)
    check_trainer_args(options)
    if options.precision == "fp16" and pick_device("auto").type != "cuda":
        raise InputError("--precision fp16: training needs a GPU; use auto.")
    check_sharding(options, pick_device("auto"))


def _plan(options: FinetuneOptions, identity: RunIdentity, held: ExitStack) -> Plan:
    """What there is to do, with `--output-dir` held if that is anything."""
    place = check_place(options)
    if not is_cut(beside(place, ".partial")):
        plan = look(options, identity)
        if plan.task == "nothing":
            return plan
    held.enter_context(holding(options))
    finish_swap(place, options.output_dir)
    return look(options, identity)


def _train(run: TrainingRun) -> Summary:
    """Trains to the end and saves the best model."""
    started, options = time.monotonic(), run.options
    checkpoint = broadcast_from_rank_0(lambda: last_checkpoint(run.plan.partial / CHECKPOINTS, say))
    if checkpoint:
        say(f"resuming from {checkpoint}")
    if rank() > 0:
        set_seed((options.seed + rank()) % 2**32)  # each rank draws its own dropout
    run.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    run.evaluate_all()
    with agreeing():  # no rank reads the best checkpoint any more, which rank 0 is going to move
        run.model.decoder.config.use_cache = run.use_cache
    trained, seconds = run.trainer.trained_model(), time.monotonic() - started
    return broadcast_from_rank_0(lambda: save_trained(run, trained, seconds))


def _evaluate_again(run: TrainingRun) -> Summary:
    """The finished model with other generation options."""
    before = run.plan.summary or {}
    run.trainer.state.global_step, run.trainer.state.epoch = before["steps"], before["epochs"]
    run.trainer.evaluate()
    return broadcast_from_rank_0(lambda: save_evaluation(run))
