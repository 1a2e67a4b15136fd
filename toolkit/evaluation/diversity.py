"""How different several captions of one image are: distinct-n and self-CIDEr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.evaluation.metrics import PreparedReferences, prepare
from toolkit.evaluation.tokenizers import Tokenizer, tokenize_lines


@dataclass(frozen=True)
class Diversity:
    """Means over the images that have several captions; all but the first two are from 0 to 1.

    Attributes:
        images: how many have several.
        captions: of each of them. More captions give lower `distinct_1` and `distinct_2`.
        distinct_1, distinct_2: different words and pairs of words of an image's captions, by how many there are (Li et
            al. 2016, "A diversity-promoting objective function"; Div-n of Shetty et al. 2017).
        self_cider: 0 if an image's captions are all the same, 1 if they share no word (Wang & Chan 2019, "Describing like
            humans").
    """

    images: int
    captions: float
    distinct_1: float
    distinct_2: float
    self_cider: float

    def sentence(self) -> str:
        return (
            f"{self.captions:.3g} captions of each of {self.images:,} images: distinct-1 {self.distinct_1:.3f}, "
            f"distinct-2 {self.distinct_2:.3f}, self-CIDEr {self.self_cider:.3f}"
        )


def diversity(
    corpus: Mapping[str, Sequence[str]], references: PreparedReferences, tokenizer: Tokenizer
) -> Diversity | None:
    """Diversity of captions, image id -> captions; None if no image has several.

    self-CIDEr of m captions is -log_m(s_1 / sum of all s), where s are the singular values of their tf-idf vectors: square
    roots of the eigenvalues of the matrix of CIDEr between them. That CIDEr is the plain one, without clipping and length
    penalty, which would not be symmetric; its word weights are those of the references.
    """
    several = [captions for captions in corpus.values() if len(captions) > 1]
    if not several:
        return None
    counts = np.array([len(captions) for captions in several])
    words = list(tokenize_lines([caption for captions in several for caption in captions], tokenizer.words))
    grams = references.vectors(words)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    distinct = [_distinct(row, gram, times, counts) for row, gram, times, _ in grams[:2]]
    bounds = [np.searchsorted(row, firsts) for row, _, _, _ in grams]
    selfs = np.empty(len(several))
    for i, number in enumerate(counts):
        kernel = np.zeros((number, number))
        for (row, gram, _, value), bound in zip(grams, bounds, strict=True):
            part = slice(bound[i], bound[i + 1])
            names, column = np.unique(gram[part], return_inverse=True)
            vectors = np.zeros((number, len(names)))
            vectors[row[part] - firsts[i], column] = value[part]
            kernel += vectors @ vectors.T
        selfs[i] = _self_cider(kernel / len(grams))
    return Diversity(len(several), float(counts.mean()), distinct[0], distinct[1], float(selfs.mean()))


def own_words(
    several: Sequence[Mapping[str, Sequence[str]]], captions: Mapping[str, str], tokenizer: Tokenizer
) -> PreparedReferences:
    """Word weights for self-CIDEr where there are no references, by the captions: all that the systems say of an image."""
    corpus = {image_id: [caption] for image_id, caption in captions.items()}
    for system in several:
        for image_id, said in system.items():
            corpus[image_id] += said
    return prepare(corpus, tokenize=tokenizer.words)


def _distinct(row: np.ndarray, gram: np.ndarray, times: np.ndarray, counts: np.ndarray) -> float:
    """Different n-grams of an image by all of its n-grams, mean over images; 0 for an image without one."""
    image = np.repeat(np.arange(len(counts)), counts)[row]
    size = int(gram.max(initial=0)) + 1
    different = np.bincount(np.unique(image * size + gram) // size, minlength=len(counts))
    return float((different / np.maximum(np.bincount(image, times, len(counts)), 1)).mean())


def _self_cider(kernel: np.ndarray) -> float:
    """From the cosines between the captions of an image: (m, m) -> 0 to 1."""
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 1e-12, None))  # below it is rounding
    return float(-np.log(singular[-1] / singular.sum()) / np.log(len(singular))) if kernel.any() else 0.0
