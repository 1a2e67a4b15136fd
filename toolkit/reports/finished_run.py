"""The end of a training run: the model's folder, its card and its report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.evaluation.shown import figures
from toolkit.models.loading import save_captioner
from toolkit.models.lora import is_adapted, merged, save_base
from toolkit.models.precision import describe_precision
from toolkit.records import Summary
from toolkit.reports.model_card import write_model_card
from toolkit.reports.training_report import write_training_report
from toolkit.training.distributed import ranks, writing
from toolkit.training.mixture import Mixture
from toolkit.training.run_files import FINISHED, UNFINISHED, RunSummary, finish, listed
from toolkit.training.run_folder import replace_model
from toolkit.training.setup import TrainingRun
from toolkit.training.starting_model import base_of


def save_trained(run: TrainingRun, trained: Any, seconds: float) -> Summary:
    """The model that was trained, with its processors."""
    state, processors, options = run.trainer.state, run.processors, run.options
    values: RunSummary = {
        "model": str(options.output_dir),
        "steps": state.global_step,
        "epochs": state.epoch,
        "ranks": ranks(),
        "seconds": round(seconds, 1),
        "best_step": state.best_global_step,
        "validation": run.log.best(state.best_global_step),
        "notes": run.notes,
    }
    values |= _data_sets(run, state.best_global_step)
    if run.plan.extended:
        values["extended"] = run.plan.extended

    def write(folder: Path) -> None:
        model: Any = trained if options.lora_save == "adapter" else merged(trained)
        save_captioner(model, processors.tokenizer, processors.image_processor, run.generation, folder)
        if is_adapted(model):
            save_base(model, base_of(options, run.cache, processors.tokens), folder)

    return _finish(run, write, values, f"done in {seconds:.0f} s.\n  best checkpoint on validation")


def save_evaluation(run: TrainingRun) -> Summary:
    """Other generation settings, and the metrics that the finished model has with them; its weights stay."""
    values: RunSummary = {**(run.plan.summary or {}), "validation": run.log.best(None), "notes": run.notes}
    values |= _data_sets(run, None)
    values.pop("files", None)
    return _finish(run, run.generation.save_pretrained, values, "evaluated again, not trained.\n  on validation")


def _data_sets(run: TrainingRun, step: int | None) -> RunSummary:
    """Of several caches what each is to the run."""
    if not isinstance(run.cache, Mixture):
        return {}
    metrics, counts = run.log.best_of_parts(step), run.cache.shares.counts
    found = [
        {"name": part.name, "share": part.share, "images": count, "validation": metrics.get(part.name, {})}
        for part, count in zip(run.cache.parts, counts, strict=True)
    ]
    return {"data_sets": found}


def _finish(run: TrainingRun, write: Callable[[Path], None], values: RunSummary, done: str) -> Summary:
    """Card and report beside what `write` writes; each file by rename, the marker of a whole run last."""
    plan, log, out = run.plan, run.log, run.options.output_dir
    unfinished = plan.partial / UNFINISHED
    with writing(plan.partial, "the model"):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write(unfinished)
        card = {"options": run.identity.options, "manifest": run.cache.manifest, "summary": values}
        samples = log.samples(run.cache)
        precision = describe_precision(run.identity.options["precision"], plan.precision)
        write_model_card(unfinished / "README.md", **card, precision=precision, samples=samples)
        write_training_report(unfinished / "report.html", **card, rows=log.rows(), samples=samples)
        names = sorted(path.name for path in unfinished.iterdir())
        for name in names:
            os.replace(unfinished / name, plan.partial / name)
        unfinished.rmdir()
        earlier = listed(plan.place / FINISHED, plan.place) if plan.task == "evaluate" else None
        finish(plan.partial, names, values, earlier)
    replace_model(plan.partial, plan.place, out)
    best = values["validation"]
    metrics = figures(best) if best else "none, because nothing was evaluated"
    return Summary("\n".join([f"{out}: {done}: {metrics}", *(f"  note: {n}" for n in run.notes)]), dict(values))
