"""What a caption that was drawn from the model is worth: CIDEr-D and BLEU-4 of single captions, fast.

The end of a caption is a word of it, and of the references: else a caption that stops after "with a" gains a word that
fits and loses nothing. So two numbers differ from `toolkit evaluate`: the words, and the document frequencies, which are
those of the training captions. The rest is the arithmetic of `metrics.py`, for some hundred captions of a few images.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.evaluation.metrics import CIDER_SIGMA, bleu_from_counts
from toolkit.evaluation.ngrams import MAX_N
from toolkit.evaluation.ptb import Tokenize, ptb_tokenize
from toolkit.evaluation.tokenizers import PTB, Tokenizer
from toolkit.runtime.files import finishing, unfinished
from toolkit.runtime.hashing import hash_hex

END = "END"  # of a caption, as a word; those of all tokenisers are lower-case
FREQUENCIES = "document_frequencies"  # the folder in a cache
VERSION = 1  # of what is counted; raised when words or n-grams change

Grams = list[Counter[str]]  # for n = 1 to 4: how often each n-gram is in a caption


def words_of(caption: str, tokenize: Tokenize = ptb_tokenize) -> list[str]:
    """A caption's words as CIDEr counts them, without its end: a space within a word parts it, as in pycocoevalcap."""
    return " ".join(tokenize(caption)).split()


def grams_of(words: Sequence[str]) -> Grams:
    """Counts of the n-grams, each as its words with spaces between them.

    >>> grams_of(["a", "dog", "END"])[1]
    Counter({'a dog': 1, 'dog END': 1})
    """
    found: Grams = []
    current = list(words)
    for n in range(1, MAX_N + 1):
        found.append(Counter(current))
        current = [f"{gram} {word}" for gram, word in zip(current, words[n:], strict=False)]
    return found


@dataclass(frozen=True)
class DocumentFrequencies:
    """Of an n-gram, how many images have a caption with it.

    Attributes:
        images: how many there are.
        counts: of the n-grams as in `grams_of`.
    """

    images: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]], tokenize: Tokenize = ptb_tokenize) -> DocumentFrequencies:
        """Counts them in the captions of each image, with their ends."""
        counts: Counter[str] = Counter()
        images = 0
        for images, of_image in enumerate(captions, start=1):  # noqa: B007
            grams: set[str] = set()
            for caption in of_image:
                grams.update(*grams_of([*words_of(caption, tokenize), END]))
            counts.update(grams)
        return cls(images, counts)

    @classmethod
    def kept(
        cls,
        folder: Path,
        captions: Sequence[Sequence[str]],
        tokenizer: Tokenizer = PTB,
        say: Callable[[str], None] = lambda text: None,
    ) -> DocumentFrequencies:
        """The same, read from the file of these very captions in a cache, or counted and written there.

        Args:
            folder: of the cache.
            say: told when the file can't be written; then they are counted again next time.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        key = hash_hex(
            str(VERSION), tokenizer.signature, *(part for of_image in captions for part in ("\0", *of_image))
        )
        path = folder / FREQUENCIES / f"{key}.parquet"
        try:
            table = pq.read_table(path)
            return cls(len(captions), dict(zip(table["ngram"].to_pylist(), table["images"].to_pylist(), strict=True)))
        except (OSError, KeyError, pa.ArrowInvalid):  # none, or not whole
            found = cls.of(captions, tokenizer.words)
        table = pa.table({"ngram": list(found.counts), "images": pa.array(found.counts.values(), pa.int32())})
        try:
            path.parent.mkdir(exist_ok=True)
            with finishing(path, unfinished(path)) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        except OSError as error:
            say(f"note: {path.parent} can't be written ({(error.strerror or str(error)).lower()}); "
                "the n-grams of the training captions are counted again next time")  # fmt: skip
        return found


class Rewards:
    """Rewards of captions of the images of one split.

    Args:
        references: the captions of each image.
        frequencies: of the corpus that rare wordings are told by: the training captions.
        weights: as of `parse_reward`.
        tokenize: as the frequencies' and the samples' words.

    Raises:
        InputError: an image without a caption.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        frequencies: DocumentFrequencies,
        weights: Mapping[str, float],
        tokenize: Tokenize = ptb_tokenize,
    ) -> None:
        if not all(references):
            raise InputError("the training images: some have no caption to be compared with; preprocess them again.")
        self.references, self.weights, self.tokenize = references, dict(weights), tokenize
        # pycocoevalcap: log(images) - log(images with the n-gram); one that no image has counts as in one.
        self._unseen = math.log(frequencies.images)
        self._idf = {gram: self._unseen - math.log(count) for gram, count in frequencies.counts.items()}

    def __call__(self, images: Sequence[int], samples: Sequence[Sequence[list[str]]]) -> np.ndarray:
        """Float64 (images, samples of each): the weighted sum of the metrics, CIDEr from 0 to 10, BLEU-4 from 0 to 1.

        Args:
            images: their numbers in `references`.
            samples: of each image as many captions, as words; `END` is the last one of those that ended.
        """
        of_samples = [[grams_of(words) for words in of_image] for of_image in samples]
        of_references = [
            [grams_of([*words_of(caption, self.tokenize), END]) for caption in self.references[image]]
            for image in images
        ]
        total = np.zeros((len(samples), len(samples[0])))
        for name, weight in self.weights.items():
            metric = self._cider if name == "cider" else _bleu_4
            total += weight * np.array([metric(*pair) for pair in zip(of_samples, of_references, strict=True)])
        return total

    def _cider(self, samples: Sequence[Grams], references: Sequence[Grams]) -> list[float]:
        """CIDEr-D of each of an image's samples (cider_scorer.py of pycocoevalcap)."""
        # Of each n-gram the references that have it, with its tf-idf there: most of a sample's are in none.
        places: dict[str, list[tuple[int, float]]] = defaultdict(list)
        theirs = []
        for i, grams in enumerate(references):
            vectors = [self._vector(order) for order in grams]
            theirs.append([_norm(vector) for vector in vectors])
            for vector in vectors:
                for gram, value in vector.items():
                    places[gram].append((i, value))
        lengths = [_bigrams(grams) for grams in references]
        scores = []
        for grams in samples:
            similarity = [0.0] * len(references)
            for n, order in enumerate(grams):
                vector = self._vector(order)
                norm, matched = _norm(vector), [0.0] * len(references)
                for gram, value in vector.items():
                    for i, other in places.get(gram, ()):
                        matched[i] += min(value, other) * other
                for i, product in enumerate(matched):
                    if product:  # then neither norm is zero
                        similarity[i] += product / (norm * theirs[i][n])
            length = _bigrams(grams)  # which pycocoevalcap measures lengths in
            penalties = (math.exp(-((length - other) ** 2) / (2 * CIDER_SIGMA**2)) for other in lengths)
            score = sum(value * penalty for value, penalty in zip(similarity, penalties, strict=True))
            scores.append(10.0 * score / MAX_N / len(references))
        return scores

    def _vector(self, order: Mapping[str, int]) -> dict[str, float]:
        idf, unseen = self._idf, self._unseen
        return {gram: count * idf.get(gram, unseen) for gram, count in order.items()}


def _norm(vector: Mapping[str, float]) -> float:
    return math.sqrt(sum(value * value for value in vector.values()))


def _bigrams(grams: Grams) -> int:
    return sum(grams[1].values())


def _bleu_4(samples: Sequence[Grams], references: Sequence[Grams]) -> Any:
    """Sentence BLEU-4 of each of an image's samples (bleu_scorer.py of pycocoevalcap): float64 (samples,)."""
    most: Grams = [Counter() for _ in range(MAX_N)]
    for grams in references:
        most = [one | other for one, other in zip(most, grams, strict=True)]
    lengths = [sum(grams[0].values()) for grams in references]
    counts = []
    for grams in samples:
        length = sum(grams[0].values())
        closest = min((abs(length - other), other) for other in lengths)[1]
        found = [
            sum(min(count, known[gram]) for gram, count in order.items())
            for order, known in zip(grams, most, strict=True)
        ]
        counts.append([length, closest, *(max(0, length - n) for n in range(MAX_N)), *found])
    return bleu_from_counts(np.array(counts, dtype=np.int64))[:, MAX_N - 1]
