"""The end of a training run: the model's folder, its card and its report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.cache.schema import Cache
from toolkit.models.loading import save_captioner
from toolkit.models.lora import is_adapted, merged, save_base
from toolkit.options import FinetuneOptions
from toolkit.records import Summary
from toolkit.reports.model_card import write_model_card
from toolkit.reports.training_report import write_training_report
from toolkit.training.callbacks import TrainingLog
from toolkit.training.distributed import ranks, writing
from toolkit.training.run_files import UNFINISHED, finish, listed
from toolkit.training.run_folder import Plan, take_place
from toolkit.training.setup import base_of
from toolkit.training.trainer import CaptionTrainer


@dataclass(frozen=True)
class Ending:
    """What is left to do of a run: its folder is written, marked as whole, and takes its place."""

    options: FinetuneOptions
    identity: dict[str, Any]
    plan: Plan
    cache: Cache
    log: TrainingLog
    settings: Any  # GenerationConfig
    notes: list[str]  # what there is to know of the figures on validation

    def save(
        self, trainer: CaptionTrainer, trained: Any, tokenizer: Any, image_processor: Any, seconds: float
    ) -> Summary:
        """The model that was trained, with its processors."""
        state = trainer.state
        values = {
            "model": str(self.options.output_dir),
            "steps": state.global_step,
            "epochs": state.epoch,
            "ranks": ranks(),
            "seconds": round(seconds, 1),
            "best_step": state.best_global_step,
            "validation": self.log.best(state.best_global_step),
            "notes": self.notes,
            **({"extended": self.plan.extended} if self.plan.extended else {}),
        }

        def write(folder: Path) -> None:
            model: Any = trained if self.options.lora_save == "adapter" else merged(trained)
            save_captioner(model, tokenizer, image_processor, self.settings, folder)
            if is_adapted(model):
                save_base(model, base_of(self.options, self.cache, trainer.data_collator.tokens), folder)

        return self._finish(write, values, f"done in {seconds:.0f} s", "best checkpoint on validation")

    def save_evaluation(self) -> Summary:
        """Other generation settings and the figures that the finished model has with them; its weights stay."""
        values = {**(self.plan.summary or {}), "validation": self.log.best(None), "notes": self.notes}
        values.pop("files", None)
        return self._finish(self.settings.save_pretrained, values, "evaluated again, not trained", "on validation")

    def _finish(self, write: Callable[[Path], None], values: dict[str, Any], done: str, what: str) -> Summary:
        """Each file by rename, the marker of a whole run last."""
        plan, log, options = self.plan, self.log, self.identity["options"]
        again = plan.task == "evaluate"
        unfinished = plan.partial / UNFINISHED
        with writing(plan.partial, "the model"):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write(unfinished)
            card = {"options": options, "manifest": self.cache.manifest, "summary": values}
            samples = log.samples(self.cache)
            write_model_card(unfinished / "README.md", **card, samples=samples)
            write_training_report(unfinished / "report.html", **card, rows=log.rows(), samples=samples)
            names = sorted(path.name for path in unfinished.iterdir())
            for name in names:
                os.replace(unfinished / name, plan.partial / name)
            unfinished.rmdir()
            finish(plan.partial, names, values, listed(plan.place, plan.summary) if again else None)
        take_place(plan.partial, plan.place, self.options.output_dir)
        best = values["validation"]
        figures = ", ".join(f"{name} {value:.3f}" for name, value in best.items()) if best else "no validation images"
        lines = [f"{self.options.output_dir}: {done}.", f"  {what}: {figures}", *(f"  note: {n}" for n in self.notes)]
        return Summary("\n".join(lines), values)
