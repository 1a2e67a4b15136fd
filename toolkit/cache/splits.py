"""Which split an image goes to, and whether two splits share an image."""

from __future__ import annotations

from collections.abc import Iterable

from toolkit.records import SPLITS
from toolkit.runtime.hashing import hash_int


def split_of(pixel_hash: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """The split of an image by its content: the same for every copy of it, whatever else is in the set.

    A hash of content and seed gives a number u, even in [0, 1): test below `test_fraction`, validation below
    `test_fraction + val_fraction`, else train. So one more image moves no other, and a larger test share only takes
    images from the others.

    >>> split_of("00" * 16, seed=42, val_fraction=0.0, test_fraction=0.0)
    'train'
    """
    u = hash_int(f"{seed}:{pixel_hash}") / 2**64
    if u < test_fraction:
        return "test"
    return "validation" if u < test_fraction + val_fraction else "train"


def leaks(rows: Iterable[tuple[str, str, str]]) -> list[dict[str, list[str]]]:
    """Images that stand in more than one split.

    Args:
        rows: (pixel_hash, split, image_id) of each image.

    Returns:
        One {split: [image_id, ...]} per picture that two or more splits share, in order of first appearance.
    """
    by_content: dict[str, dict[str, list[str]]] = {}
    for pixel_hash, split, image_id in rows:
        by_content.setdefault(pixel_hash, {}).setdefault(split, []).append(image_id)
    return [
        {split: places[split] for split in SPLITS if split in places}
        for places in by_content.values()
        if len(places) > 1
    ]
