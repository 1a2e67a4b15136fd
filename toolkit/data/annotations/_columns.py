"""Which columns or keys hold images, captions and splits: those that the user names, else the names that are usual."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy: the part of COCO's validation images that is trained on
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# The first that is there; then caption_0, caption_1, ...; then the first of the others.
CAPTION_KEYS = ("captions", "caption", "text", "sentences", "sentence", "raw")
OTHER_CAPTION_KEYS = ("comment", "description", "title", "txt", "en_caption", "caption_en", "alt_text")
IMAGE_KEYS = (
    "image", "image_name", "filename", "file", "file_name", "image_path", "img_path", "filepath", "file_path", "path",
    "image_file", "img",
)  # fmt: skip


def caption_columns(names: Iterable[str]) -> list[str]:
    """The columns that are known to hold captions, in their order."""
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    for key in CAPTION_KEYS:
        if key in by_lower:
            return [by_lower[key]]
    numbered = [(int(m[1]), name) for key, name in by_lower.items() if (m := re.fullmatch(r"caption_?(\d+)", key))]
    if numbered:
        return [name for _, name in sorted(numbered)]
    return [by_lower[key] for key in OTHER_CAPTION_KEYS if key in by_lower][:1]


@dataclass(frozen=True)
class Columns:
    """The columns that the user names, and what the source's splits are to be called.

    Attributes:
        image, captions, split: None or empty where the usual names serve.
        split_map: pairs (the source's split, one of SPLITS).
        met: the keys or columns that the source has, as a reader meets them.
        mapped: those splits of the source that `split_map` speaks of.
    """

    image: str | None = None
    captions: tuple[str, ...] = ()
    split: str | None = None
    split_map: tuple[tuple[str, str], ...] = ()
    met: dict[str, None] = field(default_factory=dict, compare=False)
    mapped: set[str] = field(default_factory=set, compare=False)

    @classmethod
    def of(cls, options: Any) -> Columns:
        """As the options of a command have them."""
        pairs = (given.partition("=") for given in options.split_map)
        split_map = tuple((name.strip(), SPLIT_NAMES[split]) for name, _, split in pairs)
        return cls(options.image_column, tuple(options.caption_column), options.split_column, split_map)

    @classmethod
    def of_names(cls, image: str | None, split: str | None, split_map: tuple[str, ...]) -> Columns:
        """Those that the user names where captions are not read."""
        pairs = (given.partition("=") for given in split_map)
        return cls(image, (), split, tuple((name.strip(), SPLIT_NAMES[split]) for name, _, split in pairs))

    def refuse(self, why: str) -> None:
        """Raises InputError if the user names anything: what is read has no columns."""
        for option, name in [*self.given, *(("--split-map", f"{a}={b}") for a, b in self.split_map)]:
            raise InputError(f"{option} {name}: {why}; leave the option out.")

    @property
    def given(self) -> list[tuple[str, str]]:
        """(option, name) of each column that is named."""
        named = [("--image-column", self.image), *(("--caption-column", name) for name in self.captions)]
        return [(option, name) for option, name in [*named, ("--split-column", self.split)] if name is not None]

    def meet(self, names: Iterable[str]) -> None:
        """For sources whose rows may each have other keys: told of all of them, `check` knows what was never there."""
        self.met.update(dict.fromkeys(names))

    def find_image(self, names: Sequence[str], source: Path, known: Sequence[str] = IMAGE_KEYS) -> str | None:
        """The column of images among `names`; None if there is none.

        Raises:
            InputError: the one that the user names isn't there.
        """
        if self.image is not None:
            return self._find("--image-column", self.image, names, source)
        return known_column(names, known)

    def find_captions(self, names: Sequence[str], source: Path) -> list[str]:
        if self.captions:
            return [self._find("--caption-column", name, names, source) for name in self.captions]
        return caption_columns(names)

    def find_split(self, names: Sequence[str], source: Path) -> str | None:
        if self.split is not None:
            return self._find("--split-column", self.split, names, source)
        return known_column(names, ("split",))

    def _find(self, option: str, wanted: str, names: Sequence[str], source: Path) -> str:
        found = self.match(wanted, names)
        if found is None:
            raise _no_column(option, wanted, names, source)
        return found

    def match(self, wanted: str, names: Iterable[str]) -> str | None:
        """The column that the user means, in these very letters or else in others of either case."""
        found = next((name for name in names if name.strip() == wanted), None) or known_column(names, (wanted.lower(),))
        if found is not None:
            self.meet([wanted])
        return found

    def known_split(self, value: str) -> str | None:
        """One of SPLITS for what a source calls a split; None for a name that is unknown."""
        name = value.strip()
        for given, split in self.split_map:
            if given == name or given.lower() == name.lower():
                self.mapped.add(given)
                return split
        return SPLIT_NAMES.get(name.lower())

    def split_name(self, path: Path, value: Any, image: str) -> str | None:
        """The same for the split that a row or an image is given.

        Raises:
            InputError: its name is unknown.
        """
        if value is None or value == "":
            return None
        split = self.known_split(value) if isinstance(value, str) else None
        if split is None:
            raise InputError(
                f"{path}: {image} is in split {value!r}, which is unknown; use train, val or test (or restval, dev), or "
                f"say what it is with --split-map {value}=validation."
            )
        return split

    def splits_of_names(self, names: Iterable[str], files: bool = False) -> dict[str, str]:
        """name -> split, for names that speak of one: by their first folder (`train/a.jpg`), and with `files` by the
        first word of the file name (`data/train-00001.tar`). Only where one of them is train: a lone `test` is just a
        name."""
        splits = {name: split for name in names if (split := self.split_of_name(name, files)) is not None}
        return splits if "train" in splits.values() else {}

    def split_of_name(self, name: str, files: bool = False) -> str | None:
        *folders, last = name.split("/")
        for word in folders[:1] + ([re.split(r"[-_.]", last)[0]] if files else []):
            if (split := self.known_split(word)) is not None:
                return split
        return None

    def check(self, path: Path) -> None:
        """Raises InputError if what the user names was never met; call it when all is read."""
        for option, name in self.given:
            if name not in self.met:
                raise _no_column(option, name, list(self.met), path)
        for given, split in self.split_map:
            if given not in self.mapped:
                raise InputError(f"--split-map {given}={split}: {path} has no split {given}; name one that it has.")


def known_column(names: Iterable[str], known: Sequence[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _no_column(option: str, wanted: str, names: Sequence[str], source: Path) -> InputError:
    some = ", ".join(name.strip() for name in names[:12]) + (", ..." if len(names) > 12 else "")
    return InputError(f"{option} {wanted}: {source} has no such column, but {some or 'none'}; name one of these.")
