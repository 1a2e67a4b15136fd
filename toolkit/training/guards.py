"""Known failures of training for a metric, measured at each evaluation and named in one line of the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import EvalPrediction, TrainerCallback

from toolkit.evaluation.health import ends_badly, health
from toolkit.evaluation.shown import figure, figures
from toolkit.evaluation.tokenizers import PTB, Tokenizer
from toolkit.runtime.progress import say
from toolkit.training.callbacks import CaptionMetrics, TrainingLog

# From where on a share is a fault. A person's captions of Flickr8k end badly in 0.2 % and are repeated in less than 1 %.
MOST_BAD_ENDINGS = 0.01
MOST_LOOPS = 0.01
MOST_ALIKE = 0.1  # of at least `ENOUGH` captions
ENOUGH = 50
LEAST_ENDED = 0.99
LEAST_WORDS = 0.8  # of those that the first phase's captions use


def measure(captions: Sequence[str], tokenizer: Tokenizer = PTB) -> dict[str, float]:
    """Shares are from 0 to 1: captions that break off, and those that are the commonest caption; different words; words a
    caption."""
    found = health(captions, tokenizer=tokenizer)
    return {
        "bad_endings": sum(map(ends_badly, captions)) / len(captions),
        "alike": Counter(captions).most_common(1)[0][1] / len(captions),
        "words": found.vocabulary,
        "length": found.length["mean"],
    }


class Guards(TrainerCallback):
    """Trainer's `compute_metrics` that measures more, and a callback that tells of it; the first phase's model is measured
    before training, and is what later evaluations are compared with.

    Attributes:
        trainer: to be set before training.
    """

    def __init__(self, metrics: CaptionMetrics, log: TrainingLog) -> None:
        self.metrics, self.training_log = metrics, log
        self.trainer: Any = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        return {**self.metrics(prediction), **measure(self.metrics.captions, self.metrics.tokenizer)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and self.trainer.eval_dataset is not None:
            say("evaluating the model that training starts from")
            self.trainer.evaluate()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if "eval_bad_endings" in metrics and state.is_world_process_zero:
            say("  " + verdict(self.metrics.captions, metrics, self._first()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first, best, name = self._first(), state.best_metric, args.metric_for_best_model
        if not state.is_world_process_zero or first is None or best is None:
            return
        before = first[f"eval_{name}"]
        if best < before if args.greater_is_better else best > before:
            say(f"warning: no checkpoint is better than the model that training started from ({figures({name: best})} on validation, "
                f"{figure(name, before)} before); use a lower --lr, a --kl-weight or an --xe-weight.")  # fmt: skip

    def _first(self) -> dict[str, Any] | None:
        """The evaluation before training."""
        return next((row for row in self.training_log.rows() if row["step"] == 0 and "eval_bad_endings" in row), None)


def verdict(captions: Sequence[str], metrics: dict[str, float], first: dict[str, Any] | None) -> str:
    """One line: what is wrong with an evaluation's captions, and what was measured.

    Args:
        metrics: of the evaluation, with "eval_" before each name.
        first: those of the evaluation before training.
    """
    bad, loops, alike, ended, words, length = (
        metrics[f"eval_{name}"] for name in ("bad_endings", "loops", "alike", "ended", "words", "length")
    )
    before = words if first is None else first["eval_words"]
    faults = []
    if bad > MOST_BAD_ENDINGS:
        faults.append(f'captions break off, as "{next(filter(ends_badly, captions))}"')
    if loops > MOST_LOOPS:
        faults.append("captions repeat themselves")
    if alike > MOST_ALIKE and len(captions) >= ENOUGH:
        faults.append(f'many images get "{Counter(captions).most_common(1)[0][0]}"')
    if ended < LEAST_ENDED:
        faults.append("captions do not end")
    if words < LEAST_WORDS * before:
        faults.append("words are being lost")
    told = f"warning: {'; '.join(faults)}" if faults else "captions are sound"
    return (
        f"{told} (bad endings {bad:.1%}, loops {loops:.1%}, commonest caption {alike:.1%}, without end {1 - ended:.1%}, "
        f"{words:,.0f} different words{'' if first is None else f', {before:,.0f} before'}, {length:.1f} words a caption)"
    )
