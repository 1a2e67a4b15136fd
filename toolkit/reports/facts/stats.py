"""Counts over a data set: words, lengths, duplicate and near-duplicate images. No torch, little memory."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from toolkit.cache.labels import CaptionEncoder
from toolkit.cache.splits import leaks
from toolkit.evaluation.tokenizers import PTB, Scripts, Tokenizer
from toolkit.records import SPLITS
from toolkit.runtime.hashing import hash_int

if TYPE_CHECKING:
    from PIL import Image

MAX_LENGTHS = (16, 20, 24, 32, 40, 50, 64)  # for each, the number of captions that would be truncated is counted
FREQUENT = 30  # words listed
EXAMPLES = 100  # examples of duplicates, leaks and pairs; all of them are counted
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MARK = regex.compile(r"[\p{P}\p{S}]+")  # what other tokenisers than PTB give beside words
CHOOSE_BY = (
    100_000  # captions are kept, some 12 MB, before a tokeniser is chosen by them; later ones are counted as they come
)
BLOCK = 2**21  # pairs of hashes compared at once: 16 MB

Spread = dict[str, float]


def spread(counts: Counter[int]) -> Spread | None:
    """Minimum, median and maximum of counted numbers; None if there are none.

    >>> spread(Counter({4: 1, 5: 2, 9: 1}))
    {'min': 4, 'median': 5, 'max': 9}
    """
    if not counts:
        return None
    values = sorted(counts)
    median = float(np.median(np.repeat(values, [counts[v] for v in values])))
    return {"min": values[0], "median": int(median) if median.is_integer() else median, "max": values[-1]}


@dataclass
class CaptionStats:
    """Statistics of captions, updated as captions are added.

    Args:
        encoder: counts tokens; without it only words are counted.
    """

    encoder: CaptionEncoder | None = None
    per_image: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    word_lengths: Counter[int] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    distinct: set[int] = field(default_factory=set)
    scripts: Scripts = field(default_factory=Scripts)
    waiting: list[str] | None = field(default_factory=list)  # captions until there is a tokenizer
    tokenizer: Tokenizer = PTB
    why: str = ""

    def add(self, images: Sequence[Sequence[str]]) -> None:
        """Add the captions of some images; many at once are faster."""
        captions = [caption for image in images for caption in image]
        self.per_image.update(len(image) for image in images)
        self.distinct.update(map(hash_int, captions))
        if self.waiting is None:
            self._count(captions)
        else:
            self.scripts.add(captions)
            self.waiting += captions
            if len(self.waiting) >= CHOOSE_BY:
                self._count_waiting()
        if self.encoder is not None and captions:
            self.tokens.update(self.encoder.lengths(captions).tolist())

    def _count_waiting(self) -> None:
        """Chooses a tokenizer by the captions so far, and counts them."""
        if self.waiting is not None:
            self.tokenizer, self.why = self.scripts.choose()
            self._count(self.waiting)
            self.waiting = None

    def _count(self, captions: Sequence[str]) -> None:
        for caption in captions:
            if self.tokenizer is PTB:  # whose clitics and brackets nobody would call words
                words = WORD.findall(caption.lower())
            else:
                words = [word for word in self.tokenizer.words(caption) if not MARK.fullmatch(word)]
            self.word_lengths[len(words)] += 1
            self.words.update(words)

    def notes(self) -> list[str]:
        """How words were counted, if not as in English."""
        self._count_waiting()
        if self.tokenizer is PTB:
            return []
        return [f"words are counted by --tokenize {self.tokenizer.name}, because the captions {self.why}"]

    def values(self, max_lengths: Sequence[int] = MAX_LENGTHS) -> dict[str, Any]:
        """The statistics as in `--json`; `truncated` is per --max-length, `tokens` include the EOS."""
        self._count_waiting()
        ranked = sorted(self.words.items(), key=lambda item: (-item[1], item[0]))
        truncated = {str(m): sum(n for length, n in self.tokens.items() if length > m) for m in max_lengths}
        return {
            "count": sum(self.word_lengths.values()),
            "distinct": len(self.distinct),
            "per_image": spread(self.per_image),
            "words": spread(self.word_lengths),
            "tokens": spread(self.tokens),
            "truncated": truncated if self.encoder is not None else None,
            "tokenize": self.tokenizer.name,
            "vocabulary": len(ranked),
            "frequent": [list(item) for item in ranked[:FREQUENT]],
        }


# ---- duplicate images -----------------------------------------------------------------------------------------


def duplicates(names: Sequence[str], splits: Sequence[str | None], hashes: Sequence[str]) -> dict[str, Any]:
    """Images with the same hash, and those of them that are in two splits.

    Returns:
        "duplicates": {"pictures": how many occur more than once, "copies": how many images are redundant, "examples":
        [[name, ...], ...]}, "leaks": {"pictures": how many are in two splits, "examples": [{split: [name, ...]}]}
    """
    counts = Counter(hashes)
    groups: dict[str, list[int]] = {}
    for i, value in enumerate(hashes):
        if counts[value] > 1:
            groups.setdefault(value, []).append(i)
    rows = ((value, split, names[i]) for value, group in groups.items() for i in group if (split := splits[i]))
    leaked = leaks(rows)
    return {
        "duplicates": {
            "pictures": len(groups),
            "copies": sum(len(group) - 1 for group in groups.values()),
            "examples": [[names[i] for i in group] for group in list(groups.values())[:EXAMPLES]],
        },
        "leaks": {"pictures": len(leaked), "examples": leaked[:EXAMPLES]},
    }


# ---- near-duplicate images ----------------------------------------------------------------------------------------


@cache
def _cosines() -> np.ndarray:
    """The 8 lowest of the 32 waves of a discrete cosine transform: float64 (8, 32)."""
    return np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that stay the same when an image is scaled, recompressed or brightened: pHash.

    Equal to `imagehash.phash` bit for bit, without its dependencies scipy and PyWavelets. A bit says whether one of the
    8 x 8 lowest frequencies of the grey image is above their median.
    """
    from PIL.Image import Resampling

    grey = np.asarray(image.convert("L").resize((32, 32), Resampling.LANCZOS), dtype=np.float64)
    waves = np.round(_cosines() @ grey @ _cosines().T, 3)  # rounded, so that a plain colour gives 0 and not 1e-13
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each pair i < j of hashes (uint64) that differ in at most `distance` bits, once: arrays (i, j, bits).

    Split into distance + 1 bands, two such hashes agree in at least one band, so only hashes that agree in a band are
    compared.
    """
    edges = np.linspace(0, 64, distance + 2).astype(int)
    masks = [np.uint64((1 << int(high)) - (1 << int(low))) for low, high in pairwise(edges)]
    for band, mask in enumerate(masks):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")  # stable: ascending within a bucket
        ends = np.append(np.flatnonzero(np.diff(keys[order])) + 1, len(order))
        starts = np.append(0, ends[:-1])
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            members = order[start:end]
            step = max(1, BLOCK // len(members))
            for first in range(0, len(members), step):
                rows, columns = members[first : first + step], members[first:]
                different = hashes[rows][:, None] ^ hashes[columns][None, :]
                bits = np.bitwise_count(different)
                near = (bits <= distance) & (rows[:, None] < columns[None, :])
                for earlier in masks[:band]:  # found in an earlier band
                    near &= (different & earlier) != 0
                i, j = np.nonzero(near)
                if len(i):
                    yield rows[i], columns[j], bits[i, j]


def near_duplicates(
    names: Sequence[str], splits: Sequence[str | None], hashes: Sequence[str], perceptual: Sequence[int], distance: int
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Images that differ only slightly; of identical images only the first is compared.

    Returns:
        {"distance", "pairs", "images": how many are in a pair, "across_splits": pairs in two splits, "nearest":
        [{"images": [name, name], "splits": [...], "distance"}, ...]}, and the nearest pairs as image numbers.
    """
    seen: dict[str, int] = {}
    for number, value in enumerate(hashes):
        seen.setdefault(value, number)
    first = np.array(list(seen.values()), dtype=np.int64)
    codes = np.array([("", *SPLITS).index(splits[n] or "") for n in first])
    involved = np.zeros(len(first), dtype=bool)
    count = across = 0
    nearest: list[tuple[int, int, int]] = []
    for i, j, bits in near_pairs(np.array([perceptual[n] for n in first], dtype=np.uint64), distance):
        count += len(i)
        across += int(((codes[i] != codes[j]) & (codes[i] > 0) & (codes[j] > 0)).sum())
        involved[i] = involved[j] = True
        best = np.lexsort((j, i, bits))[:EXAMPLES]
        found = zip(bits[best].tolist(), first[i[best]].tolist(), first[j[best]].tolist(), strict=True)
        nearest = sorted([*nearest, *found])[:EXAMPLES]
    values = {
        "distance": distance,
        "pairs": count,
        "images": int(involved.sum()),
        "across_splits": across,
        "nearest": [
            {"images": [names[a], names[b]], "splits": [splits[a], splits[b]], "distance": bit_count}
            for bit_count, a, b in nearest
        ],
    }
    return values, [(a, b) for _, a, b in nearest]


# ---- all images together --------------------------------------------------------------------------------------------


@dataclass
class ImageStats:
    """Name, path, split and hashes of every image, by number.

    Attributes:
        hashes: of the decoded image, or of the file.
        perceptual: 64 bits per image; only used to find near-duplicates.
    """

    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    perceptual: list[int] = field(default_factory=list)

    def alike(self, distance: int | None) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Duplicates, near-duplicates unless `distance` is None, and leaks; and the nearest pairs by number."""
        values: dict[str, Any] = duplicates(self.names, self.splits, self.hashes)
        pairs: list[tuple[int, int]] = []
        values["near_duplicates"] = None
        if distance is not None:
            near = near_duplicates(self.names, self.splits, self.hashes, self.perceptual, distance)
            values["near_duplicates"], pairs = near
        return values, pairs


@dataclass(frozen=True)
class Sheet:
    """The cards of a page: {"name", "split", "thumbnail", "error", "captions": [{"text", "tokens", "cut"}, ...]} per
    image, and a pair of these per near-duplicate."""

    cards: list[dict[str, Any]]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]]


SHEET_IMAGES, SHEET_PAIRS = 24, 8


def rejected(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Unreadable images by reason, from rows of {"image_id", "path", "reason"}."""
    reasons = Counter(row["reason"].split(":")[0] for row in rows)
    examples = [{name: row[name] for name in ("image_id", "path", "reason")} for row in rows[:EXAMPLES]]
    return {"count": len(rows), "reasons": dict(reasons.most_common()), "examples": examples}


def unusable_rows(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Unusable rows of annotations, from rows of {"path", "reason", "line"}."""
    count, examples = 0, list[dict[str, Any]]()
    for row in rows:
        count += 1
        if len(examples) < EXAMPLES:
            examples.append({name: row.get(name) for name in ("line", "path", "reason")})
    return {"count": count, "examples": examples}


def bytes_below(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)
