"""The images of a listing, by number: where they are, and how the page gets them. No request names a file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from toolkit.cache.reader import SplitReader
from toolkit.captioning.journal import places_in
from toolkit.data.images import read_image
from toolkit.data.pixels import centre
from toolkit.data.sources import ImageSource
from toolkit.errors import ImageError, InputError
from toolkit.options.preprocess import PreprocessOptions
from toolkit.runtime.files import beside


class Pictures(Protocol):
    """Upright RGB images."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Image.Image:
        """
        Raises:
            ImageError: it can't be read.
        """
        ...


@dataclass(frozen=True)
class FilePictures:
    """Images of folders: (folder, name below it) of each."""

    places: Sequence[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int) -> Image.Image:
        folder, name = self.places[number]
        return read_image(ImageSource.of(folder).read(name).data)


@dataclass(frozen=True)
class CachePictures:
    """Images of a cache's split: their files where these still are, else the pixels in the cache.

    Attributes:
        seen: (height, width) of the pixels that the encoder takes.
        root: the folder of the files; None for images in containers.
    """

    reader: SplitReader
    seen: tuple[int, int]
    root: Path | None
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> Image.Image:
        if self.root is not None and self.root.is_dir():
            try:
                return read_image(ImageSource.of(self.root).read(self.paths[number]).data)
            except ImageError:
                pass  # the cache is what training sees
        pixels = centre(self.reader[number]["pixel_values"], *self.seen)
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def find_folders(captions: Path, names: Sequence[str], images: Path | None) -> list[tuple[Path, str]]:
    """The folder that each name is relative to: `images`; else the one that batch-caption noted in its state file; else
    the folder of the captions, or Images.

    Raises:
        InputError: the first of the images is in none of these.
    """
    if images is not None:
        if not images.is_dir():
            raise InputError(f"--images {images}: no such folder; name the folder of the images of {captions}.")
        return [(images, name) for name in names]
    noted = _noted(beside(captions, ".state"), names)
    others = [captions.parent, PreprocessOptions().images]
    rest = next((folder for folder in others if any((folder / name).is_file() for name in names[:10])), None)
    if rest is None and not any((noted[name] / name).is_file() for name in names[:10] if name in noted):
        raise InputError(
            f"{captions}: its images (the first is {names[0]}) are not found beside it; name their folder with --images."
        )
    return [(noted.get(name, rest or captions.parent), name) for name in names]


def _noted(state: Path, names: Sequence[str]) -> dict[str, Path]:
    """The folder of each name for which a state file of batch-caption has a place; of several the most common one."""
    candidates: dict[str, list[str]] = {}
    wanted, counts = set(names), Counter[str]()
    for place in places_in(state):
        at = 0
        while at >= 0:
            if place[at:] in wanted:
                folder = place[:at].rstrip("/") or "/"
                candidates.setdefault(place[at:], []).append(folder)
                counts[folder] += 1
            at = place.find("/", at) + 1 or -1
    best = {name: max(folders, key=lambda folder: counts[folder]) for name, folders in candidates.items()}
    return {name: Path(folder) for name, folder in best.items() if os.path.isabs(folder)}
