"""Options of `toolkit demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import Groups, Options, check_at_least, check_seed, default_workers, option


@dataclass(frozen=True)
class DemoOptions(Options):
    """Options of `toolkit demo`."""

    groups: ClassVar[Groups] = {
        "What is done": ("images", "epochs", "seed", "num_workers"),
    }  # fmt: skip

    directory: Path = option(
        Path("demo"), "The folder to write; must not exist or be empty.", positional=True, output=True
    )
    images: int = option(8000, "How many images are drawn; with fewer, the model sees too little to get them right.")
    epochs: float | None = option(None, "Passes over the images. [default: that of the tiny preset]")
    seed: int = option(42, "Seed of everything.")
    num_workers: int = option(default_workers(), "Worker processes. [default: the cores]", show_default=False)

    def validate(self) -> None:
        check_seed(self)
        check_at_least(self, 10, "images")
        check_at_least(self, 1, "num_workers")
