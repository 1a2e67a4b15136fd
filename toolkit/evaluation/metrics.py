"""Captions against references: BLEU, ROUGE-L and CIDEr as pycocoevalcap computes them, without Java.

References are tokenised once and kept as integer n-grams (`prepare`), so that many sets of captions can be scored
against them: every evaluation of a training run, every model of a comparison. `score` does both steps.
Metrics are fractions (CIDEr: 0 to 10), not multiplied by 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.errors import InputError
from toolkit.evaluation.java import pycocoevalcap_folder, score_with_spice
from toolkit.evaluation.meteor import score_meteor
from toolkit.evaluation.ngrams import MAX_N, HypothesisGrams, Order, grams_of, intern, words_left
from toolkit.evaluation.ptb import Tokenize, ptb_tokenize
from toolkit.evaluation.tokenizers import tokenize_lines
from toolkit.options.evaluate import METRICS

DEFAULT_METRICS = ("bleu", "rouge_l", "cider")
BLEU_NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")

BLEU_SMALL, BLEU_TINY = 1e-9, 1e-15  # bleu_scorer.py: avoids division by zero
ROUGE_BETA = 1.2  # rouge.py: weight of recall
CIDER_SIGMA = 6.0  # cider.py: width in words of the length penalty

Corpus = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Scores:
    """Metrics of one set of captions.

    Attributes:
        image_ids: sorted; `per_image` is aligned to it.
        corpus: metric -> value for the whole corpus. `bleu` gives `bleu_1` to `bleu_4`.
        per_image: the same names -> float64 array of len(image_ids). Its mean is the corpus value, except
            for BLEU (whose counts are summed before dividing) and METEOR.
        bleu_counts: int64 array (len(image_ids), 10): words of the hypothesis, words of the closest reference, n-grams
            in the hypothesis for n = 1 to 4, n-grams found for n = 1 to 4. `bleu_from_counts` of the sum over any
            images is their BLEU. None without `bleu`.
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
    """Tokenise references and count their n-grams, once for any number of `score` calls.

    Args:
        references: image id -> captions, at least one each; an empty caption is allowed and counts as in pycocoevalcap.
        idf: the corpus whose document frequencies CIDEr uses, image id -> captions; None takes `references`.
        tokenize: caption -> words; `str.split` for tokenised captions. The default tokenises like pycocoevalcap, in the
            order of the mapping (see `ptb_tokenize_lines`).

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
        words = tokenize_lines([caption for captions in references.values() for caption in captions], tokenize)
        of_image = {i: [next(words) for _ in captions] for i, captions in references.items()}
        self.tokens = [sentence for i in self.image_ids for sentence in of_image[i]]
        self._per_image = np.array([len(references[i]) for i in self.image_ids], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._per_image)])[:-1]  # first reference of each image

        sentences, images = self.tokens, np.repeat(np.arange(len(self.image_ids)), self._per_image)
        if idf is not None:
            _check_corpus(idf, "the IDF corpus")
            others = tokenize_lines([caption for captions in idf.values() for caption in captions], tokenize)
            sentences = [*self.tokens, *others]
            of_others = np.repeat(np.arange(len(idf)), [len(captions) for captions in idf.values()])
            images = np.concatenate([images, of_others])
        n_documents = len(self.image_ids) if idf is None else len(idf)

        self._words: dict[str, int] = {}
        flat, lengths = intern(sentences, self._words)
        self._lengths = lengths[: len(self.tokens)]
        local = np.arange(len(self.tokens)) - np.repeat(self._first, self._per_image)  # which reference of its image
        self._width = int(self._per_image.max())
        self._orders: list[Order] = []
        previous, sentence = flat, np.repeat(np.arange(len(sentences)), lengths)
        left = words_left(lengths)
        for n in range(1, MAX_N + 1):
            keys, at = grams_of(previous, flat, left, n)
            table, ids = np.unique(keys, return_inverse=True)
            previous = np.zeros(len(flat), dtype=np.int64)
            previous[at] = ids
            owner = sentence[at]
            ours = owner < len(self.tokens)
            composite = (images[owner[ours]] * len(table) + ids[ours]) * self._width + local[owner[ours]]
            entries, counts = np.unique(composite, return_counts=True)
            document = np.unique(images[owner[~ours]] * len(table) + ids[~ours]) if idf is not None else None
            reference = self._first[entries // self._width // max(len(table), 1)] + entries % self._width
            self._orders.append(Order(table, entries // self._width, reference, counts, n_documents, document))

    def score(self, hypotheses: Mapping[str, str], metrics: Sequence[str] = DEFAULT_METRICS) -> Scores:
        """Score one caption per image.

        Args:
            hypotheses: image id -> caption; the ids are those of the references.
            metrics: names from `METRICS`:
                `bleu`: bleu_1 to bleu_4, "closest" reference length (Papineni et al. 2002; bleu_scorer.py).
                `rouge_l`: Lin 2004 with beta 1.2, best precision and best recall over the references (rouge.py).
                `cider`: `Cider` of pycocoevalcap (and coco-caption, hence every published COCO result). Its formula
                    is CIDEr-D: clipped counts, a Gaussian of the length difference with sigma 6, times 10.
                `cider_d`: the same number under its name in Vedantam et al. 2015 (ciderD_scorer.py of vrama91/cider).
                    RL code differs in its tokens (an end token is a word) and its IDF (the train set).
                `cider_plain`: CIDEr of the same paper without clipping and penalty (cider_scorer.py of vrama91/cider),
                    times 10 as there, and without stemming, as there.
                `meteor`: METEOR 1.5 as pycocoevalcap's jar gives it, with the data of pycocoevalcap.
                `spice`: pycocoevalcap's jar, which needs Java.
                `spider`: the mean of an image's `spice` and `cider` (Liu et al. 2017).
                CIDEr of a single image is 0 without `idf`: every n-gram is in every document (coco-caption#9).

        Raises:
            InputError: ids differ from those of the references, nothing to score, or an unknown metric.
            ToolkitError: METEOR or SPICE can't run on this machine.
        """
        _check_metrics(metrics)
        _check_ids(hypotheses, self.image_ids)
        of_image = dict(zip(hypotheses, tokenize_lines(list(hypotheses.values()), self.tokenize), strict=True))
        words = [of_image[i] for i in self.image_ids]
        corpus: dict[str, float] = {}
        per_image: dict[str, np.ndarray] = {}
        ciders: dict[bool, np.ndarray] = {}
        spice: tuple[float, np.ndarray] | None = None
        counts = None
        ngrams = (
            HypothesisGrams(words, self._words, self._orders)
            if any(m.startswith(("bleu", "cider", "spider")) for m in metrics)
            else None
        )

        def cider(plain: bool) -> np.ndarray:
            """Computed once: cider, cider_d and the half of spider are one number."""
            assert ngrams is not None
            if plain not in ciders:
                ciders[plain] = self._cider(ngrams, plain)
            return ciders[plain]

        for metric in dict.fromkeys(metrics):
            if metric == "bleu":
                assert ngrams is not None
                counts = self._bleu_counts(ngrams)
                per_image |= zip(BLEU_NAMES, bleu_from_counts(counts).T, strict=True)
                corpus |= zip(BLEU_NAMES, map(float, bleu_from_counts(counts.sum(axis=0))), strict=True)
                continue
            if metric == "rouge_l":
                per_image[metric] = self._rouge_l(words)
            elif metric in ("meteor", "spice", "spider"):
                ends = zip(self._first, self._first + self._per_image, strict=True)
                references = [self.tokens[first:end] for first, end in ends]
                if metric != "meteor":
                    spice = spice or score_with_spice(references, words)
                    corpus[metric], per_image[metric] = spice
                    if metric == "spider":
                        per_image[metric] = (spice[1] + cider(False)) / 2
                        corpus[metric] = (spice[0] + float(cider(False).mean())) / 2
                else:
                    folder = pycocoevalcap_folder(metric)
                    corpus[metric], per_image[metric] = score_meteor(folder, references, words)
                continue
            else:
                per_image[metric] = cider(metric == "cider_plain")
            corpus[metric] = float(per_image[metric].mean())
        return Scores(self.image_ids, corpus, per_image, counts)

    def vectors(self, words: list[list[str]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Captions as unit tf-idf vectors over the n-grams of each length, as in CIDEr.

        Returns:
            For n = 1 to 4, an entry for each n-gram of each caption, in the order of `words`: caption, n-gram, how often, value.
        """
        found = []
        for order, (row, gram, count) in zip(
            self._orders, HypothesisGrams(words, self._words, self._orders).orders, strict=True
        ):
            value = count * order.weight(gram)
            norm = np.sqrt(np.bincount(row, value**2, len(words)))[row]
            found.append((row, gram, count, np.divide(value, norm, out=np.zeros_like(norm), where=norm != 0)))
        return found

    def _bleu_counts(self, hypotheses: HypothesisGrams) -> np.ndarray:
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

    def _cider(self, hypotheses: HypothesisGrams, plain: bool) -> np.ndarray:
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


def _common(places: dict[str, int], length: int, words: list[str]) -> int:
    """Length of the longest common subsequence, with one bit per word of the first sentence (Hyyrö 2004).

    `places`: word -> bits of its positions in the first sentence, which has `length` words.
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
        raise InputError(f"{what}: contains no images; check the split or the file.")
    empty = [i for i, captions in corpus.items() if not captions or isinstance(captions, str)]
    if empty:
        raise InputError(
            f"{what}: {len(empty)} of {len(corpus)} images have no list of captions, such as {empty[0]!r}."
        )


def _check_metrics(metrics: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise InputError(
            f"metrics: {', '.join(unknown) + ' is unknown' if unknown else 'none given'}; choose from {', '.join(METRICS)}."
        )


def _check_ids(hypotheses: Mapping[str, str], image_ids: list[str]) -> None:
    without = [i for i in hypotheses if i not in set(image_ids)] if hypotheses.keys() != set(image_ids) else []
    missing = [i for i in image_ids if i not in hypotheses]
    if without or missing:
        parts = [
            f"{len(ids)} {text}, such as {ids[0]!r}"
            for ids, text in ((without, "captions have no references"), (missing, "images have no caption"))
            if ids
        ]
        raise InputError(f"hypotheses: {' and '.join(parts)}; score the images that both have.")
