"""Captions against references: BLEU, ROUGE-L and CIDEr as pycocoevalcap gives them, without Java; and health figures.

A corpus is cut into words once and kept as integer n-grams (`prepare`), so that many sets of hypotheses are scored
against it quickly: every evaluation of a training run, every model of a comparison. `score` is both steps in one.
All figures are fractions (CIDEr: 0 to 10), not multiplied by 100.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputError, RunError, ToolkitError, is_bug
from toolkit.evaluation.ptb import ptb_tokenize, ptb_tokenize_lines

METRICS = ("bleu", "rouge_l", "cider", "cider_d", "cider_plain", "meteor", "spice")
DEFAULT_METRICS = ("bleu", "rouge_l", "cider")
BLEU_NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")

MAX_N = 4  # n-grams of 1 to 4 words in BLEU and CIDEr (bleu.py, cider.py in pycocoevalcap)
BLEU_SMALL, BLEU_TINY = 1e-9, 1e-15  # bleu_scorer.py: what keeps empty counts from dividing by zero
ROUGE_BETA = 1.2  # rouge.py: weight of recall
CIDER_SIGMA = 6.0  # cider.py: width in words of the length penalty
LOOP_N, LOOP_TIMES = 4, 3  # see `health`
PERCENTILES = (5, 25, 50, 75, 95)

Tokenize = Callable[[str], list[str]]
Corpus = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Scores:
    """Figures of one set of hypotheses.

    Attributes:
        image_ids: what `per_image` is aligned to: the ids of the hypotheses, sorted.
        corpus: metric -> figure of the whole corpus. `bleu` gives `bleu_1` to `bleu_4`.
        per_image: the same names -> float64 array of len(image_ids). The mean of it is the corpus figure, except
            for BLEU (whose counts are summed before dividing) and METEOR.
        bleu_counts: int64 array (len(image_ids), 10): words of the hypothesis, words of the closest reference, n-grams
            in the hypothesis for n = 1 to 4, n-grams found for n = 1 to 4. `bleu_from_counts` of the sum over any
            images is their BLEU, as a bootstrap needs it. None where `bleu` was not asked for.
    """

    image_ids: list[str]
    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]
    bleu_counts: np.ndarray | None = None


def score(
    hypotheses: Mapping[str, str],
    references: Corpus,
    metrics: Sequence[str] = DEFAULT_METRICS,
    idf: Corpus | None = None,
    tokenize: Tokenize = ptb_tokenize,
) -> Scores:
    """Score one caption per image against its references. See `prepare` for the arguments and the errors."""
    return prepare(references, idf, tokenize).score(hypotheses, metrics)


def prepare(references: Corpus, idf: Corpus | None = None, tokenize: Tokenize = ptb_tokenize) -> PreparedReferences:
    """Cut references into words and count their n-grams, once for any number of `score` calls.

    Args:
        references: image id -> captions, at least one each; an empty caption is allowed and counts as in pycocoevalcap.
        idf: the corpus whose document frequencies CIDEr uses, image id -> captions; None takes `references`.
        tokenize: caption -> words; `str.split` for captions that are tokenised already. The default reads a corpus as
            pycocoevalcap does, in the order of the mapping (see `ptb_tokenize_lines`: it hardly ever matters).

    Raises:
        InputError: there are no references, or none for an image.
    """
    return PreparedReferences(references, idf, tokenize)


class PreparedReferences:
    """References as n-gram counts: what `prepare` returns.

    Attributes:
        image_ids: sorted.
        tokens: caption words, one list per reference, images in the order of `image_ids`.
    """

    def __init__(self, references: Corpus, idf: Corpus | None = None, tokenize: Tokenize = ptb_tokenize) -> None:
        _check_corpus(references, "references")
        self.image_ids = sorted(references)
        self.tokenize = tokenize
        words = _tokenize([caption for captions in references.values() for caption in captions], tokenize)
        of_image = {i: [next(words) for _ in captions] for i, captions in references.items()}
        self.tokens = [sentence for i in self.image_ids for sentence in of_image[i]]
        self._per_image = np.array([len(references[i]) for i in self.image_ids], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._per_image)])[:-1]  # first reference of each image

        sentences, images = self.tokens, np.repeat(np.arange(len(self.image_ids)), self._per_image)
        if idf is not None:
            _check_corpus(idf, "the IDF corpus")
            others = _tokenize([caption for captions in idf.values() for caption in captions], tokenize)
            sentences = [*self.tokens, *others]
            of_others = np.repeat(np.arange(len(idf)), [len(captions) for captions in idf.values()])
            images = np.concatenate([images, of_others])
        n_documents = len(self.image_ids) if idf is None else len(idf)

        self._words: dict[str, int] = {}
        flat, lengths = _intern(sentences, self._words)
        self._lengths = lengths[: len(self.tokens)]
        local = np.arange(len(self.tokens)) - np.repeat(self._first, self._per_image)  # which reference of its image
        self._width = int(self._per_image.max())
        self._orders: list[_Order] = []
        previous, sentence = flat, np.repeat(np.arange(len(sentences)), lengths)
        left = _words_left(lengths)
        for n in range(1, MAX_N + 1):
            keys, at = _grams(previous, flat, left, n)
            table, ids = np.unique(keys, return_inverse=True)
            previous = np.zeros(len(flat), dtype=np.int64)
            previous[at] = ids
            owner = sentence[at]
            ours = owner < len(self.tokens)
            composite = (images[owner[ours]] * len(table) + ids[ours]) * self._width + local[owner[ours]]
            entries, counts = np.unique(composite, return_counts=True)
            document = np.unique(images[owner[~ours]] * len(table) + ids[~ours]) if idf is not None else None
            reference = self._first[entries // self._width // max(len(table), 1)] + entries % self._width
            self._orders.append(_Order(table, entries // self._width, reference, counts, n_documents, document))

    def score(self, hypotheses: Mapping[str, str], metrics: Sequence[str] = DEFAULT_METRICS) -> Scores:
        """Score one caption per image.

        Args:
            hypotheses: image id -> caption; the ids are those of the references.
            metrics: names from `METRICS`:
                `bleu`: bleu_1 to bleu_4, "closest" reference length (Papineni et al. 2002; bleu_scorer.py).
                `rouge_l`: Lin 2004 with beta 1.2, best precision and best recall over the references (rouge.py).
                `cider`: what pycocoevalcap's `Cider` (and coco-caption, hence every published COCO figure) gives. Its
                    formula is CIDEr-D: clipped counts, a Gaussian of the length difference with sigma 6, times 10.
                `cider_d`: CIDEr-D of Vedantam et al. 2015 (ciderD_scorer.py of vrama91/cider): the same number.
                    RL code differs from it by its tokens (an end token is a word) and its IDF (the train set).
                `cider_plain`: CIDEr of the same paper without clipping and penalty (cider_scorer.py of vrama91/cider),
                    times 10 as there, and without stemming, as there.
                `meteor`, `spice`: pycocoevalcap's jars, where it and Java are installed.
                CIDEr of a single image is 0 without `idf`: every n-gram is in every document (coco-caption#9).

        Raises:
            InputError: ids differ from those of the references, nothing to score, or an unknown metric.
            ToolkitError: METEOR or SPICE was asked for and can't run here.
        """
        _check_metrics(metrics)
        _check_ids(hypotheses, self.image_ids)
        of_image = dict(zip(hypotheses, _tokenize(list(hypotheses.values()), self.tokenize), strict=True))
        words = [of_image[i] for i in self.image_ids]
        corpus: dict[str, float] = {}
        per_image: dict[str, np.ndarray] = {}
        counts = None
        ngrams = _HypothesisGrams(words, self) if any(m.startswith(("bleu", "cider")) for m in metrics) else None
        for metric in dict.fromkeys(metrics):
            if metric == "bleu":
                assert ngrams is not None
                counts = self._bleu_counts(ngrams)
                per_image |= zip(BLEU_NAMES, bleu_from_counts(counts).T, strict=True)
                corpus |= zip(BLEU_NAMES, map(float, bleu_from_counts(counts.sum(axis=0))), strict=True)
                continue
            if metric == "rouge_l":
                per_image[metric] = self._rouge_l(words)
            elif metric in ("meteor", "spice"):
                corpus[metric], per_image[metric] = _with_java(metric, self, words)
                continue
            else:
                assert ngrams is not None
                per_image[metric] = self._cider(ngrams, plain=metric == "cider_plain")
            corpus[metric] = float(per_image[metric].mean())
        return Scores(self.image_ids, corpus, per_image, counts)

    def _bleu_counts(self, hypotheses: _HypothesisGrams) -> np.ndarray:
        n_images = len(self.image_ids)
        lengths = hypotheses.lengths
        # closest reference length, the shorter of two equally close (bleu_scorer.py: min of (distance, length))
        big = int(max(lengths.max(), self._lengths.max(initial=0))) + 1
        distance = np.abs(self._lengths - np.repeat(lengths, self._per_image))
        closest = np.minimum.reduceat(distance * big + self._lengths, self._first) % big
        columns = [lengths, closest, *(np.maximum(0, lengths - n) for n in range(MAX_N))]
        for order, (image, gram, count) in zip(self._orders, hypotheses.orders, strict=True):
            found = np.minimum(count, order.most(image, gram))
            columns.append(np.bincount(image, found, n_images).astype(np.int64))
        return np.stack(columns, axis=1)

    def _cider(self, hypotheses: _HypothesisGrams, plain: bool) -> np.ndarray:
        n_images = len(self.image_ids)
        similarity = np.zeros(len(self.tokens))
        for order, (image, gram, count) in zip(self._orders, hypotheses.orders, strict=True):
            weight = order.weight(gram)
            norm = np.sqrt(np.bincount(image, (count * weight) ** 2, n_images))
            which, reference, times = order.matches(image, gram)
            matched = count[which] if plain else np.minimum(count[which], times)
            value = np.bincount(reference, matched * times * weight[which] ** 2, len(self.tokens)).astype(np.float64)
            norms = np.repeat(norm, self._per_image) * order.norms(len(self.tokens))
            similarity += np.divide(value, norms, out=value, where=norms != 0)
        if not plain:  # cider_scorer.py measures lengths in bigrams
            ours, theirs = np.maximum(hypotheses.lengths - 1, 0), np.maximum(self._lengths - 1, 0)
            delta = np.repeat(ours, self._per_image) - theirs
            similarity *= np.exp(-(delta.astype(np.float64) ** 2) / (2 * CIDER_SIGMA**2))
        return np.add.reduceat(similarity, self._first) / MAX_N / self._per_image * 10.0

    def _rouge_l(self, words: list[list[str]]) -> np.ndarray:
        scores = np.empty(len(words))
        weight = ROUGE_BETA**2
        references = iter(self.tokens)
        for i, (hypothesis, n_references) in enumerate(zip(words, self._per_image.tolist(), strict=True)):
            hypothesis = hypothesis or [""]  # rouge.py splits at spaces: an empty caption is one empty word
            places: dict[str, int] = {}
            for position, word in enumerate(hypothesis):
                places[word] = places.get(word, 0) | 1 << position
            precision = recall = 0.0
            for _ in range(n_references):
                reference = next(references) or [""]
                common = _common(places, len(hypothesis), reference)
                precision = max(precision, common / len(hypothesis))
                recall = max(recall, common / len(reference))
            both = precision and recall
            scores[i] = (1 + weight) * precision * recall / (recall + weight * precision) if both else 0.0
        return scores


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 from counts as in `Scores.bleu_counts`: (..., 10) -> (..., 4) (bleu_scorer.py)."""
    words, closest, guessed, found = counts[..., 0], counts[..., 1], counts[..., 2:6], counts[..., 6:10]
    precision = np.cumprod((found + BLEU_TINY) / (guessed + BLEU_SMALL), axis=-1)
    ratio = (words + BLEU_TINY) / (closest + BLEU_SMALL)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return precision ** (1 / np.arange(1, MAX_N + 1)) * brevity[..., None]


class _Order:
    """The n-grams of the references for one n.

    Attributes:
        table: sorted n-gram keys; the place of a key is the id of the n-gram.
    """

    def __init__(
        self,
        table: np.ndarray,
        keys: np.ndarray,
        reference: np.ndarray,
        counts: np.ndarray,
        n_documents: int,
        document: np.ndarray | None,
    ) -> None:
        self.table = table
        self._keys = keys  # image * len(table) + n-gram, sorted, once per reference that has the n-gram
        self._reference = reference.astype(np.int32)
        self._counts = counts.astype(np.int32)
        size = max(len(table), 1)
        if document is None:  # once per image
            document = keys[np.diff(keys, prepend=-1) != 0]
        frequency = np.bincount(document % size, minlength=size)
        self._unseen = float(np.log(n_documents))
        self._weights = self._unseen - np.log(np.maximum(frequency, 1))

    def norms(self, n_references: int) -> np.ndarray:
        """Per reference, the length of its tf-idf vector."""
        squares = (self._counts * self._weights[self._keys % max(len(self.table), 1)]) ** 2
        return np.sqrt(np.bincount(self._reference, squares, n_references))

    def weight(self, gram: np.ndarray) -> np.ndarray:
        """tf-idf's idf: log of documents / documents with the n-gram, an unseen one counting as in one."""
        known = gram < len(self.table)
        return np.where(known, self._weights[np.where(known, gram, 0)], self._unseen)

    def _range(self, image: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = np.where(gram < len(self.table), image * len(self.table) + gram, -1)
        low = np.searchsorted(self._keys, key, "left")
        return low, np.searchsorted(self._keys, key, "right") - low

    def most(self, image: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """How often the n-gram is in the reference of the image that has it most often."""
        which, _, times = self.matches(image, gram)
        most = np.zeros(len(gram), dtype=np.int64)
        np.maximum.at(most, which, times)
        return most

    def matches(self, image: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every reference of the image with the n-gram: place in the arguments, reference, times in it."""
        low, n = self._range(image, gram)
        which = np.repeat(np.arange(len(gram)), n)
        entry = np.arange(len(which)) + np.repeat(low - np.cumsum(n) + n, n)
        return which, self._reference[entry], self._counts[entry]


class _HypothesisGrams:
    """N-gram counts of hypotheses, in the ids of the references; n-grams that no reference has get higher ids.

    Attributes:
        lengths: words of each hypothesis.
        orders: for n = 1 to 4: image, n-gram, count.
    """

    def __init__(self, words: list[list[str]], references: PreparedReferences) -> None:
        flat, self.lengths = _intern(words, dict(references._words))
        self.orders: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        image = np.repeat(np.arange(len(words)), self.lengths)
        left = _words_left(self.lengths)
        previous = flat
        for n, order in enumerate(references._orders, start=1):
            keys, at = _grams(previous, flat, left, n)
            table = order.table
            place = np.searchsorted(table, keys)
            known = table[np.minimum(place, len(table) - 1)] == keys if len(table) else np.zeros(len(keys), dtype=bool)
            ids = place
            ids[~known] = len(table) + np.unique(keys[~known], return_inverse=True)[1]
            previous = np.zeros(len(flat), dtype=np.int64)
            previous[at] = ids
            size = int(ids.max(initial=0)) + 1
            entries, counts = np.unique(image[at] * size + ids, return_counts=True)
            self.orders.append((entries // size, entries % size, counts))


def _tokenize(captions: list[str], tokenize: Tokenize) -> Iterator[list[str]]:
    """Words of a corpus; by default exactly as pycocoevalcap reads it, so in the order of the caller's mapping."""
    return iter(ptb_tokenize_lines(captions)) if tokenize is ptb_tokenize else map(tokenize, captions)


def _intern(sentences: list[list[str]], words: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """All words as ids in one row, and words per sentence. `words` grows by what is new.

    A token that holds a space of some kind counts as several words here, as in pycocoevalcap's `split()`.
    """
    if any(len(word.split()) != 1 for word in set(chain.from_iterable(sentences)) if word not in words):
        sentences = [" ".join(sentence).split() for sentence in sentences]
    lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
    for word in chain.from_iterable(sentences):
        if word not in words:
            words[word] = len(words)
    flat = np.fromiter(map(words.__getitem__, chain.from_iterable(sentences)), dtype=np.int64, count=lengths.sum())
    return flat, lengths


def _words_left(lengths: np.ndarray) -> np.ndarray:
    """For every word of the row, how many its sentence has from there on: [2, 3] -> [2, 1, 3, 2, 1]."""
    return np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())


def _grams(previous: np.ndarray, flat: np.ndarray, left: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of all n-grams and where in the row they start; `previous` has the (n-1)-gram ids at their starts."""
    if n == 1:
        return flat, np.arange(len(flat))
    at = np.flatnonzero(left >= n)
    return previous[at] << 31 | flat[at + n - 1], at


def _common(places: dict[str, int], length: int, words: list[str]) -> int:
    """Length of the longest common subsequence, a bit per word of the one sentence (Hyyrö 2004).

    `places`: word -> bits of its positions in that sentence of `length` words.
    """
    full = (1 << length) - 1
    row = full
    for word in words:
        if word in places:
            hit = row & places[word]
            row = (row + hit | row - hit) & full
    return length - row.bit_count()


def _check_corpus(corpus: Corpus, what: str) -> None:
    if not corpus:
        raise InputError(f"{what}: there are no images in it; check the split or the file that it was read from.")
    empty = [i for i, captions in corpus.items() if not captions or isinstance(captions, str)]
    if empty:
        raise InputError(
            f"{what}: {len(empty)} of {len(corpus)} images have no list of captions, such as {empty[0]!r}."
        )


def _check_metrics(metrics: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise InputError(f"metrics: {', '.join(unknown) or 'none given'}; choose from {', '.join(METRICS)}.")


def _check_ids(hypotheses: Mapping[str, str], image_ids: list[str]) -> None:
    without = [i for i in hypotheses if i not in set(image_ids)] if hypotheses.keys() != set(image_ids) else []
    missing = [i for i in image_ids if i not in hypotheses]
    if without or missing:
        parts = [
            f"{len(ids)} {text}, such as {ids[0]!r}"
            for ids, text in ((without, "captions have no references"), (missing, "images have no caption"))
            if ids
        ]
        raise InputError(f"hypotheses: {' and '.join(parts)}; score the images that both sides have.")


def _with_java(metric: str, references: PreparedReferences, words: list[list[str]]) -> tuple[float, np.ndarray]:
    """METEOR 1.5 or SPICE through pycocoevalcap's jars: corpus figure and figure per image."""
    name = metric.upper()
    if shutil.which("java") is None:
        raise ToolkitError(f"--metrics {metric}: {name} needs Java; install a JRE (8 or newer) or leave {metric} out.")
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ToolkitError(f"--metrics {metric}: {name} needs pycocoevalcap; pip install pycocoevalcap.")
    folder = Path(next(iter(spec.submodule_search_locations))) / metric
    if " " in str(folder):
        raise ToolkitError(
            f"--metrics {metric}: {folder} has a space in it, which {name} can't read; move Python's environment."
        )
    tokens = iter(references.tokens)
    ids = range(len(words))
    gts = {
        i: [" ".join(next(tokens)) for _ in range(n)] for i, n in zip(ids, references._per_image.tolist(), strict=True)
    }
    res = {i: [" ".join(sentence)] for i, sentence in enumerate(words)}
    try:
        if metric == "meteor":
            from pycocoevalcap.meteor.meteor import Meteor

            corpus, per_image = Meteor().compute_score(gts, res)
        else:
            from pycocoevalcap.spice.spice import Spice

            with contextlib.redirect_stdout(sys.stderr):  # it talks
                corpus, parts = Spice().compute_score(gts, res)
            per_image = [part["All"]["f"] for part in parts]
    except Exception as error:
        if is_bug(error):
            raise
        once = " where there is a network, for it fetches Stanford CoreNLP the first time," if metric == "spice" else ""
        raise RunError(
            f"--metrics {metric}: {name} could not run ({type(error).__name__}: {error}); try it{once or ' again,'} or leave "
            f"{metric} out."
        ) from error
    return float(corpus), np.array(per_image, dtype=np.float64)


def health(
    captions: Sequence[str],
    ended: Sequence[bool] | None = None,
    train_captions: Iterable[str] | None = None,
    tokenize: Tokenize = ptb_tokenize,
) -> dict[str, Any]:
    """What a score hides: captions that do not stop, loop, or are all alike. Words are those of `tokenize`.

    A caption loops where some 4 words occur in this order at least 3 times in it (overlaps count). COCO's references
    hardly ever do; a captioner that never learnt to stop does. Three times, because a twice-told phrase can be meant
    ("a man in a red shirt and a man in a red shirt"), and 4 words, because shorter ones ("a man in") can.

    Args:
        ended: per caption, whether generation ended by itself (EOS) and not at the length limit.
        train_captions: what the captioner saw in training.

    Returns:
        `captions`: how many.
        `ended`: share of them, 0 to 1; None if not given.
        `loops`: share that loops.
        `distinct`: distinct captions (as words) per caption.
        `empty`: share without a word.
        `length`: words a caption: mean, min, max, p5, p25, p50, p75, p95.
        `vocabulary`: distinct words used.
        `novel`: share that is not a train caption (as words); None without `train_captions`.

    Raises:
        InputError: no captions, or `ended` has another length.
    """
    if not captions:
        raise InputError("captions: there are none, so there is nothing to look at.")
    if ended is not None and len(ended) != len(captions):
        raise InputError(f"ended: {len(ended)} entries for {len(captions)} captions; one each is needed.")
    words = [tuple(tokenize(caption)) for caption in captions]
    lengths = np.array([len(sentence) for sentence in words])
    seen = None if train_captions is None else {tuple(tokenize(caption)) for caption in train_captions}
    percentiles = np.percentile(lengths, PERCENTILES)
    return {
        "captions": len(captions),
        "ended": None if ended is None else float(np.mean(np.asarray(ended, dtype=bool))),
        "loops": sum(map(_loops, words)) / len(words),
        "distinct": len(set(words)) / len(words),
        "empty": float((lengths == 0).mean()),
        "length": {
            "mean": float(lengths.mean()),
            "min": int(lengths.min()),
            "max": int(lengths.max()),
            **{f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
        },
        "vocabulary": len(set(chain.from_iterable(words))),
        "novel": None if seen is None else sum(sentence not in seen for sentence in words) / len(words),
    }


def _loops(words: tuple[str, ...]) -> bool:
    grams = Counter(zip(*(words[n:] for n in range(LOOP_N)), strict=False))
    return max(grams.values(), default=0) >= LOOP_TIMES
