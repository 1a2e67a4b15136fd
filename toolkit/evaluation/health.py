"""What metrics don't show: captions that don't end, loop, or are all alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from toolkit.errors import InputError
from toolkit.evaluation.tokenizers import PTB, Tokenizer

LOOP_TIMES = 3  # see `health`
PERCENTILES = (5, 25, 50, 75, 95)
# Words that no whole English caption ends with: those of self-critical.pytorch (captioning/models/AttModel.py), and a few
# more of their kind.
# fmt: off
BAD_ENDINGS = frozenset((
    "a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near", "to", "is", "are", "am",
    "and", "or", "by", "from", "into", "its", "his", "their",
))
# fmt: on


@dataclass(frozen=True)
class Health:
    """Health of a set of captions; shares are from 0 to 1.

    Attributes:
        captions: how many.
        ended: share that ended with EOS; None if unknown.
        loops: share that loops.
        distinct: distinct captions (as words) per caption.
        empty: share without a word.
        length: words per caption: mean, min, max, p5, p25, p50, p75, p95.
        vocabulary: distinct words used.
        novel: share that is not a train caption (as words); None without train captions.
    """

    captions: int
    ended: float | None
    loops: float
    distinct: float
    empty: float
    length: dict[str, float]
    vocabulary: int
    novel: float | None

    def sentence(self, unit: str = "word") -> str:
        """All of it in one line; `unit` is the tokeniser's."""
        length = self.length
        parts = [
            f"{length['mean']:.1f} {unit}s per caption ({length['p5']:.0f} to {length['p95']:.0f} in 90 % of them)",
            f"{self.vocabulary:,} different {unit}s",
            f"{self.distinct:.1%} distinct",
        ]
        if self.novel is not None:
            parts.append(f"{self.novel:.1%} not in the train captions")
        if self.ended is not None:
            parts.append(f"{self.ended:.1%} ended by themselves")
        return ", ".join([*parts, f"{self.loops:.1%} loop", f"{self.empty:.1%} empty"])


def health(
    captions: Sequence[str],
    ended: Sequence[bool] | None = None,
    train_captions: Iterable[str] | None = None,
    tokenizer: Tokenizer = PTB,
) -> Health:
    """Health of captions.

    A caption loops if some sequence of 4 words (8 characters of `char`) occurs at least 3 times in it (overlaps count).
    Twice can be meant ("a man in a red shirt and a man in a red shirt"), and so can repeats of shorter sequences ("a man
    in").

    Args:
        ended: per caption, whether generation ended with EOS and not at the length limit.
        train_captions: the captions that the model was trained on.
        tokenizer: what cuts them into words.

    Raises:
        InputError: no captions, or `ended` has another length.
    """
    if not captions:
        raise InputError("captions: there are none; name a file with captions.")
    if ended is not None and len(ended) != len(captions):
        raise InputError(f"ended: {len(ended)} entries for {len(captions)} captions; one each is needed.")
    words = [tuple(tokenizer.words(caption)) for caption in captions]
    lengths = np.array([len(sentence) for sentence in words])
    seen = None if train_captions is None else {tuple(tokenizer.words(caption)) for caption in train_captions}
    percentiles = np.percentile(lengths, PERCENTILES)
    return Health(
        captions=len(captions),
        ended=None if ended is None else float(np.mean(np.asarray(ended, dtype=bool))),
        loops=sum(_loops(sentence, tokenizer.loop) for sentence in words) / len(words),
        distinct=len(set(words)) / len(words),
        empty=float((lengths == 0).mean()),
        length={
            "mean": float(lengths.mean()),
            "min": int(lengths.min()),
            "max": int(lengths.max()),
            **{f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
        },
        vocabulary=len(set(chain.from_iterable(words))),
        novel=None if seen is None else sum(sentence not in seen for sentence in words) / len(words),
    )


def ends_badly(caption: str) -> bool:
    """Whether an English caption breaks off, as "a man with a" does: its last word is one of `BAD_ENDINGS`."""
    words = PTB.words(caption)
    return bool(words) and words[-1] in BAD_ENDINGS


def _loops(words: tuple[str, ...], length: int) -> bool:
    grams = Counter(zip(*(words[n:] for n in range(length)), strict=False))
    return max(grams.values(), default=0) >= LOOP_TIMES
