"""What METEOR reads out of pycocoevalcap's files: synonyms (WordNet), function words and paraphrases."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from toolkit.runtime.ahead import in_threads

JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
PART = 1 << 22  # bytes of the packed table at a time
SUFFIXES = (  # WordNet's rules of detachment
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip

Words = tuple[str, ...]


@dataclass(slots=True)
class Phrase:
    """A phrase of the table.

    Attributes:
        told: the numbers of what it may be called -> the rows in the table that say so.
    """

    number: int
    length: int
    told: dict[int, list[int]]


Paraphrases = dict[Words, Phrase]


class WordNet:
    """Synonyms, from the jar."""

    def __init__(self, jar: ZipFile) -> None:
        self._synsets = dict(_pairs(jar.read("synonym/english.synsets").decode().split("\n")))
        self._bases: dict[str, list[str]] = {}  # irregular form -> its base forms
        for base, forms in _pairs(jar.read("synonym/english.exceptions").decode().split("\n")):
            for form in forms.split():
                self._bases.setdefault(form, []).append(base)

    def meanings(self, word: str) -> frozenset[str]:
        """The synsets of a word and of its base forms."""
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


def _pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(lines[0::2], lines[1::2], strict=False)


# ---- paraphrases ----------------------------------------------------------------------------------------------------


def read_paraphrases(path: Path, words: set[str]) -> Paraphrases:
    """The pairs of which both phrases consist of these words: of 5 million some thousands, so memory stays flat.

    The table has three lines a pair: how likely it is, a phrase, what it may be called.
    """
    are_known = {word.encode() for word in words}.issuperset
    found: dict[bytes, Phrase] = {}

    def phrase_of(text: bytes) -> Phrase:
        if (phrase := found.get(text)) is None:
            phrase = found[text] = Phrase(len(found), len(text.split()), {})
        return phrase

    row = 0
    with _no_collections():
        for block in _blocks(path):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            starts = np.concatenate([[0], ends[:-1] + 1])
            said, said_end, told, told_end = starts[1::3], ends[1::3], starts[2::3], ends[2::3]
            firsts = _first_of_equals(block, said, said_end)
            edges = zip(said[firsts].tolist(), said_end[firsts].tolist(), strict=True)
            texts = [text if are_known((text := block[start:end]).split()) else None for start, end in edges]
            ours = np.array([text is not None for text in texts], dtype=bool)
            sizes = np.diff(firsts, append=len(said))
            rows = np.flatnonzero(np.repeat(ours, sizes))
            places = rows + row, np.repeat(np.arange(len(firsts)), sizes)[rows], told[rows], told_end[rows]
            for place, which, start, end in zip(*(each.tolist() for each in places), strict=True):
                if are_known((other := block[start:end]).split()):
                    number = phrase_of(other).number
                    phrase_of(texts[which]).told.setdefault(number, []).append(place)
            row += len(said)
    return {tuple(text.decode().split()): phrase for text, phrase in found.items() if text.strip()}


def _first_of_equals(block: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Of neighbouring equal lines the first: their places. A phrase stands in about twelve rows, one below the other."""
    if not len(starts):
        return np.zeros(0, dtype=np.int64)
    # The eight bytes from each place on; behind the end there are some more.
    padded = np.frombuffer(block + bytes(8), np.uint8)
    words = np.ndarray((len(block) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    lengths = ends - starts
    differs = np.concatenate([[True], lengths[1:] != lengths[:-1]])
    for at in range(0, int(lengths.max()), 8):
        same = np.flatnonzero(~differs & (lengths > at))
        left = np.minimum(lengths[same] - at, 8).astype(np.uint64)
        unused = (np.uint64(8) - left) * np.uint64(8)  # bits of the line's end and of what follows
        one, other = (words[starts[rows] + at] << unused for rows in (same, same - 1))
        differs[same[one != other]] = True
    return np.flatnonzero(differs)


def _blocks(path: Path) -> Iterator[bytes]:
    """The lines of a gzip file, some multiple of three at a time; unpacked by a thread, while the last ones are read."""
    unpacker, rest = zlib.decompressobj(31), b""
    with open(path, "rb") as file:
        for part in in_threads(unpacker.decompress, iter(lambda: file.read(PART), b""), workers=1, ahead=2):
            text = rest + part
            end, extra = len(text), text.count(b"\n") % 3
            for _ in range(extra + 1):
                end = text.rfind(b"\n", 0, end)
            yield text[: end + 1]
            rest = text[end + 1 :]
    if rest := rest + unpacker.flush():
        yield rest if rest.endswith(b"\n") else rest + b"\n"


@contextmanager
def _no_collections() -> Iterator[None]:
    """Python's search for circular garbage took more time here than reading, and there is none."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
