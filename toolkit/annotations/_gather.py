"""What the readers share: notes, splits, captions, and rows gathered by image."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.images import IMAGE_SUFFIXES
from toolkit.records import ImageRecord

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
CAPTION_KEYS = ("captions", "caption", "text", "sentences", "sentence", "raw")


@dataclass
class Notes:
    """What a reader passed over, merged or mended. Complete once the records have been read to the end.

    Attributes:
        counts: by what happened, in words ("blank captions dropped").
        examples: the first few names for each of them.
        remarks: whole sentences for people.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def count(self, what: str, example: str = "", number: int = 1) -> None:
        self.counts[what] += number
        examples = self.examples.setdefault(what, [])
        if example and len(examples) < 3 and example not in examples:
            examples.append(example)

    def say(self, remark: str) -> None:
        self.remarks.append(remark)

    def sentences(self) -> list[str]:
        """All of it for people, one line each."""
        lines = list(self.remarks)
        for what, number in self.counts.items():
            some = self.examples.get(what, [])
            more = ", ..." if number > len(some) else ""
            lines.append(f"{what}: {number}" + (f" ({', '.join(some)}{more})" if some else ""))
        return lines


def split_name(path: Path, value: Any, image: str) -> str | None:
    """One of SPLITS for what a source calls a split."""
    if value is None or value == "":
        return None
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise InputError(
            f"{path}: {image} is in split {value!r}, which is unknown; use train, val or test (or restval, dev)."
        )
    return split


def splits_of_names(names: Iterable[str], files: bool = False) -> dict[str, str]:
    """name -> split, for names that speak of one: by their first folder (`train/a.jpg`), and with `files` by the first
    word of the file name (`data/train-00001.tar`). Only where one of them is train: a lone `test` is just a name."""
    splits = {}
    for name in names:
        *folders, last = name.split("/")
        for word in folders[:1] + ([re.split(r"[-_.]", last)[0]] if files else []):
            if word.lower() in SPLIT_NAMES:
                splits[name] = SPLIT_NAMES[word.lower()]
                break
    return splits if "train" in splits.values() else {}


def captions_in(value: Any) -> list[str] | None:
    """The captions in a JSON or Arrow value: a string, {"raw": ...}, or a list of either; None for another shape."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        for key in ("raw", "caption", "text"):
            if key in value:
                return captions_in(value[key])
        tokens = value.get("tokens")
        return [" ".join(tokens)] if isinstance(tokens, list) and all(isinstance(t, str) for t in tokens) else None
    if isinstance(value, list):
        parts = [captions_in(part) for part in value]
        return None if None in parts else [text for part in parts if part for text in part]
    return None


def caption_columns(names: Iterable[str]) -> list[str]:
    """The columns that hold captions: the first of CAPTION_KEYS, else caption_0, caption_1, ... in their order."""
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    for key in CAPTION_KEYS:
        if key in by_lower:
            return [by_lower[key]]
    numbered = [(int(m[1]), name) for key, name in by_lower.items() if (m := re.fullmatch(r"caption_?(\d+)", key))]
    return [name for _, name in sorted(numbered)]


def clean_captions(captions: Iterable[str], image: str, notes: Notes) -> list[str]:
    """Captions trimmed; blank ones dropped and counted."""
    cleaned = []
    for caption in captions:
        caption = caption.strip()
        if not caption:
            notes.count("blank captions dropped", image)
            continue
        if "\r" in caption:
            caption = caption.replace("\r\n", "\n")
        if not caption.isascii() and re.search("[\ud800-\udfff]", caption):  # half an emoji, from JSON's \ud83d
            caption = re.sub("[\ud800-\udfff]", "\ufffd", caption)
            notes.count("captions with half a character mended", image)
        cleaned.append(caption)
    return cleaned


def clean_name(name: str) -> str:
    name = name.strip()
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


class Gathered:
    """Rows of a source, gathered by image in order of first appearance."""

    def __init__(self, path: Path, notes: Notes) -> None:
        self.path = path
        self.notes = notes
        # name -> (id, split, captions, numbers of the captions)
        self.rows: dict[str, tuple[str | None, str | None, list[str], list[str]]] = {}

    def add(
        self, name: str, captions: Iterable[str], image_id: str | None = None, split: Any = None, number: str = ""
    ) -> None:
        """`number`: the row's own index within the image, where the format has one."""
        name = clean_name(name)
        if not name:
            self.notes.count("rows without an image name dropped")
            return
        split = split_name(self.path, split, name)
        captions = clean_captions(captions, name, self.notes)
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = (image_id, split, [], [])
        elif row[1] != split:
            raise InputError(
                f"{self.path}: {name} is in two splits ({row[1] or 'none'} and {split or 'none'}); leave it in one."
            )
        for caption in captions:
            if caption in row[2]:
                if number and (caption, number) in zip(row[2], row[3], strict=True):
                    self.notes.count("duplicate rows dropped", name)
                    continue
                self.notes.count("captions that an image has twice kept", name)
            row[2].append(caption)
            if number:
                row[3].append(number)

    def records(self) -> Iterator[ImageRecord]:
        ids: set[str] = set()
        for name, (image_id, split, captions, _) in self.rows.items():
            if not captions:
                self.notes.count("images without a caption left out", name)
                continue
            image_id = name if image_id is None else image_id
            if image_id in ids:
                self.notes.count("image ids given to two images, replaced by their names", name)
                image_id = name
            ids.add(image_id)
            yield ImageRecord(image_id, name, tuple(captions), split)


def add_suffix(images: Path, name: str) -> str:
    """A name that a source gives without suffix, with the one that its file has."""
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES or os.path.exists(os.path.join(images, name)):
        return name
    for suffix in (".jpg", ".png", *sorted(IMAGE_SUFFIXES)):
        for form in (suffix, suffix.upper()):
            if os.path.exists(os.path.join(images, name + form)):
                return name + form
    return name
