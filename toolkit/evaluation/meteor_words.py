"""How METEOR 1.5 cuts English text into words with `-norm`: a Moses tokenizer that also splits dashes and joins initials.

Punctuation is kept, as words of its own. The steps and their order are those of the published program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from zipfile import ZipFile

# Latin and Cyrillic letters.
ALPHA = (
    "A-Za-z\u0160\u017d\u0161\u017e\u0178\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e"
    "\u0400-\u04ff\u0500-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
)
ALNUM = "0-9" + ALPHA
SPACES = "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\u00a0"


def _step(pattern: str, instead: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.ASCII), instead


DOTS = _step(r"\.(\.+)", r" DOTMULTI\1")
LAST_DOT = _step(r"DOTMULTI\.([^.])", r"DOTDOTMULTI \1")
SYMBOLS = _step(rf"([^{ALNUM}\s.'`,\-\u2018\u2019])", r" \1 ")
STEPS = (
    _step(r"([^0-9]),([^0-9])", r"\1 , \2"),
    _step(r"([0-9]),([^0-9])", r"\1 , \2"),
    _step(r"([^0-9]),([0-9])", r"\1 , \2"),
    _step("[`\u2018\u2019]", "'"),
    _step("[\u201c\u201d]|''", ' " '),
    _step("\u2013", "-"),
    _step("--", "-"),
    _step(rf"([{ALNUM}.])-([{ALNUM}])", r"\1 \2"),
    _step(rf"([^{ALPHA}])'([^{ALPHA}])", r"\1 ' \2"),
    _step(rf"([^{ALPHA}0-9])'([{ALPHA}])", r"\1 ' \2"),
    _step(rf"([{ALPHA}])'([^{ALPHA}])", r"\1 ' \2"),
    _step(rf"([{ALPHA}])'([{ALPHA}])", r"\1 '\2"),
    _step(r"([0-9])'(s)", r"\1 '\2"),
)
LETTER = re.compile(f"[{ALPHA}]")
BLANKS = re.compile(r"[ \t\n\r\f]+")
ALL_SPACES = re.compile(f"[ {SPACES}]+")
TRIMMED = "".join(map(chr, range(33)))
ANYWHERE, BEFORE_NUMBERS = 1, 2

Abbreviations = Mapping[str, int]  # without their dot -> `ANYWHERE`, or `BEFORE_NUMBERS` only


def read_abbreviations(jar: ZipFile) -> Abbreviations:
    """The words whose dot ends no sentence, from meteor-1.5.jar."""
    found: dict[str, int] = {}
    for line in jar.read("nonbreaking/english.prefixes").decode().split("\n"):
        word, *more = line.split() or ["#"]
        if not word.startswith("#"):
            found[word] = BEFORE_NUMBERS if more[:1] == ["#NUMERIC_ONLY#"] else ANYWHERE
    return found


class Normalizer:
    """Text -> its words, as METEOR takes them."""

    def __init__(self, jar: ZipFile) -> None:
        self.abbreviations = read_abbreviations(jar)
        self.words = lru_cache(maxsize=1 << 16)(self._words)

    def _words(self, text: str) -> tuple[str, ...]:
        line = f" {text.strip(TRIMMED)} "
        if (
            not (line.isascii() and line.replace(" ", "").isalnum()) or "DOTMULTI" in line
        ):  # which the steps take for dots
            line = self._tokenized(line)
        line = ALL_SPACES.sub(" ", line).strip(TRIMMED).lower()
        return tuple(word for word in BLANKS.split(line) if word)

    def _tokenized(self, line: str) -> str:
        line = SYMBOLS[0].sub(SYMBOLS[1], line)
        line = DOTS[0].sub(DOTS[1], line)
        while "DOTMULTI." in line:
            line = LAST_DOT[0].sub(LAST_DOT[1], line).replace("DOTMULTI.", "DOTDOTMULTI")
        for pattern, instead in STEPS:
            line = pattern.sub(instead, line)
        line = self._with_dots([word for word in BLANKS.split(line) if word])
        while "DOTDOTMULTI" in line:
            line = line.replace("DOTDOTMULTI", "DOTMULTI.")
        return line.replace("DOTMULTI", ".")

    def _with_dots(self, words: list[str]) -> str:
        """A dot at the end of a word, as a word of its own or as part of an abbreviation."""
        line = []
        for word, after in zip(words, [*words, ""][1:], strict=True):
            before, first = word[:-1], after[:1]
            if len(word) < 2 or word[-1] != ".":
                line.append(word)
            elif "." in before and LETTER.search(before):  # U.S. is US
                line.append(word.replace(".", ""))
            else:
                kind = self.abbreviations.get(before)
                stays = kind == ANYWHERE or "a" <= first <= "z" or (kind == BEFORE_NUMBERS and "0" <= first <= "9")
                line.append(word if stays else f"{before} .")
        return " ".join(line) + " "
