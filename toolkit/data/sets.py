"""Images that lie inside other files: rows of Parquet files and of data sets, members of tars.

They are found by the readers of `data/annotations/`, under the names that `preprocess` gives them, and read one at a time
when they are captioned. An image needs no caption here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple

import numpy as np

from toolkit.data.annotations import Columns, Notes, hub, parquet, webdataset
from toolkit.data.annotations._tables import RowReader, Table, list_table
from toolkit.data.images import ImageFile, file_reasons, read_file
from toolkit.runtime.files import file_state
from toolkit.runtime.hashing import hash_int

ENDINGS = (".parquet", *webdataset.SUFFIXES)
UNPACKED = 2  # compressed tars that are kept unpacked: threads are at most at the end of one and the start of the next


class Entry(NamedTuple):
    """An image of a set: its name, by which its caption is reported; its number, by which it is read; its split."""

    name: str
    row: int
    split: str | None


@dataclass
class ImageSet(ABC):
    """The images of a data set.

    Attributes:
        path: the file, the folder or the name that the user gave.
        columns: which of its columns hold what, where it has columns.
        notes: what was passed over or renamed; complete once `entries` has been read to the end.
    """

    path: Path
    columns: Columns
    notes: Notes = field(default_factory=Notes)

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """All images, in the order in which they are read fastest.

        Raises:
            InputError: it is no such set, or a broken one.
        """

    @abstractmethod
    def read(self, row: int) -> ImageFile:
        """The encoded image; to be called by several threads.

        Raises:
            ImageError: it can't be read.
        """

    def pixels(self, row: int) -> np.ndarray | None:
        """uint8 (C, H, W) as the model takes them, of a set that stores such in place of encoded images."""
        return None

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files that it is stored in."""

    @cached_property
    def state(self) -> tuple[int, int]:
        """Their size in bytes, and a hash of their names, sizes and times: other where a file has changed."""
        return self.files_state(self.files)

    @staticmethod
    def files_state(files: Sequence[Path]) -> tuple[int, int]:
        states = [(os.path.realpath(file), *file_state(file)) for file in files]
        return sum(size for _, size, _ in states), hash_int(repr(states)) >> 1  # SQLite's integers have a sign

    @cached_property
    def place(self) -> str:
        """What it is known by: its real path, or its name on the hub."""
        return os.path.realpath(self.path) if self.path.exists() else f"hub:{self.path}"


class TableImages(ImageSet):
    """The rows of Parquet files, or of a data set of `datasets`.

    Attributes:
        images_of_rows: of each table the number of each row's image, once `entries` has been read.
    """

    @cached_property
    def tables(self) -> list[Table]:
        """One for each split, or one."""
        return hub.tables(self.path) if self._is_hub else parquet.tables(self.path, self.columns)

    def __init__(self, path: Path, columns: Columns, is_hub: bool) -> None:
        super().__init__(path, columns)
        self._is_hub = is_hub
        self._places = array("Q")  # of each image its table and the row in it

    @cached_property
    def images_of_rows(self) -> list[array[int]]:
        return [array("Q") for _ in self.tables]

    @property
    def files(self) -> Sequence[Path]:
        return [file for table in self.tables for file in table.files]

    def entries(self) -> Iterator[Entry]:
        for number, (table, images) in enumerate(zip(self.tables, self.images_of_rows, strict=True)):
            first = len(self._places)
            for row, (image, name, split) in enumerate(list_table(table, self.notes, self.columns)):
                images.append(first + image)
                if images[-1] == len(self._places):
                    self._places.append(number << 48 | row)
                    yield Entry(name, images[-1], split)
        self.columns.check(self.path)

    @cached_property
    def readers(self) -> list[RowReader]:
        return [RowReader(table, self.columns) for table in self.tables]

    def read(self, row: int) -> ImageFile:
        place = self._places[row]
        return ImageFile(self.image(*self.readers[place >> 48].read(place & (1 << 48) - 1)), self.state)

    def image(self, data: bytes | None, path: str | None) -> bytes:
        """The encoded image of a row; that of a data set may be in a file that the row only names.

        Raises:
            ImageError: there is no such file.
        """
        return read_file(Path(path)).data if data is None and path and self._is_hub else data or b""


class TarImages(ImageSet):
    """The members of WebDataset's tars."""

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(path, columns)
        self._tars = list(webdataset.tars(path, columns))
        self._places = [array("Q"), array("Q"), array("Q")]  # of each image its tar, offset and size
        self._lock, self._unpacked = Lock(), dict[Path, IO[bytes]]()

    @property
    def files(self) -> Sequence[Path]:
        return [file for file, _, _ in self._tars]

    def entries(self) -> Iterator[Entry]:
        for number, (file, prefix, split) in enumerate(self._tars):
            for found in webdataset.list_tar(file, prefix, split, self.notes, self.columns):
                for values, value in zip(self._places, (number, found.offset, found.size), strict=True):
                    values.append(value)
                yield Entry(found.name, len(self._places[0]) - 1, found.split)
        self.columns.check(self.path)

    def read(self, row: int) -> ImageFile:
        number, offset, size = (values[row] for values in self._places)
        file = self._tars[number][0]
        with file_reasons(file), self._lock:
            opened = self._open(file)
            opened.seek(offset)
            return ImageFile(opened.read(size), self.state)

    def _open(self, file: Path) -> IO[bytes]:
        if file not in self._unpacked:
            while len(self._unpacked) >= UNPACKED:
                self._unpacked.pop(next(iter(self._unpacked))).close()
            self._unpacked[file] = webdataset.plain_tar(file)
        return self._unpacked[file]
