"""METEOR's alignment: of all matches between two sentences those that cover most words in fewest chunks, by the jar's beam search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

SEARCHED = (1.0, 0.5, 0.5, 0.5)  # what a word of an exact, stem, synonym and paraphrase match counts in the search
BEAM = 40
# A route's key: most words covered, then fewest chunks, then the shortest distance, as one number; the least is the best.
COVERED, CHUNK = 1 << 64, 1 << 40


class Match(NamedTuple):
    """Words of the reference, from `start`, that are those of the caption from `other`.

    Attributes:
        mask, other_mask: of the words, a bit each.
        gain: what taking it changes in a route's key, less chunks and distance.
        distance: between the two places.
    """

    start: int
    end: int
    other: int
    other_end: int
    module: int
    mask: int
    other_mask: int
    gain: int
    distance: int


def match(start: int, length: int, other: int, other_length: int, module: int) -> Match:
    # Whole numbers, as in the original: a single word that is not matched exactly counts nothing here.
    weight = SEARCHED[module]
    gain = -COVERED * (int(length * weight) + int(other_length * weight))
    masks = ((1 << length) - 1) << start, ((1 << other_length) - 1) << other
    return Match(start, start + length, other, other + other_length, module, *masks, gain, abs(start - other))


Link = tuple["Link | None", Match]  # the matches that a route has taken, the last first
Route = tuple[int, int, int, int, Link | None]
"""An alignment of the reference's first words: its key, the words that are used (the caption's above the reference's), where it goes
on, behind its last match in the caption (-1 outside of a chunk), and what it took."""


def best(starts: Sequence[list[Match]], length: int) -> list[Match]:
    """The alignment, in the order of the reference.

    Args:
        starts: matches by their first word in the reference, in the order in which the jar finds them.
        length: of the caption.
    """
    certain = _certain(starts, length)
    used = 0
    for found in certain:
        if found is not None:
            used |= _mask(found, len(starts))
    if any(of_word and found is None for of_word, found in zip(starts, certain, strict=True)):
        for taken in _taken(_search(starts, certain, used)):
            certain[taken.start] = taken
    return [found for found in certain if found is not None]


def _certain(starts: Sequence[list[Match]], length: int) -> list[Match | None]:
    """The matches that overlap no other, by their first word."""
    once = twice = other_once = other_twice = 0  # words of at least one match, and of several
    for matches in starts:
        for m in matches:
            twice, once = twice | once & m.mask, once | m.mask
            other_twice, other_once = other_twice | other_once & m.other_mask, other_once | m.other_mask
    return [
        matches[0]
        if len(matches) == 1 and not (matches[0].mask & twice or matches[0].other_mask & other_twice)
        else None
        for matches in starts
    ]


def _taken(link: Link | None) -> Iterator[Match]:
    while link is not None:
        link, found = link
        yield found


def _mask(m: Match, length: int) -> int:
    return m.mask | m.other_mask << length


def _search(starts: Sequence[list[Match]], certain: Sequence[Match | None], used: int) -> Link | None:
    """The jar's beam search from left to right, with all that it does to distances."""
    key_of = itemgetter(0)
    following: list[Route] = [(0, used, 0, -1, None)]
    for current, matches in enumerate(starts):
        following.sort(key=key_of)
        paths, following = following[:BEAM], []
        steps = [(_mask(m, len(starts)), m.gain, m.other, m.end, m.other_end, m.distance, m) for m in matches]
        for path in paths:
            key, used, at, end, link = path
            if used >> current & 1:
                if current < at:
                    following.append(path)
                elif (sure := certain[at]) is not None:
                    key += sure.gain + sure.distance + (0 if end in (-1, sure.other) else CHUNK)
                    following.append((key, used, sure.end, sure.other_end, link))
                continue
            for mask, gain, other, behind, other_behind, distance, m in steps:
                if not used & mask:
                    taken = key + gain if end == -1 or end == other else key + gain + CHUNK
                    following.append((taken, used | mask, behind, other_behind, (link, m)))
                    key += distance  # of the path that does not take it
            following.append((key if end == -1 else key + CHUNK, used, at + 1, -1, link))
        following = following or paths[:1]
    following.sort(key=key_of)
    return min(following[:BEAM], key=lambda path: path[0] if path[3] == -1 else path[0] + CHUNK)[4]
