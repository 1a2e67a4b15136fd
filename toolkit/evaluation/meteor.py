"""METEOR 1.5 for English, without Java: the figures of the jar that pycocoevalcap calls with `-l en -norm`.

    caption, references -> normalized words -> matches (exact, stem, synonym, paraphrase) -> alignment -> score

Denkowski & Lavie 2014; written after the published program, cmu-mtlab/meteor. Its synonyms (WordNet), function words and table of
paraphrases are read out of pycocoevalcap's files at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from toolkit.evaluation.meteor_search import Match, best, match
from toolkit.evaluation.meteor_table import JAR, TABLE, Phrase, WordNet, Words, read_paraphrases
from toolkit.evaluation.meteor_words import Normalizer
from toolkit.evaluation.porter2 import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of exact, stem, synonym and paraphrase matches
SHARES = (DELTA, 1 - DELTA)  # of content words and function words
KEPT = 1 << 12  # sentences whose parts are kept

Statistics = list[int]
"""What scores are computed from, 23 numbers in the order of the jar's own line.

Words of the caption and of the reference; function words of both; for each module content words and function words of both that
are matched; chunks; matched words of both.
"""


class Sentence:
    """A caption or reference with all that its matches are found by, looked up once.

    Attributes:
        function: whether each word is a function word, 0 or 1.
        places: word -> its places, a bit each.
        distinct: the different words.
        told: the phrases of the table in it, and where.
        phrases: numbers of the same phrases -> their length and places.
    """

    def __init__(self, words: Words, meteor: Meteor) -> None:
        self.words = words
        self.function = [int(word in meteor.function_words) for word in words]
        self.places: dict[str, int] = {}
        for at, word in enumerate(words):
            self.places[word] = self.places.get(word, 0) | 1 << at
        self.distinct = frozenset(words)
        self.told: list[tuple[int, Phrase]] = []
        self.phrases: dict[int, tuple[int, list[int]]] = {}
        for at in range(len(words)):
            for end in range(at + 1, len(words) + 1):
                if (some := words[at:end]) not in meteor.begun:
                    break
                if (phrase := meteor.paraphrases.get(some)) is not None:
                    self.phrases.setdefault(phrase.number, (phrase.length, []))[1].append(at)
                    if phrase.told:
                        self.told.append((at, phrase))


class Meteor:
    """METEOR for the words of one evaluation, which decide how much of the table of paraphrases is kept in memory.

    Args:
        folder: `meteor` of pycocoevalcap, with meteor-1.5.jar and data/paraphrase-en.gz.
        words: all words that captions and references consist of, normalized.
    """

    def __init__(self, folder: Path, words: set[str]) -> None:
        with ZipFile(folder / JAR) as jar:
            self.function_words = set(jar.read("function/english.words").decode().split("\n"))
            self.wordnet = WordNet(jar)
        self.paraphrases = read_paraphrases(folder / TABLE, words)
        self.begun = {phrase[:end] for phrase in self.paraphrases for end in range(1, len(phrase) + 1)}
        self._by_stem, self._by_synset = dict[str, set[str]](), dict[str, set[str]]()
        for word in words:
            self._by_stem.setdefault(stem(word), set()).add(word)
            for synset in self.wordnet.meanings(word):
                self._by_synset.setdefault(synset, set()).add(word)
        self.sentence = lru_cache(maxsize=KEPT)(self._sentence)
        self.kin = lru_cache(maxsize=None)(self._kin)

    def _kin(self, word: str) -> tuple[frozenset[str], frozenset[str]]:
        """Other words with its stem, and its synonyms, among those of this evaluation."""
        synonyms = set[str]().union(*(self._by_synset.get(synset, ()) for synset in self.wordnet.meanings(word)))
        return frozenset(self._by_stem[stem(word)] - {word}), frozenset(synonyms - {word})

    def _sentence(self, words: Words) -> Sentence:
        return Sentence(words, self)

    def statistics(self, caption: Words, reference: Words) -> Statistics:
        ours, theirs = self.sentence(caption), self.sentence(reference)
        counts = [0] * 16  # module, content or function, caption or reference
        chunks, at, end = 0, 0, -1
        matched, other_matched = 0, 0
        for m in best(self._matches(ours, theirs), len(caption)):
            first = 4 * m.module
            for is_function in ours.function[m.other : m.other_end]:
                counts[first + 2 * is_function] += 1
            for is_function in theirs.function[m.start : m.end]:
                counts[first + 2 * is_function + 1] += 1
            other_matched += m.other_end - m.other
            matched += m.end - m.start
            if m.start != at or m.other != end:
                chunks += 1
            at, end = m.end, m.other_end
        lengths = [len(caption), len(reference), sum(ours.function), sum(theirs.function)]
        return [*lengths, *counts, chunks, other_matched, matched]

    def _matches(self, caption: Sentence, reference: Sentence) -> list[list[Match]]:
        """All matches by their first word in the reference, in the order in which the jar finds them."""
        starts: list[list[Match]] = []
        same = caption.words == reference.words
        for start, word in enumerate(reference.words):
            found = [match(start, 1, other, 1, 0) for other in _bits(caption.places.get(word, 0))]
            if not same:
                for module, kin in enumerate(self.kin(word), 1):
                    if common := kin & caption.distinct:
                        places = sum(caption.places[one] for one in common)
                        found += [match(start, 1, other, 1, module) for other in _bits(places)]
            starts.append(found)
        if not same:
            for start, length, other, other_length in _paraphrased(reference, caption):
                starts[start].append(match(start, length, other, other_length, 3))
            for other, other_length, start, length in _paraphrased(caption, reference):
                starts[start].append(match(start, length, other, other_length, 3))
        return starts


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _paraphrased(said: Sentence, there: Sentence) -> Iterator[tuple[int, int, int, int]]:
    """Phrases that the other sentence says in other words: where, how long; where there, how long."""
    for at, phrase in said.told:
        if common := phrase.told.keys() & there.phrases.keys():
            for _, which in sorted((row, number) for number in common for row in phrase.told[number]):
                length, places = there.phrases[which]
                for place in places:
                    yield at, phrase.length, place, length


def score_of(statistics: Statistics) -> float:
    """METEOR from statistics of one caption, or their sum over a corpus."""
    found = [0.0, 0.0]  # weighted matched words of caption and reference
    for part, share in enumerate(SHARES):
        for module, weight in enumerate(WEIGHTS):
            first = 4 + 4 * module + 2 * part
            found[0] += statistics[first] * weight * share
            found[1] += statistics[first + 1] * weight * share
    if not all(found):  # nothing in common, or an empty sentence
        return 0.0
    precision, recall = (
        found[k] / (DELTA * (statistics[k] - statistics[2 + k]) + (1 - DELTA) * statistics[2 + k]) for k in (0, 1)
    )
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    fragments = 0.0 if _is_whole(statistics) else statistics[20] / ((statistics[21] + statistics[22]) / 2)
    return max(mean * (1 - GAMMA * fragments**BETA), 0.0)


def _is_whole(statistics: Statistics) -> bool:
    """All words matched in one chunk, which is no fragment."""
    return statistics[20] == 1 and statistics[21:] == statistics[:2]


def score_meteor(folder: Path, references: list[list[list[str]]], words: list[list[str]]) -> tuple[float, np.ndarray]:
    """METEOR 1.5: score of the corpus, score per image, that of the reference that fits best.

    Args:
        folder: `meteor` of pycocoevalcap.
        references: words of every reference, by image.
        words: words of one caption per image.
    """
    # pycocoevalcap hands captions over in a line, where ||| divides references and is dropped from the caption.
    with ZipFile(folder / JAR) as jar:
        normalized = Normalizer(jar).words
    captions = [normalized(" ".join(caption).replace("|||", "").replace("  ", " ")) for caption in words]
    said = [[normalized(part) for one in all_ for part in " ".join(one).split("|||")] for all_ in references]
    vocabulary = {word for caption in captions for word in caption}
    vocabulary.update(word for all_ in said for one in all_ for word in one)
    meteor = _loaded(folder, vocabulary)
    per_image = np.zeros(len(captions))
    total = [0] * 23
    for image, (caption, all_) in enumerate(zip(captions, said, strict=True)):
        found = [meteor.statistics(caption, one) for one in all_]
        scores = [score_of(statistics) for statistics in found]
        per_image[image] = max(scores)
        fits = found[scores.index(max(scores))]
        if _is_whole(fits):  # such a chunk is no fragment of the corpus either
            fits[20] = 0
        total = [a + b for a, b in zip(total, fits, strict=True)]
    return score_of(total), per_image


# The one of the last call: the rounds of `--human` bring no new words.
_last: list[tuple[Path, set[str], Meteor]] = []


def _loaded(folder: Path, words: set[str]) -> Meteor:
    if not _last or _last[0][0] != folder or not words <= _last[0][1]:
        _last[:] = [(folder, words, Meteor(folder, words))]
    return _last[0][2]
