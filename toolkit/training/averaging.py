"""An exponential moving average of the weights: what is evaluated and saved in place of the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from toolkit.errors import RunError
from toolkit.training.checkpoints import AVERAGE


class WeightAverage(TrainerCallback):
    """After update t each average a of a trained weight w becomes a + (1 - d) (w - a), where d = min(decay, (1 + t) / (10 + t)).

    The second term lets a short run forget its first weights (as in TensorFlow's ExponentialMovingAverage). The average
    takes as much memory as the trained weights and is a file of its own in each checkpoint. An evaluation swaps it in.

    Args:
        decay: 0.999 averages over about the last thousand updates.

    Attributes:
        weights: the average by the names of the model's parameters, those that the optimizer has; empty before training.
        source: the checkpoint that training goes on from.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}
        self.source: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {id(weight) for group in kwargs["optimizer"].param_groups for weight in group["params"]}
        named = kwargs["model"].named_parameters()
        self.parameters = {name: weight for name, weight in named if id(weight) in trained}
        self.weights = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        if self.source is not None:
            self._read(self.source, self.weights)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        torch._foreach_lerp_(list(self.weights.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model has the average meanwhile; before training, what it has."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.weights.items():
            weight = self.parameters[name]
            trained = weight.detach().clone()
            weight.copy_(average)
            average.copy_(trained)

    def write(self, checkpoint: Path) -> None:
        save_file(self.weights, checkpoint / AVERAGE, {"format": "pt"})

    @torch.no_grad()
    def put_into_model(self, checkpoint: Path | None = None) -> None:
        """After training: the model keeps the average, that of a checkpoint or the last one, also in later evaluations."""
        if checkpoint is None:
            for name, average in self.weights.items():
                self.parameters[name].copy_(average)
        else:
            self._read(checkpoint, dict(self.parameters))
        self.weights = {}

    @staticmethod
    @torch.no_grad()
    def _read(checkpoint: Path, places: dict[str, torch.Tensor]) -> None:
        """
        Raises:
            RunError: the checkpoint has not exactly these weights.
        """
        path = checkpoint / AVERAGE
        found = load_file(path) if path.is_file() else {}
        if found.keys() != places.keys():
            raise RunError(f"{path}: is missing, or not the average of this model; train again with --overwrite.")
        for name, place in places.items():
            place.copy_(found[name])
