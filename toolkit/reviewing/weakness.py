"""Which captions to look at first: those that look weak without looking at the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.evaluation.tokenizers import PTB, Scripts
from toolkit.reports.facts.stats import MARK, WORD

# Signs that a caption is weak, in the order in which the page names them, with what each adds to its weakness. A low score
# or little agreement with references adds at most 1.
SIGNS = {"empty": 2.0, "not ended": 1.0, "repeats": 1.0, "short": 0.5, "long": 0.5}
FENCE = 1.5  # lengths beyond so many interquartile ranges are odd (Tukey 1977)
FEWEST = 2  # words; fewer are odd whatever the others have


def caption_words(captions: Sequence[str]) -> list[list[str]]:
    """The words of each caption, without punctuation; in characters where the captions' language has no spaces."""
    tokenizer, _ = Scripts(captions).choose()
    if tokenizer is PTB:
        return [WORD.findall(caption.lower()) for caption in captions]
    return [[word for word in tokenizer.words(caption) if not MARK.fullmatch(word)] for caption in captions]


def repeats_itself(words: Sequence[str]) -> bool:
    """Whether up to four words follow themselves: "a dog and a dog and a cat". A single word twice may be meant ("very
    very"); three times it counts."""
    if len(set(words)) == len(words):
        return False
    for length in (1, 2, 3, 4):
        times = 3 if length == 1 else 2
        for start in range(len(words) - times * length + 1):
            gram = words[start : start + length]
            if all(words[start + k * length : start + (k + 1) * length] == gram for k in range(1, times)):
                return True
    return False


def signs_of(captions: Sequence[str | None], ended: Sequence[bool | None]) -> list[tuple[str, ...]]:
    """The signs of `SIGNS` that each caption shows; () for a row without a caption."""
    words = caption_words([caption or "" for caption in captions])
    lengths = np.array([len(said) for said in words if said], dtype=float)
    low, high = FEWEST, float("inf")
    if len(lengths):
        first, third = np.percentile(lengths, [25, 75])
        spread = max(third - first, 1.0)  # of captions that are nearly all of one length
        low, high = max(FEWEST, first - FENCE * spread), third + FENCE * spread
    found = []
    for caption, said, end in zip(captions, words, ended, strict=True):
        shown = {
            "empty": not said,
            "not ended": end is False,
            "repeats": repeats_itself(said),
            "short": bool(said) and len(said) < low,
            "long": len(said) > high,
        }
        found.append(() if caption is None else tuple(sign for sign, is_so in shown.items() if is_so))
    return found


def weaknesses(signs: Sequence[Sequence[str]], *measures: Sequence[float | None]) -> list[float]:
    """A number a caption, the weakest the greatest: the sum of its signs, and the mean of its ranks, from 0 to 1, in the
    measures that are known of it (the lowest value has rank 1)."""
    ranks = [_ranks(values) for values in measures]
    found = []
    for i, shown in enumerate(signs):
        known = [rank for of in ranks if (rank := of[i]) is not None]
        found.append(sum(SIGNS[sign] for sign in shown) + (sum(known) / len(known) if known else 0.0))
    return found


def _ranks(values: Sequence[float | None]) -> list[float | None]:
    """1 for the lowest value, 0 for the highest; equal values have equal ranks."""
    known = sorted({value for value in values if value is not None})
    last = max(len(known) - 1, 1)
    place = {value: 1 - number / last for number, value in enumerate(known)}
    return [None if value is None else place[value] for value in values]
