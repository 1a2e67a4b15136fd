"""What image names are compared with: the files of a folder, and the names that lead to some, in a few bytes each."""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

IN_MEMORY = 1 << 20  # bytes of a listing; a longer one goes to a temporary file


@dataclass(frozen=True)
class Way:
    """How names are read.

    Attributes:
        strip: how many leading folders are left out; None: all of them.
        below: what is left is the end of a file's path, else all of it.
        any_case, suffix: it may differ in upper and lower case; it lacks its suffix.
    """

    strip: int | None
    below: bool
    any_case: bool
    suffix: bool

    def left(self, name: str) -> str:
        if self.strip is None:
            return name.rsplit("/", 1)[-1]
        return name.split("/", self.strip)[-1]

    def key(self, name: str) -> str:
        return name.casefold() if self.any_case else name

    def sentence(self, prefix: list[str], added: set[str]) -> str:
        """`added`: the folders in which the files were found, or two of them."""
        words = []
        if self.strip is None:
            words.append("by their last part")
        elif self.strip:
            words.append(f"without the folder {'/'.join(prefix[: self.strip])}/")
        if self.below:
            words.append(f"in the folder {next(iter(added))}/" if len(added) == 1 else "in the folders there")
        words += ["in other upper and lower case"] if self.any_case else []
        words += ["with a suffix"] if self.suffix else []
        return ", ".join(words or ["without ../"])


class There:
    """The names that lead to files, and their folders, each by 64 bits of a hash: 8 bytes a name."""

    def __init__(self) -> None:
        self._names, self._folders = array("Q"), array("Q")
        self._last: str | None = None

    def add(self, name: str) -> None:
        self._names.append(hash_name(name))
        folder = name.rpartition("/")[0]
        if folder != self._last:
            self._folders.append(hash_name(folder))
            self._last = folder

    def __contains__(self, name: str) -> bool:
        return holds(self._sorted_names, name)

    def has_folder(self, folder: str) -> bool:
        return holds(self._sorted_folders, folder)

    @cached_property
    def _sorted_names(self) -> np.ndarray:
        return np.sort(np.frombuffer(self._names, dtype=np.uint64))

    @cached_property
    def _sorted_folders(self) -> np.ndarray:
        return np.unique(np.frombuffer(self._folders, dtype=np.uint64))


def holds(hashes: np.ndarray, text: str) -> bool:
    at = int(np.searchsorted(hashes, np.uint64(hash_name(text))))
    return at < len(hashes) and int(hashes[at]) == hash_name(text)


def hash_name(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


class Files:
    """The files of a folder, listed on the disk, and found by their paths or by the last parts of these.

    In memory are 8 bytes a file, and for each table 12 more: sorted hashes of the keys, and the files' numbers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._list = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - as long-lived as this
        self._starts = array("Q")
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._kind: tuple[bool, bool] | None = None
        at = 0
        for name in names:
            self._starts.append(at)
            at += self._list.write(json.dumps(name).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[str]:
        self._list.seek(0)
        for line in self._list:
            yield json.loads(line)

    def find(self, key: str, parts: int, way: Way) -> list[str]:
        """The files whose last `parts` (0: whose whole path) are this key along a way; two are as good as many."""
        hashes, numbers = self._table(parts, way)
        sought, found = hash_name(key), list[str]()
        at = int(np.searchsorted(hashes, np.uint64(sought)))
        while at < len(hashes) and int(hashes[at]) == sought and len(found) < 2:
            self._list.seek(self._starts[int(numbers[at])])
            file = json.loads(self._list.readline())
            if self._key(file, parts, way) == key:
                found.append(file)
            at += 1
        return found

    def _table(self, parts: int, way: Way) -> tuple[np.ndarray, np.ndarray]:
        if self._kind != (way.any_case, way.suffix):
            self._tables.clear()
            self._kind = (way.any_case, way.suffix)
        if parts not in self._tables:
            hashes, numbers = array("Q"), array("I")
            for number, file in enumerate(self):
                key = self._key(file, parts, way)
                if key is not None:
                    hashes.append(hash_name(key))
                    numbers.append(number)
            order = np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")
            self._tables[parts] = np.frombuffer(hashes, np.uint64)[order], np.frombuffer(numbers, np.uint32)[order]
        return self._tables[parts]

    @staticmethod
    def _key(file: str, parts: int, way: Way) -> str | None:
        name = file if file.isascii() else unicodedata.normalize("NFC", file)
        if parts:
            pieces = name.rsplit("/", parts)
            if len(pieces) < parts:
                return None
            name = "/".join(pieces[-parts:])
        return way.key(os.path.splitext(name)[0] if way.suffix else name)
