"""METEOR 1.5 for English, without Java: the figures of the jar that pycocoevalcap calls with `-l en -norm`.

    caption, references -> normalized words -> matches (exact, stem, synonym, paraphrase) -> alignment -> score

Denkowski & Lavie 2014; written after the published program, cmu-mtlab/meteor. Its synonyms (WordNet), function words and table of
paraphrases are read out of pycocoevalcap's files at run time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from toolkit.evaluation.meteor_words import Normalizer
from toolkit.evaluation.porter2 import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of exact, stem, synonym and paraphrase matches in the score
SEARCHED = (1.0, 0.5, 0.5, 0.5)  # the same in the search
BEAM = 40
JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
LONGEST = 7  # words of a paraphrase
CHUNK = 1 << 24
SUFFIXES = (  # WordNet's rules of detachment
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip

Words = tuple[str, ...]
Paraphrases = dict[Words, dict[Words, list[int]]]  # phrase -> what it may be called -> its places in the table


@dataclass(frozen=True, slots=True)
class Match:
    """Words of the reference, from `start`, that are those of the caption from `other`."""

    start: int
    length: int
    other: int
    other_length: int
    module: int
    mask: int  # of the reference's words, a bit each
    other_mask: int


@dataclass(slots=True)
class Route:
    """An alignment of the reference's first words."""

    matches: list[Match | None]
    used: int
    other_used: int
    covered: int = 0
    other_covered: int = 0
    chunks: int = 0
    at: int = 0
    end: int = -1  # behind the last match in the caption; -1 outside of a chunk
    distance: int = 0

    def key(self) -> tuple[int, int, int]:
        """Most words covered, then fewest chunks, then the shortest distance."""
        return -(self.covered + self.other_covered), self.chunks, self.distance

    def copy(self) -> Route:
        return Route(self.matches.copy(), self.used, self.other_used, self.covered, self.other_covered, self.chunks,
                     self.at, self.end, self.distance)  # fmt: skip

    def take(self, match: Match) -> None:
        weight = SEARCHED[match.module]
        # Whole numbers, as in the original: a single word that is not matched exactly counts nothing here.
        self.covered = int(self.covered + match.length * weight)
        self.other_covered = int(self.other_covered + match.other_length * weight)
        if self.end not in (-1, match.other):
            self.chunks += 1
        self.at, self.end = match.start + match.length, match.other + match.other_length


class Meteor:
    """METEOR for the words of one evaluation, which decide how much of the table of paraphrases is kept in memory.

    Args:
        folder: `meteor` of pycocoevalcap, with meteor-1.5.jar and data/paraphrase-en.gz.
        words: all words that captions and references consist of, normalized.
    """

    def __init__(self, folder: Path, words: set[str]) -> None:
        with ZipFile(folder / JAR) as jar:
            self.function_words = set(jar.read("function/english.words").decode().split("\n"))
            self._synsets, self._bases = _wordnet(jar)
        self.paraphrases = _read_paraphrases(folder / TABLE, words)
        self.related = lru_cache(maxsize=1 << 20)(self._related)
        self.meanings = lru_cache(maxsize=1 << 16)(self._meanings)

    def _meanings(self, word: str) -> frozenset[str]:
        """WordNet's synsets of a word and of its base forms."""
        bases = self._bases.get(word)
        found = set(self._synsets.get(word, "").split())
        for base in [self._base(word)] if bases is None else bases:
            found.update(self._synsets.get(base, "").split())
        return frozenset(found)

    def _base(self, word: str) -> str:
        if word.endswith("ss") or len(word) <= 2:
            return word
        for suffix, instead in SUFFIXES:
            if word.endswith(suffix) and word[: len(word) - len(suffix)] + instead in self._synsets:
                return word[: len(word) - len(suffix)] + instead
        return ""

    def _related(self, one: str, other: str) -> tuple[bool, bool, bool]:
        """Whether two words match exactly, by their stems, and as synonyms."""
        if one == other:
            return True, False, False
        return False, stem(one) == stem(other), not self.meanings(one).isdisjoint(self.meanings(other))

    def statistics(self, caption: Words, reference: Words) -> np.ndarray:
        """What scores are computed from: (23,), in the order of the jar's own line.

        Words of the caption and of the reference; function words of both; for each module content words and function words
        of both that are matched; chunks; matched words of both.
        """
        aligned = [m for m in self._aligned(caption, reference) if m is not None]
        function = (
            [word in self.function_words for word in caption],
            [word in self.function_words for word in reference],
        )
        counts = np.zeros((4, 2, 2))  # module, content or function, caption or reference
        chunks, at, end = 0, 0, -1
        for match in aligned:
            for k in range(match.other, match.other + match.other_length):
                counts[match.module, int(function[0][k]), 0] += 1
            for k in range(match.start, match.start + match.length):
                counts[match.module, int(function[1][k]), 1] += 1
            if match.start != at or match.other != end:
                chunks += 1
            at, end = match.start + match.length, match.other + match.other_length
        lengths = [len(caption), len(reference), sum(function[0]), sum(function[1])]
        return np.array([*lengths, *counts.ravel(), chunks, *counts.sum(axis=(0, 1))], dtype=np.float64)

    def _aligned(self, caption: Words, reference: Words) -> list[Match | None]:
        starts = self._matches(caption, reference)
        times = [0] * len(reference), [0] * len(caption)
        for matches in starts:
            for m in matches:
                for k in range(m.start, m.start + m.length):
                    times[0][k] += 1
                for k in range(m.other, m.other + m.other_length):
                    times[1][k] += 1
        first = Route([None] * len(reference), 0, 0)
        for start, matches in enumerate(starts):  # what overlaps nothing is certain
            if len(matches) == 1:
                m = matches[0]
                alone = all(times[0][k] == 1 for k in range(start, start + m.length))
                if alone and all(times[1][k] == 1 for k in range(m.other, m.other + m.other_length)):
                    first.matches[start] = m
                    first.used |= m.mask
                    first.other_used |= m.other_mask
        return _best(starts, first).matches

    def _matches(self, caption: Words, reference: Words) -> list[list[Match]]:
        """All matches by their first word in the reference, in the order in which the jar finds them."""
        starts: list[list[Match]] = [[] for _ in reference]
        pairs = [[self.related(word, said) for word in caption] for said in reference]
        for module in range(1 if caption == reference else 3):
            for start, row in enumerate(pairs):
                for other, found in enumerate(row):
                    if found[module]:
                        starts[start].append(Match(start, 1, other, 1, module, 1 << start, 1 << other))
        if caption == reference:
            return starts
        ours, theirs = _phrases(caption), _phrases(reference)
        for start, length, other, other_length in self._paraphrased(reference, ours):
            starts[start].append(_phrase_match(start, length, other, other_length))
        for other, other_length, start, length in self._paraphrased(caption, theirs):
            starts[start].append(_phrase_match(start, length, other, other_length))
        return starts

    def _paraphrased(self, words: Words, there: dict[Words, list[int]]) -> Iterator[tuple[int, int, int, int]]:
        """Phrases of `words` that the other sentence says in other words: where, how long; where there, how long."""
        for at in range(len(words)):
            for length in range(1, min(LONGEST, len(words) - at) + 1):
                told = self.paraphrases.get(words[at : at + length])
                if told:
                    few, many = (told, there) if len(told) < len(there) else (there, told)
                    found = sorted((row, phrase) for phrase in few if phrase in many for row in told[phrase])
                    for _, phrase in found:
                        for place in there[phrase]:
                            yield at, length, place, len(phrase)


def _phrase_match(start: int, length: int, other: int, other_length: int) -> Match:
    masks = ((1 << length) - 1) << start, ((1 << other_length) - 1) << other
    return Match(start, length, other, other_length, 3, *masks)


def _phrases(words: Words) -> dict[Words, list[int]]:
    found: dict[Words, list[int]] = {}
    for length in range(1, LONGEST + 1):
        for at in range(len(words) - length + 1):
            found.setdefault(words[at : at + length], []).append(at)
    return found


def _best(starts: list[list[Match]], first: Route) -> Route:
    """The jar's beam search from left to right, with all that it does to distances."""
    following = [first]
    for current in range(len(starts) + 1):
        paths, following = sorted(following, key=Route.key), []
        for path in paths[:BEAM]:
            if current == len(starts):
                path.chunks += path.end != -1
                following.append(path)
            elif path.used >> current & 1:
                if current < path.at:
                    following.append(path)
                elif (certain := path.matches[path.at]) is not None:
                    path.take(certain)
                    path.distance += abs(certain.start - certain.other)
                    following.append(path)
            else:
                for match in starts[current]:
                    if not (path.used & match.mask or path.other_used & match.other_mask):
                        new = path.copy()
                        new.used |= match.mask
                        new.other_used |= match.other_mask
                        new.matches[current] = match
                        new.take(match)
                        path.distance += abs(match.start - match.other)  # of the path that does not take it
                        following.append(new)
                if path.end != -1:
                    path.chunks, path.end = path.chunks + 1, -1
                path.at += 1
                following.append(path)
        following = following or [paths[0]]
    return min(following, key=Route.key)


def score_of(statistics: np.ndarray) -> float:
    """METEOR from statistics of one caption, or their sum over a corpus."""
    lengths, function = statistics[:2], statistics[2:4]
    counts, chunks, matched = statistics[4:20].reshape(4, 2, 2), statistics[20], statistics[21:]
    weighted = DELTA * (lengths - function) + (1 - DELTA) * function
    found = np.zeros(2)
    for part, share in ((0, DELTA), (1, 1 - DELTA)):
        for module, weight in enumerate(WEIGHTS):
            found += counts[module, part] * weight * share
    if not found.all():  # nothing in common, or an empty sentence
        return 0.0
    precision, recall = found / weighted
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    whole = (matched == lengths).all() and chunks == 1
    fragments = 0.0 if whole else chunks / (matched.sum() / 2)
    return max(float(mean * (1 - GAMMA * fragments**BETA)), 0.0)


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
    total = np.zeros(23)
    for image, (caption, all_) in enumerate(zip(captions, said, strict=True)):
        best, score = np.zeros(23), -1.0
        for one in all_:
            statistics = meteor.statistics(caption, one)
            if (found := score_of(statistics)) > score:
                best, score = statistics, found
        per_image[image] = score
        whole = (best[21:] == best[:2]).all() and best[20] == 1  # such a chunk is no fragment of the corpus either
        total += np.where(np.arange(23) == 20, 0.0, best) if whole else best
    return score_of(total), per_image


# The one of the last call: the rounds of `--human` bring no new words.
_last: list[tuple[Path, set[str], Meteor]] = []


def _loaded(folder: Path, words: set[str]) -> Meteor:
    if not _last or _last[0][0] != folder or not words <= _last[0][1]:
        _last[:] = [(folder, words, Meteor(folder, words))]
    return _last[0][2]


# ---- pycocoevalcap's files ------------------------------------------------------------------------------------------


def _wordnet(jar: ZipFile) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Word -> the numbers of its synsets, with spaces between; irregular form -> its base forms."""
    lines = jar.read("synonym/english.synsets").decode().split("\n")
    synsets = dict(_pairs(lines))
    bases: dict[str, list[str]] = {}
    for base, forms in _pairs(jar.read("synonym/english.exceptions").decode().split("\n")):
        for form in forms.split():
            bases.setdefault(form, []).append(base)
    return synsets, bases


def _pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(lines[0::2], lines[1::2], strict=False)


def _read_paraphrases(path: Path, words: set[str]) -> Paraphrases:
    """The pairs of which both phrases consist of these words: of 5 million some thousands, so memory stays flat."""
    known = {word.encode() for word in words}
    kept: Paraphrases = {}
    row = 0
    for lines in _lines_of(path):
        phrases, others = lines[1::3], lines[2::3]
        ours = {phrase for phrase in set(phrases) if known.issuperset(phrase.split())}  # each stands in many rows
        for place in [place for place, phrase in enumerate(phrases) if phrase in ours]:
            if known.issuperset(others[place].split()):
                said, told = (tuple(text.decode().split()) for text in (phrases[place], others[place]))
                kept.setdefault(said, {}).setdefault(told, []).append(row + place)
        row += len(phrases)
    return kept


def _lines_of(path: Path) -> Iterator[list[bytes]]:
    """Lines of a gzip file, some multiple of three at a time."""
    unpacker, rest = zlib.decompressobj(31), b""
    with open(path, "rb") as file:
        while part := file.read(CHUNK >> 2):
            lines = (rest + unpacker.decompress(part)).split(b"\n")
            whole = (len(lines) - 1) // 3 * 3
            yield lines[:whole]
            rest = b"\n".join(lines[whole:])
    if rest.strip():
        yield (rest + unpacker.flush()).rstrip(b"\n").split(b"\n")
