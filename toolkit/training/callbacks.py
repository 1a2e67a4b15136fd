"""How a training run is going: metrics and captions of each evaluation, training.jsonl, and progress lines."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, TrainerCallback

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.cache.schema import Cache
from toolkit.captioning.generate import caption_lengths
from toolkit.data.pixels import centre
from toolkit.evaluation.health import health
from toolkit.evaluation.metrics import PreparedReferences, prepare
from toolkit.evaluation.shown import figures
from toolkit.evaluation.tokenizers import PTB, Tokenizer
from toolkit.models.freezing import freeze_encoder, unfreeze_encoder
from toolkit.options.finetune import SCORES
from toolkit.records import SpecialTokens
from toolkit.runtime.ending import told
from toolkit.runtime.files import finishing
from toolkit.runtime.progress import Progress, say
from toolkit.training.distributed import broadcast_from_rank_0, writing

SAMPLES = 8  # validation images whose captions are followed through training
METRICS = ("loss", *SCORES, "ended", "loops", "distinct")


class CaptionMetrics:
    """Trainer's `compute_metrics`: scores the generated captions against the references of the same images, in order.

    Attributes:
        captions: of the last evaluation.
        shown: the images among these whose captions are followed through training, by their position.
        parts: of several data sets the positions of each, by its name; one with images has metrics of its own.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        decode: Callable[[Any], list[str]],
        tokens: SpecialTokens,
        tokenizer: Tokenizer = PTB,
        shown: Sequence[int] = range(SAMPLES),
        parts: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        self.parts = {
            name: (np.array(at), prepare({str(i): references[i] for i in at}, tokenize=tokenizer.words))
            for name, at in parts.items()
            if len(at)
        }
        self.references = {str(i): captions for i, captions in enumerate(references)}
        self.shown = [i for i in shown if i < len(references)]
        self.decode, self.tokens, self.tokenizer = decode, tokens, tokenizer
        self.captions: list[str] = []

    @cached_property
    def prepared(self) -> PreparedReferences:
        return prepare(self.references, tokenize=self.tokenizer.words)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The `METRICS`; shares are from 0 to 1, the loss is in nats a token."""
        number = len(self.references)  # several ranks pad the last batch with images from the start
        rows = torch.as_tensor(np.asarray(prediction.predictions))[:number, 1:]
        losses = np.asarray(prediction.label_ids, dtype=np.float64)[:number]
        loss, count = losses.sum(axis=0)
        self.captions = self.decode(rows.masked_fill(rows == IGNORE_INDEX, self.tokens.pad))
        corpus = self.prepared.score(dict(zip(self.references, self.captions, strict=True))).corpus
        ended = caption_lengths(rows, self.tokens)[1].tolist()
        how = asdict(health(self.captions, ended, tokenizer=self.tokenizer))
        found = {"loss": loss / count, **{name: {**corpus, **how}[name] for name in METRICS[1:]}}
        for part, (at, references) in self.parts.items():
            theirs, (loss, count) = references.score({str(i): self.captions[i] for i in at}), losses[at].sum(axis=0)
            found |= {f"{part}/loss": loss / count, **{f"{part}/{name}": theirs.corpus[name] for name in SCORES}}
        return found


def caption_warnings(captions: Sequence[str], metrics: dict[str, float]) -> list[str]:
    """A sentence for each fault of an evaluation's captions that can be seen without a score."""
    found = []
    caption, times = Counter(captions).most_common(1)[0]
    if len(captions) > 1 and times > len(captions) / 2:
        found.append(
            f'{times} of {len(captions)} validation images get the same caption, "{caption}"; '
            "early in training that passes, later on --lr is too high or the images are too few."
        )
    if metrics["ended"] < 0.5:
        found.append(
            f"{1 - metrics['ended']:.0%} of the validation captions run on to --max-length; "
            "early in training that passes, later on the training captions have no end to learn."
        )
    if metrics["loops"] > 0.1:
        found.append(f"{metrics['loops']:.0%} of the validation captions repeat themselves.")
    return found


def warmup_warning(warmup: int, updates: int) -> str | None:
    """A sentence if the warm-up is as long as the training. Update i has (i - 1) / `warmup` of the peak learning rate."""
    if not 0 < updates <= warmup:
        return None
    rate = (updates - 1) / warmup
    so = "stays at zero and nothing is learned" if rate == 0 else f"reaches {rate:.0%} of its peak"
    return f"a warm-up of {warmup} of the {updates} updates: the learning rate {so}; train for longer, or use --warmup-steps 0."


class TrainingLog(TrainerCallback):
    """Writes training.jsonl, a row per log and per evaluation, and prints progress.

    Attributes:
        metrics: holds the captions of the last evaluation.
        marks: what is written into each row. Evaluations after training have "generation", the settings of one that
            is done again, or "final", the step of the checkpoint that was evaluated on the whole validation split.
    """

    def __init__(self, path: Path, metrics: CaptionMetrics, generation: dict[str, Any] | None = None) -> None:
        self.path = path
        self.metrics = metrics
        self.marks: dict[str, Any] = {} if generation is None else {"generation": generation}
        self.progress: Progress | None = None

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                try:
                    rows.append(json.loads(line))
                except ValueError:  # the last line of a run that was killed
                    break
        return rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        # Later steps are done again, and so is the evaluation at the end.
        kept = [row for row in self.rows() if row["step"] <= state.global_step and "final" not in row]
        with writing(self.path, "the log"), finishing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        warning = warmup_warning(args.get_warmup_steps(state.max_steps), state.max_steps)
        if warning is not None:
            say(f"warning: {warning}")
        self.progress = Progress("finetune", state.max_steps - state.global_step, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        row = {"step": state.global_step, "epoch": round(state.epoch or 0, 4), **(logs or {}), **self.marks}
        if "eval_loss" in row:
            evaluated = {name: row[f"eval_{name}"] for name in METRICS}
            row["captions"] = [self.metrics.captions[i] for i in self.metrics.shown]
            row["warnings"] = caption_warnings(self.metrics.captions, evaluated)
            when = f"best checkpoint, {row['final']}" if "final" in row else f"epoch {row['epoch']:g}"
            say(f'  {when}: {figures(evaluated)}; "{row["captions"][0]}"')
            for part in self.metrics.parts:
                theirs = {name: row[f"eval_{part}/{name}"] for name in ("loss", *SCORES)}
                say(f"    {part}: {figures(theirs)}")
            for warning in row["warnings"]:
                say(f"  warning: {warning}")
        with writing(self.path, "the log"), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)

    def best(self, step: int | None) -> dict[str, float]:
        """The metrics of the checkpoint of this step, or (None) of the last evaluation; empty if there was none."""
        row = self._evaluation(step)
        return {name: row[f"eval_{name}"] for name in METRICS} if row else {}

    def best_of_parts(self, step: int | None) -> dict[str, dict[str, float]]:
        """The same for each of several data sets that has validation images."""
        row, names = self._evaluation(step) or {}, ("loss", *SCORES)
        return {part: {name: row[f"eval_{part}/{name}"] for name in names} for part in self.metrics.parts if row}

    def _evaluation(self, step: int | None) -> dict[str, Any] | None:
        rows = [row for row in self.rows() if "eval_loss" in row]
        if step is not None:
            rows = [row for row in rows if row.get("final", row["step"]) == step and "generation" not in row]
        return rows[-1] if rows else None

    def samples(self, cache: Cache) -> list[dict[str, Any]]:
        """The validation images that are followed: pixels, references, and the captions of each evaluation."""
        reader = cache["validation"]
        references, ids = reader.column("captions"), reader.column("image_id")
        evaluations = [row for row in self.rows() if "eval_loss" in row]
        return [
            {
                "image_id": ids[i],
                "pixels": centre(reader[i]["pixel_values"], *cache.seen),
                "references": references[i],
                "captions": [(row["epoch"], row["captions"][position]) for row in evaluations],
            }
            for position, i in enumerate(self.metrics.shown)
        ]


class TwoPhases(TrainerCallback):
    """Trains the decoder alone for the first epochs, then all weights.

    The optimizer has the encoder's weights from the start. It passes over weights without a gradient: no state, no weight
    decay; so the state of a checkpoint fits in either phase.

    Args:
        after: epochs of the first phase.
    """

    def __init__(self, after: int) -> None:
        self.after = after

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        encoder, epoch = kwargs["model"].encoder, int(state.epoch or 0)
        if epoch < self.after:
            freeze_encoder(encoder)
        else:
            unfreeze_encoder(encoder)
        if epoch == self.after and state.epoch == epoch:
            say(f"  the encoder is trained too from epoch {epoch + 1} on")


class Saving(TrainerCallback):
    """Checkpoints between evaluations: every so many updates or minutes, and when a signal ends the command.

    Not at an update after which comes an evaluation, with a checkpoint of its own: a resumed run would leave it out.
    """

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        self.steps, self.minutes = steps, minutes
        self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stopping = args.world_size == 1 and told()
        due = self.steps is not None and state.global_step % self.steps == 0
        if (minutes := self.minutes) is not None:  # by one clock
            due |= broadcast_from_rank_0(lambda: time.monotonic() - self.saved >= 60 * minutes)
        by_epochs = args.save_strategy == "epoch"
        evaluated = control.should_save or (by_epochs and state.epoch == int(state.epoch))
        if evaluated or state.global_step >= state.max_steps:
            if stopping:
                raise KeyboardInterrupt
        elif due or stopping:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()
        if args.world_size == 1 and told():
            raise KeyboardInterrupt
