"""The images of a finished cache, to be captioned: their pixels as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from toolkit.cache.reader import SplitReader
from toolkit.cache.schema import MANIFEST, Cache, open_cache
from toolkit.data.annotations import Columns
from toolkit.data.images import ImageFile
from toolkit.data.pixels import centre
from toolkit.data.sets import Entry, ImageSet
from toolkit.errors import ImageError
from toolkit.records import SPLITS


class CacheImages(ImageSet):
    """The rows of a cache, reported under their `image_id`."""

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(path, columns)
        columns.refuse(f"{path} is a cache, whose columns are known")
        self.cache: Cache = open_cache(path)

    @property
    def files(self) -> Sequence[Path]:
        return [self.path / MANIFEST, *(file for reader in self._readers for file in reader.paths)]

    @cached_property
    def state(self) -> tuple[int, int]:
        return self.files_state([self.path / MANIFEST])  # which is written anew with the cache

    @cached_property
    def _readers(self) -> list[SplitReader]:
        return [self.cache[split] for split in SPLITS]

    @cached_property
    def _starts(self) -> list[int]:
        """Of each split the number of its first row among all, and at the end the number of all rows."""
        return [0, *accumulate(len(reader) for reader in self._readers)]

    def entries(self) -> Iterator[Entry]:
        row = 0
        for split, reader in zip(SPLITS, self._readers, strict=True):
            for chunk in reader.rows.table["image_id"].chunks:
                for name in chunk.to_pylist():
                    yield Entry(name, row, split)
                    row += 1

    def read(self, row: int) -> ImageFile:
        raise ImageError("a cache has no image files")

    def pixels(self, row: int) -> np.ndarray:
        """uint8 (C, H, W), without the margin of --pixel-margin."""
        number = next(i for i, start in enumerate(self._starts[1:]) if row < start)
        found: np.ndarray = centre(self._readers[number][row - self._starts[number]]["pixel_values"], *self.cache.seen)
        return found
