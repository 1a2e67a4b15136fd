"""Several caches as one, each with its share of the images of an epoch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from toolkit.cache.reader import SplitReader
from toolkit.cache.schema import Cache, Manifest, open_cache
from toolkit.cache.uploads import fetch_cache
from toolkit.errors import InputError
from toolkit.records import SPLITS
from toolkit.runtime.progress import say
from toolkit.runtime.remote import url_of
from toolkit.training.collator import Shares
from toolkit.training.features import picture_hashes


@dataclass(frozen=True)
class Part:
    """One of the caches, under the name that its metrics have."""

    name: str
    cache: Cache
    share: float


@dataclass(frozen=True)
class Mixture(Cache):
    """The rows of several caches one after another. Directory, tokenizer and image processor are those of the first."""

    parts: tuple[Part, ...] = ()

    def __getitem__(self, split: str) -> SplitReader:
        first, *others = (part.cache[split].directory for part in self.parts)
        return SplitReader(first, self.shape, others=tuple(others))

    def fingerprint(self, split: str) -> str:
        found = [(part.cache.fingerprint(split), part.share) for part in self.parts]
        return "+".join(one if share == 1 else f"{one}:{share:g}" for one, share in found)

    def positions(self, split: str) -> dict[str, range]:
        """The rows of each cache, by its name."""
        ends = np.cumsum([0, *(len(part.cache[split]) for part in self.parts)]).tolist()
        return {part.name: range(ends[i], ends[i + 1]) for i, part in enumerate(self.parts)}

    @cached_property
    def shares(self) -> Shares:
        """What an epoch draws from each train split: not the pictures of another cache's validation or test split."""
        hashes = [{split: picture_hashes(part.cache, split) for split in SPLITS} for part in self.parts]
        pools, left_out = [], 0
        for i, (part, rows) in enumerate(zip(self.parts, self.positions("train").values(), strict=True)):
            held = {
                picture
                for j, found in enumerate(hashes)
                if j != i
                for split in ("validation", "test")
                for picture in found[split]
            }
            pool = [row for row, picture in zip(rows, hashes[i]["train"], strict=True) if picture not in held]
            left_out += len(rows) - len(pool)
            pools.append((np.array(pool, dtype=np.int64), part.share))
        if left_out:
            say(
                f"note: {left_out} train images are also in the validation or test split of another of the caches, and "
                "are left out of training"
            )
        return Shares(pools)


def split_share(given: str | Path) -> tuple[str | Path, float]:
    """A cache and its share: `B:0.5` is half of B, unless a folder has that very name.

    Raises:
        InputError: a share of nothing, or no finite one.
    """
    place, _, share = str(given).rpartition(":")
    try:
        value = float(share)
    except ValueError:
        return given, 1.0
    if not place or Path(given).exists():
        return given, 1.0
    if not 0 < value < math.inf:
        raise InputError(f"{given}: a share is above 0, and finite; leave the cache out, or give another share.")
    return place, value


def open_caches(given: Sequence[str | Path]) -> Cache:
    """One cache, or several as a `Mixture`.

    Args:
        given: folders or URLs, each with its share, if that is not 1.

    Raises:
        InputError: no cache there, or one of other pixels or tokens than the first.
    """
    places = [split_share(one) for one in given]
    caches = [open_cache(fetch_cache(url) if (url := url_of(place)) else place) for place, _ in places]
    if len(caches) == 1 and places[0][1] == 1:
        return caches[0]
    for cache in caches[1:]:
        _check_alike(caches[0], cache)
    counts = Counter(cache.directory.name for cache in caches)
    names = [c.directory.name if counts[c.directory.name] == 1 else c.directory.as_posix() for c in caches]
    if len(set(names)) < len(names):
        raise InputError(
            f"{caches[0].directory}: a cache is named twice; give it once, with a share of 2 to use it twice."
        )
    parts = [Part(name, cache, share) for name, cache, (_, share) in zip(names, caches, places, strict=True)]
    return Mixture(caches[0].directory, _manifest(caches), tuple(parts))


def _check_alike(one: Cache, other: Cache) -> None:
    for what, key in (("pixels", "pixels"), ("labels", "labels")):
        ours, theirs = (cast(dict[str, Any], cache.manifest)[key] for cache in (one, other))
        wrong = next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), None)
        if wrong is not None:
            raise InputError(
                f"{other.directory}: its {what} have {wrong} {theirs.get(wrong)}, those of {one.directory} "
                f"{ours.get(wrong)}; preprocess both with the same encoder, decoder and --max-length."
            )


def _manifest(caches: Sequence[Cache]) -> Manifest:
    """That of the first cache, with the counts of all."""
    first = caches[0].manifest
    counts: Any = dict(first["counts"])
    for name in ("images", "captions", "truncated", "rejected", "left_out", "leaked"):
        counts[name] = sum(cast(Any, cache.manifest["counts"]).get(name, 0) for cache in caches)
    counts["splits"] = {split: sum(cache.manifest["counts"]["splits"][split] for cache in caches) for split in SPLITS}
    annotations = ", ".join(str(cache.manifest["options"]["annotations"]) for cache in caches)
    return cast(Manifest, {**first, "counts": counts, "options": {**first["options"], "annotations": annotations}})
