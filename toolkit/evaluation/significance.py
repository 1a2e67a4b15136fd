"""Confidence intervals, significance of a difference, and the scores that people get.

Everything is computed from the metrics of each image (`Scores.per_image`, `Scores.bleu_counts`), so nothing is scored
again: CIDEr's word weights stay those of the evaluated corpus. METEOR's corpus score can't be computed from its scores
per image, so it has no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.evaluation.metrics import BLEU_NAMES, Scores, bleu_from_counts, prepare
from toolkit.evaluation.ptb import Tokenize, ptb_tokenize
from toolkit.evaluation.tokenizers import tokenize_lines

BLOCK = 1 << 22  # resampled images at a time: 32 MB
LEVEL = 95  # per cent
NO_MEAN = ("meteor",)


@dataclass(frozen=True)
class Metric:
    """A metric of a corpus with its confidence interval; None if there is none."""

    score: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Metric):
    """Another system's metric minus the first's; `p` is the probability of such a difference by chance, `p_holm` the same
    corrected for how many systems are compared."""

    p: float | None
    p_holm: float | None = None


def intervals(systems: Sequence[Scores], resamples: int = 1000, seed: int = 42) -> list[dict[str, Metric]]:
    """95 % intervals of every metric of every system: percentile bootstrap over images (Efron & Tibshirani 1993, ch. 13).

    Args:
        systems: scores of the same images. All are resampled alike.
    """
    drawn = _bootstrap(systems, resamples, seed)
    return [
        {name: Metric(score, *_interval(values.get(name))) for name, score in system.corpus.items()}
        for system, values in zip(systems, drawn, strict=True)
    ]


def compare(one: Scores, other: Scores, resamples: int = 1000, seed: int = 42) -> dict[str, Difference]:
    """Differences of two systems on the same images, other minus one.

    The interval is the paired bootstrap's (Koehn 2004, "Statistical significance tests for machine translation
    evaluation"); the two-sided p-value is that of approximate randomisation (Noreen 1989; Riezler & Maxwell 2005): the
    captions of an image are swapped between the systems at random, and p = (1 + times that the difference was at least
    as large) / (1 + resamples). Metrics of equal files give p = 1.
    """
    drawn, p_values = _bootstrap([one, other], resamples, seed), _swapped(one, other, resamples, seed)
    differences = {}
    for name, score in one.corpus.items():
        spread = drawn[1][name] - drawn[0][name] if name in drawn[0] else None
        differences[name] = Difference(other.corpus[name] - score, *_interval(spread), p_values.get(name))
    return differences


def compare_all(systems: Sequence[Scores], resamples: int = 1000, seed: int = 42) -> list[dict[str, Difference]]:
    """Differences of each other system from the first, as by `compare`, with Holm's corrected p-values.

    For each metric, of k comparisons the smallest p-value is multiplied by k, the next by k - 1 and so on, at most 1, and none
    is below one that was smaller (Holm 1979, "A simple sequentially rejective multiple test procedure"): the chance that any
    of several equal systems seems different stays below the level that is read off.
    """
    found = [compare(systems[0], other, resamples, seed) for other in systems[1:]]
    for name in systems[0].corpus if found else ():
        p_values = [differences[name].p for differences in found]
        if None not in p_values:
            for differences, corrected in zip(found, holm([p for p in p_values if p is not None]), strict=True):
                differences[name] = replace(differences[name], p_holm=corrected)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = corrected[i] = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
    return corrected


def _interval(values: np.ndarray | None) -> tuple[float | None, float | None]:
    if values is None:
        return None, None
    low, high = np.percentile(values, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)


def _sums(scores: Scores) -> tuple[np.ndarray, list[str]]:
    """What corpus metrics are computed from, a row per image: metrics that are means, then BLEU's counts."""
    means = [name for name in scores.per_image if name not in (*BLEU_NAMES, *NO_MEAN)]
    columns = [scores.per_image[name][:, None] for name in means]
    if scores.bleu_counts is not None:
        columns.append(scores.bleu_counts.astype(np.float64))
    return (np.hstack(columns) if columns else np.zeros((len(scores.image_ids), 0))), means


def _metrics(sums: np.ndarray, means: list[str], n_images: int) -> dict[str, np.ndarray]:
    """Sums over images (resamples, columns) -> metric -> (resamples,)."""
    metrics = {name: sums[:, column] / n_images for column, name in enumerate(means)}
    if sums.shape[1] > len(means):
        metrics |= zip(BLEU_NAMES, bleu_from_counts(sums[:, len(means) :]).T, strict=True)
    return metrics


def _bootstrap(systems: Sequence[Scores], resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Metrics of each system on images drawn with replacement."""
    n_images = len(systems[0].image_ids)
    parts = [_sums(system) for system in systems]
    values = np.hstack([columns for columns, _ in parts])
    rng = np.random.default_rng([seed, 0])
    sums = np.empty((resamples, values.shape[1]))
    block = max(1, BLOCK // n_images)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, n_images, (rows, n_images), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * n_images
        times = np.bincount(drawn.ravel(), minlength=rows * n_images).reshape(rows, n_images)
        sums[start : start + rows] = times.astype(np.float64) @ values
    ends = np.cumsum([columns.shape[1] for columns, _ in parts])[:-1]
    split = np.split(sums, ends, axis=1)
    return [_metrics(part, means, n_images) for part, (_, means) in zip(split, parts, strict=True)]


def _swapped(one: Scores, other: Scores, resamples: int, seed: int) -> dict[str, float]:
    n_images = len(one.image_ids)
    (first, means), (second, _) = _sums(one), _sums(other)
    rng = np.random.default_rng([seed, 1])
    gap = second - first
    block = max(1, BLOCK // n_images)
    exceeded = dict.fromkeys(one.corpus.keys() - set(NO_MEAN), 0)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        moved = rng.integers(0, 2, (rows, n_images), dtype=np.int8).astype(np.float64) @ gap
        ours = _metrics(first.sum(axis=0) + moved, means, n_images)
        theirs = _metrics(second.sum(axis=0) - moved, means, n_images)
        for name in exceeded:
            observed = abs(other.corpus[name] - one.corpus[name])
            exceeded[name] += int((np.abs(theirs[name] - ours[name]) >= observed - 1e-12).sum())
    return {name: (1 + times) / (1 + resamples) for name, times in exceeded.items()}


# ---- human captions ---------------------------------------------------------------------------------------------------------

MOST_ROUNDS = 10  # COCO has images with 7 references


@dataclass(frozen=True)
class HumanBound:
    """Metrics of human captions, and of the captions against the same references.

    Attributes:
        human: metric -> one reference scored against the others, mean of all rounds.
        same: metric -> the captions scored against those others, to compare with: fewer references give lower scores.
        images: how many have at least two references; the others are left out.
        rounds: the largest number of references of an image; an image with fewer repeats them in turn.
    """

    human: dict[str, float]
    same: dict[str, float]
    images: int
    rounds: int


def human_bound(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    idf: Mapping[str, Sequence[str]] | None = None,
) -> HumanBound | None:
    """Leave one out: in each round one reference of every image is scored as its caption, against the others.

    Args:
        hypotheses, references, idf: captions as `tokenized` gives them.

    Returns:
        None if no image has two references.
    """
    several = {i: captions for i, captions in references.items() if len(captions) > 1}
    if not several:
        return None
    rounds = min(MOST_ROUNDS, max(map(len, several.values())))
    people: list[dict[str, float]] = []
    captions: list[dict[str, float]] = []
    for turn in range(rounds):
        out = {i: turn % len(said) for i, said in several.items()}
        others = {i: [c for k, c in enumerate(said) if k != out[i]] for i, said in several.items()}
        prepared = prepare(others, idf, words)
        people.append(prepared.score({i: said[out[i]] for i, said in several.items()}, metrics).corpus)
        captions.append(prepared.score({i: hypotheses[i] for i in several}, metrics).corpus)
    human, same = ({name: float(np.mean([r[name] for r in all_])) for name in all_[0]} for all_ in (people, captions))
    return HumanBound(human, same, len(several), rounds)


def tokenized(corpus: Mapping[str, Sequence[str]], tokenize: Tokenize = ptb_tokenize) -> dict[str, list[str]]:
    """Captions as their words with a space between, for `prepare(..., tokenize=words)`: tokenised only once."""
    lines = tokenize_lines([caption for captions in corpus.values() for caption in captions], tokenize)
    return {i: [" ".join(next(lines)) for _ in captions] for i, captions in corpus.items()}


def words(caption: str) -> list[str]:
    """The words of a caption from `tokenized`; a word may contain a no-break space."""
    return [word for word in caption.split(" ") if word]
