"""Options of `toolkit review`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from toolkit.errors import InputError
from toolkit.options.batch_caption import FORMATS
from toolkit.options.fields import (
    DEVICES,
    Groups,
    Options,
    check,
    check_at_least,
    check_choice,
    check_unused,
    default_workers,
    option,
)
from toolkit.options.inspect import NEAR_DISTANCE

SERVING = ("references", "gallery", "model", "device", "near_duplicates", "host", "port", "open", "num_workers")


@dataclass(frozen=True)
class ReviewOptions(Options):
    """Options of `toolkit review`."""

    groups: ClassVar[Groups] = {
        "What is reviewed": (
            "images", "split", "references", "model", "device", "gallery", "near_duplicates", "num_workers",
        ),
        "Export": ("export", "format", "overwrite"),
        "The page": ("open", "host", "port"),
    }  # fmt: skip

    path: Path = option(
        Path("captions.jsonl"), "Captions that batch-caption wrote, or a cache, whose own captions are reviewed.",
        positional=True,
    )  # fmt: skip
    images: Path | None = option(
        None,
        "Folder that the image names are relative to. [default: the one that batch-caption noted, else that of the "
        "captions, else Images]",
    )
    split: str | None = option(
        None,
        "Split of a cache: train, validation or test; of --references also all. [default: train; all]",
        suggested=("train", "validation", "test", "all"),
    )
    references: Path | None = option(
        None, "A cache or annotations: captions that disagree with their references come early, beside these."
    )
    model: str | None = option(
        None, "For a cache: the captions that this captioner finds least probable come first.", path=True
    )
    device: str = option("auto", "With --model: auto, cpu, cuda, cuda:1 or mps.", suggested=DEVICES)
    gallery: Path | None = option(
        None, "A page that batch-caption --gallery --attention wrote: its heat maps are shown, too."
    )
    near_duplicates: str = option(
        "on",
        f"on, off, or the bits of 64 in which two images may differ (on: {NEAR_DISTANCE}): images that are nearly the same "
        "are shown side by side, found while one reviews.",
        suggested=("on", "off"),
    )
    host: str = option(
        "127.0.0.1", "Address to listen on. Any other than the default lets other machines in.", by_hand=True
    )
    port: int = option(0, "Port to listen on; 0 takes a free one.")
    open: bool = option(False, "Open the page in a browser.", flag=True)
    export: Path | None = option(
        None,
        "Open no page, but write the captions with what people have said of them: a file, or for txt and imagefolder a folder.",
        output=True,
    )
    format: str = option(
        "auto", "With --export: auto (by its suffix), jsonl, csv, parquet, txt, coco or imagefolder.", choices=FORMATS
    )
    overwrite: bool = option(False, "Let --export replace files that review did not write.", flag=True, by_hand=True)
    num_workers: int = option(default_workers(), "Threads that decode images. [default: the cores]", show_default=False)

    def validate(self) -> None:
        check_at_least(self, 1, "num_workers")
        check(0 <= self.port < 65536, "port", self.port, "is a number from 0 to 65535")
        splits = ("train", "validation", "test", *(["all"] if self.references else []))
        check_choice("split", self.split or "train", splits)
        near = self.near_duplicates
        check(near in ("on", "off") or (near.isdigit() and int(near) <= 16), "near_duplicates", near,
              "is on, off or a number up to 16")  # fmt: skip
        if self.export is not None:
            check_unused(self, SERVING, "has no effect with --export, which opens no page; leave it out")
            return
        check_unused(self, ("format", "overwrite"), "only applies with --export; add that, or leave it out")
        if self.model is None:
            check_unused(self, ("device",), "only applies with --model; add that, or leave it out")
        missing = next((name for name in ("starlette", "uvicorn") if find_spec(name) is None), None)
        if missing:
            raise InputError(f"toolkit review: {missing} is not installed; pip install 'captioning-toolkit[review]'.")

    @property
    def distance(self) -> int | None:
        """Bits in which near-duplicates may differ; None if none are sought."""
        named = {"on": NEAR_DISTANCE, "off": None}
        return named[self.near_duplicates] if self.near_duplicates in named else int(self.near_duplicates)
