"""The images of a listing, by number: where they are, and how the page gets them. No request names a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from toolkit.cache.reader import SplitReader
from toolkit.data.images import read_image
from toolkit.data.pixels import centre
from toolkit.data.sources import ImageSource
from toolkit.errors import ImageError


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
