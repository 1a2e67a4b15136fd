"""Images that are nearly the same, found in the background while a person reviews."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import numpy as np

from toolkit.errors import ImageError
from toolkit.reports.facts.stats import near_pairs, perceptual_hash
from toolkit.reviewing.pictures import Pictures


def near_groups(pictures: Pictures, distance: int, workers: int, stop: Event) -> list[list[int]]:
    """Groups of two and more images that are linked by pairs of which each differs in at most `distance` bits of 64.

    Args:
        stop: set, the search ends early, with none.
    """

    def look(number: int) -> int | None:
        try:
            return None if stop.is_set() else perceptual_hash(pictures.read(number))
        except ImageError:
            return None

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(look, range(len(pictures))))
    if stop.is_set():
        return []
    known = [number for number, value in enumerate(found) if value is not None]
    hashes = np.array([found[number] for number in known], dtype=np.uint64)
    leader = list(range(len(known)))

    def lead(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for one, other, _ in near_pairs(hashes, distance) if known else ():
        for i, j in zip(one.tolist(), other.tolist(), strict=True):
            leader[max(lead(i), lead(j))] = min(lead(i), lead(j))
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(known):
        groups.setdefault(lead(i), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def in_background(
    pictures: Pictures, distance: int | None, workers: int, tell: Callable[[list[list[int]]], None]
) -> Event:
    """Starts the search, unless `distance` is None; the event stops it."""
    stop = Event()

    def search() -> None:
        tell(near_groups(pictures, distance or 0, workers, stop))

    if distance is None:
        tell([])
    else:
        Thread(target=search, daemon=True, name="near-duplicates").start()
    return stop
