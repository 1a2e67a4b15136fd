"""Options of `toolkit sample`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import Groups, Options, check_at_least, check_seed, option


@dataclass(frozen=True)
class SampleOptions(Options):
    """Options of `toolkit sample`."""

    groups: ClassVar[Groups] = {
        "What is drawn": ("images", "seed"),
    }  # fmt: skip

    directory: Path = option(
        None, "The folder to write; must not exist or be empty.", positional=True, required=True, output=True
    )
    images: int = option(2000, "How many images.")
    seed: int = option(42, "The same seed draws the same bytes.")

    def validate(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "images")
