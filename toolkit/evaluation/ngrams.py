"""N-grams as integers: counts of references and of captions in arrays, for BLEU and CIDEr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

MAX_N = 4  # n-grams of 1 to 4 words in BLEU and CIDEr (bleu.py, cider.py in pycocoevalcap)


class Order:
    """The n-grams of the references for one n, with counts per reference and document frequencies.

    Attributes:
        table: sorted n-gram keys; the index of a key is the id of the n-gram.
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
        """Inverse document frequency: log(documents / documents with the n-gram); an unseen n-gram counts as in one."""
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
        """Every reference of the image with the n-gram: index into the arguments, reference, count in it."""
        low, n = self._range(image, gram)
        which = np.repeat(np.arange(len(gram)), n)
        entry = np.arange(len(which)) + np.repeat(low - np.cumsum(n) + n, n)
        return which, self._reference[entry], self._counts[entry]


class HypothesisGrams:
    """N-gram counts of hypotheses, in the ids of the references; n-grams that no reference has get higher ids.

    Attributes:
        lengths: words of each hypothesis.
        orders: for n = 1 to 4: image, n-gram, count.
    """

    def __init__(self, words: list[list[str]], vocabulary: Mapping[str, int], references: Sequence[Order]) -> None:
        flat, self.lengths = intern(words, dict(vocabulary))
        self.orders: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        image = np.repeat(np.arange(len(words)), self.lengths)
        left = words_left(self.lengths)
        previous = flat
        for n, order in enumerate(references, start=1):
            keys, at = grams_of(previous, flat, left, n)
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


def intern(sentences: list[list[str]], words: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """All words as ids in one array, and the number of words per sentence. New words are added to `words`.

    A token that contains a space of some kind counts as several words here, as in pycocoevalcap's `split()`.
    """
    if any(len(word.split()) != 1 for word in set(chain.from_iterable(sentences)) if word not in words):
        sentences = [" ".join(sentence).split() for sentence in sentences]
    lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
    for word in chain.from_iterable(sentences):
        if word not in words:
            words[word] = len(words)
    flat = np.fromiter(map(words.__getitem__, chain.from_iterable(sentences)), dtype=np.int64, count=lengths.sum())
    return flat, lengths


def words_left(lengths: np.ndarray) -> np.ndarray:
    """For every word of the array, how many words its sentence has from it on: [2, 3] -> [2, 1, 3, 2, 1]."""
    return np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())


def grams_of(previous: np.ndarray, flat: np.ndarray, left: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of all n-grams and their starts in the array; `previous` has the ids of the (n-1)-grams at their starts."""
    if n == 1:
        return flat, np.arange(len(flat))
    at = np.flatnonzero(left >= n)
    return previous[at] << 31 | flat[at + n - 1], at
