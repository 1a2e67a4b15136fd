"""What is reviewed: each image of a file of captions, or each caption of a cache's split, the weakest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.cache.schema import MANIFEST, Cache, open_cache
from toolkit.captioning.places import find_folders
from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import CAPTION_KEYS, ID_KEYS, NAME_KEYS, Hypotheses, Hypothesis
from toolkit.evaluation.matching import match
from toolkit.evaluation.metrics import prepare
from toolkit.evaluation.references import Source, read_references
from toolkit.evaluation.tokenizers import choose_tokenizer
from toolkit.options import ReviewOptions
from toolkit.outputs.tables import read_columns
from toolkit.reviewing.pictures import CachePictures, FilePictures, Pictures
from toolkit.reviewing.weakness import signs_of, weaknesses
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.progress import printable


@dataclass(frozen=True)
class Item:
    """One caption to judge.

    Attributes:
        id: the image, as its captions name it.
        picture: its number in the pictures of the listing.
        caption: as it stands in the file or cache; None where the image has none.
        captions: those to choose from, if there are several.
        single: whether it is one of an image's captions that are judged one by one.
        score: mean token log-probability in nats.
        agreement: ROUGE-L with the references, from 0 to 1.
        error: why there is no caption.
        signs: of weakness.
        weakness: the weakest has the greatest.
        row: the rest of its row in the file.
    """

    id: str
    picture: int
    caption: str | None
    captions: tuple[str, ...] = ()
    single: bool = False
    score: float | None = None
    agreement: float | None = None
    references: tuple[str, ...] = ()
    error: str | None = None
    signs: tuple[str, ...] = ()
    weakness: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str | None]:
        """As an action names it."""
        return self.id, self.caption if self.single else None

    def to_json(self) -> dict[str, Any]:
        """As the page gets it, without unknown values."""
        values: dict[str, Any] = {
            "id": self.id,
            "picture": self.picture,
            "caption": self.caption,
            "captions": self.captions if len(self.captions) > 1 else None,
            "single": self.single or None,
            "score": None if self.score is None else round(self.score, 4),
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "references": self.references or None,
            "error": self.error,
            "signs": self.signs or None,
            "weakness": round(self.weakness, 4),
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Listing:
    """All items, in the order of the file.

    Attributes:
        version: a hash of what is listed, so that a number means an image of this listing only.
    """

    title: str
    items: list[Item]
    pictures: Pictures
    version: str

    @classmethod
    def of(cls, title: str, items: list[Item], pictures: Pictures) -> Listing:
        names = (ascii((item.id, item.caption)) for item in items)  # which may hold halves of characters
        return cls(printable(title), items, pictures, hash_hex(*names)[:16])


def is_cache(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def list_captions(options: ReviewOptions) -> Listing:
    """The images of a file of captions.

    Raises:
        InputError: no such file, no captions, or their images are not found.
    """
    items = read_items(options.path)
    folders = find_folders(options.path, [item.id for item in items], options.images)
    signs = signs_of([item.caption for item in items], [item.row.get("ended") for item in items])
    references = _references(options, items) if options.references is not None else {}
    agreement = [references[item.id][0] if item.id in references else None for item in items]
    weakness = weaknesses(signs, [item.score for item in items], agreement)
    listed = []
    for number, item in enumerate(items):
        said = references[item.id][1] if item.id in references else ()
        given = {**item.__dict__, "picture": number, "agreement": agreement[number], "references": said}
        listed.append(Item(**{**given, "signs": signs[number], "weakness": weakness[number]}))
    return Listing.of(options.path.name, listed, FilePictures(folders))


def read_items(path: Path) -> list[Item]:
    """The rows of a file of captions, several of one image as one.

    Raises:
        InputError: as `read_columns`; a row without a name.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such file (relative to the current directory); name captions that `toolkit batch-caption` wrote, or a cache."
        )
    columns = read_columns(path)
    name = next(name for name in (*NAME_KEYS, *ID_KEYS) if name in columns)
    said = next(name for name in CAPTION_KEYS if name in columns)
    found: dict[str, dict[str, Any]] = {}
    for number, image in enumerate(columns[name], 1):
        row = {column: values[number - 1] for column, values in columns.items()}
        if not image:
            raise InputError(f"{path}: row {number} names no image; correct or remove it.")
        captions = _captions(row, said)
        before = found.setdefault(image, {**row, "captions": []})
        before["captions"] += [caption for caption in captions if caption not in before["captions"]]
    return [_item(image, row) for image, row in found.items()]


def _captions(row: dict[str, Any], said: str) -> list[str]:
    best, several = row[said], row.get("captions")
    found = list(best) if isinstance(best, (list, tuple)) else [] if best is None else [best]
    return found + [c for c in several or () if isinstance(c, str) and c not in found]


def _item(image: str, row: dict[str, Any]) -> Item:
    captions = tuple(str(caption) for caption in row["captions"])
    error = row.get("error") or (None if captions else "no caption")
    score = row.get("score")
    return Item(
        image,
        0,
        None if row.get("error") else next(iter(captions), None),
        captions,
        score=score if score is not None and math.isfinite(score) else None,
        error=error,
        row=row,
    )


def _references(options: ReviewOptions, items: Sequence[Item]) -> dict[str, tuple[float, tuple[str, ...]]]:
    """For each image with references how much its caption agrees with them, and them."""
    references = read_references(Source(Path(options.references or "")), options.split or "all")
    rows = [Hypothesis((item.id,), item.caption) for item in items if item.caption is not None]
    matched = match(Hypotheses(f"{options.path}", "captions", rows), references)
    said = {image: references.captions[image] for image in matched.captions}
    if not said:
        return {}
    words = choose_tokenizer("auto", (caption for captions in said.values() for caption in captions)).tokenizer.words
    captions = {image: row.caption or "" for image, row in matched.captions.items()}
    scores = prepare(said, tokenize=words).score(captions, ("rouge_l",))
    values = dict(zip(scores.image_ids, scores.per_image["rouge_l"].tolist(), strict=True))
    return {row.names[0]: (values[image], tuple(said[image])) for image, row in matched.captions.items()}


def list_cache(options: ReviewOptions, scores: Sequence[Sequence[float]] | None) -> Listing:
    """The captions of a cache's split, one by one.

    Args:
        scores: for each row of the split the mean log-probability of each of its captions under a model, by which alone
            they are ordered then.

    Raises:
        InputError: no such split, or no image in it.
    """
    cache = open_cache(options.path)
    split = options.split or "train"
    reader = cache[split]
    ids, paths, said = (reader.column(name) for name in ("image_id", "path", "captions"))
    flat = [caption for captions in said for caption in captions]
    if not flat:
        raise InputError(f"--split {split}: {options.path} has no captions in this split; name another one.")
    signs = signs_of(flat, [None] * len(flat))
    known = None if scores is None else [value for of_image in scores for value in of_image]
    weakness = weaknesses(signs) if known is None else weaknesses([()] * len(flat), known)
    items: dict[tuple[str, str | None], Item] = {}  # by key: a caption that an image has twice is judged once
    at = 0
    for number, captions in enumerate(said):
        for caption in captions:
            score = None if known is None else known[at]
            item = Item(ids[number], number, caption, single=True, score=score, signs=signs[at], weakness=weakness[at])
            items.setdefault(item.key, item)
            at += 1
    return Listing.of(
        f"{options.path.name}, {split}", list(items.values()), CachePictures(reader, cache.seen, _root(cache), paths)
    )


def _root(cache: Cache) -> Path | None:
    root = cache.manifest["inputs"]["images"]
    return None if root is None else Path(root)
