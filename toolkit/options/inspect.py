"""Options of `toolkit inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import (
    CAPTION_PRECISIONS,
    Groups,
    Options,
    check,
    check_at_least,
    check_split_map,
    default_workers,
    option,
)
from toolkit.options.preprocess import DEFAULT_DECODER, FORMATS

NEAR_DISTANCE = 4  # of 64 bits; scaled or recompressed copies differ in 0 to 4, other photographs in 20 and more


@dataclass(frozen=True)
class InspectOptions(Options):
    """Options of `toolkit inspect`."""

    groups: ClassVar[Groups] = {
        "What is shown": ("split", "near_duplicates", "decoder", "precision", "num_workers"),
        "Output": ("sheet", "page", "overwrite"),
        "Annotations": ("images", "format", "image_column", "caption_column", "split_column", "split_map"),
    }  # fmt: skip

    path: Path = option(
        None, "A cache, an annotation file or folder, a model, or a run.", positional=True, required=True
    )
    images: Path | None = option(
        None, "For annotations: the folder that the image names are relative to. [default: Images beside them]"
    )
    format: str = option("auto", f"For annotations: {', '.join(FORMATS)}.", choices=FORMATS)
    image_column: str | None = option(
        None, "For annotations: column or key with the images or their names, if it isn't found automatically."
    )
    caption_column: tuple[str, ...] = option(
        (), "For annotations: column or key with captions; give the option once for each.", show_default=False
    )
    split_column: str | None = option(None, "For annotations: column or key with the split of an image.")
    split_map: tuple[str, ...] = option(
        (),
        "For annotations: call a split by another name: eval=validation; give the option once for each.",
        show_default=False,
    )
    split: str | None = option(
        None,
        "Count only the captions of this split, and show only it: train, validation or test.",
        choices=("train", "validation", "test"),
    )
    decoder: str | None = option(
        None,
        "Decoder whose tokenizer counts tokens: hub name or local folder. [default: the cache's own; for annotations "
        f"{DEFAULT_DECODER}'s, if it is on this machine]",
        path=True,
    )
    near_duplicates: str = option(
        "on",
        f"on, off, or the bits of 64 in which two pictures may differ (on: {NEAR_DISTANCE}). Off, the images of "
        "annotations are not decoded, so damaged ones aren't found either.",
        suggested=("on", "off"),
    )
    sheet: Path | None = option(
        None, "Also write a page with a sample of images and captions: one HTML file.", output=True
    )
    page: Path | None = option(
        None, "For runs: also write a page with their curves in the same charts: one HTML file.", output=True
    )
    overwrite: bool = option(
        False, "Let --sheet and --page replace files that inspect did not write.", flag=True, by_hand=True
    )
    precision: str | None = option(
        None,
        "For a model: caption a sample in fp32 and in this precision, bf16, fp16 or int8, and compare. The sample is of "
        "--images, else of the validation images that the model was chosen by.",
        choices=CAPTION_PRECISIONS[2:],
    )
    num_workers: int = option(default_workers(), "Threads that decode images. [default: the cores]", show_default=False)
    more_runs: tuple[str, ...] = option(
        (), "More runs, finished or not: shown side by side, with the options that differ.", positional=True, path=True
    )

    def validate(self) -> None:
        check_split_map(self)
        check_at_least(self, 1, "num_workers")
        near = self.near_duplicates
        check(near in ("on", "off") or (near.isdigit() and int(near) <= 16), "near_duplicates", near,
              "is on, off or a number up to 16")  # fmt: skip
        check(self.sheet is None or self.sheet.suffix in (".html", ".htm"), "sheet", self.sheet,
              "name a file that ends in .html")  # fmt: skip
        check(self.page is None or self.page.suffix in (".html", ".htm"), "page", self.page,
              "name a file that ends in .html")  # fmt: skip

    @property
    def distance(self) -> int | None:
        """Bits in which near-duplicates may differ; None if none are sought."""
        named = {"on": NEAR_DISTANCE, "off": None}
        return named[self.near_duplicates] if self.near_duplicates in named else int(self.near_duplicates)
