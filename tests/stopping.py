"""Training that is stopped in the middle, as by Ctrl-C."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.training.trainer import CaptionTrainer


def stops(patch: pytest.MonkeyPatch, step: int) -> None:
    """Training is stopped at the given step, counted from here on, over all accumulated batches."""
    real, done = CaptionTrainer.training_step, []

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.append(1)
        if len(done) == step:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    patch.setattr(CaptionTrainer, "training_step", training_step)
