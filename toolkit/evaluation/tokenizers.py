"""Captions to words in every language: the tokenisers of `--tokenize`, and which one captions need.

`ptb` is that of the COCO evaluation, for English. `intl` and `char` are sacrebleu's of these names (Post 2018), after
its own lower-casing (`lowercase=True`), for a metric of captions never tells "A dog" from "a dog". Both keep punctuation
as words of their own; `char` takes each character but spaces for a word, a combining vowel sign too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex

from toolkit.evaluation.ptb import Tokenize, ptb_tokenize, ptb_tokenize_lines

# mteval-v14.pl's rules as in sacrebleu's tokenizer_intl.py: a full stop or comma between digits stays in its number, and
# so does the full stop after a number that ends the caption.
_INTL = (
    (regex.compile(r"(\P{N})(\p{P})"), r"\1 \2 "),
    (regex.compile(r"(\p{P})(\P{N})"), r" \1 \2"),
    (regex.compile(r"(\p{S})"), r" \1 "),
)


def intl_tokenize(caption: str) -> list[str]:
    """Lower-case words, punctuation marks and symbols: "Ein Hund, 1,5 m." -> ["ein", "hund", ",", "1,5", "m", "."]."""
    text = caption.lower().rstrip()
    for pattern, replacement in _INTL:
        text = pattern.sub(replacement, text)
    return text.split()


def char_tokenize(caption: str) -> list[str]:
    """Lower-case characters without spaces: "一只 狗。" -> ["一", "只", "狗", "。"]."""
    return list("".join(caption.lower().split()))


@dataclass(frozen=True)
class Tokenizer:
    """A way to cut captions into words.

    Attributes:
        name: as `--tokenize` names it.
        signature: as an evaluation's signature names it.
        words: caption -> words.
        unit: what a word is, for the reader.
        loop: so many words in a row, three times in a caption, are a loop (`health`). A Chinese word has one or two characters.
    """

    name: str
    signature: str
    words: Tokenize
    unit: str = "word"
    loop: int = 4


PTB = Tokenizer("ptb", "ptb-corenlp-3.4.1", ptb_tokenize)
TOKENIZERS = {
    "ptb": PTB,
    "intl": Tokenizer("intl", "intl,lc", intl_tokenize),
    "char": Tokenizer("char", "char,lc", char_tokenize, "character", 8),
}


def tokenize_lines(captions: Sequence[str], tokenize: Tokenize) -> Iterator[list[str]]:
    """Words of all captions; `ptb_tokenize` as pycocoevalcap tokenises a corpus in this order."""
    return iter(ptb_tokenize_lines(captions)) if tokenize is ptb_tokenize else map(tokenize, captions)


# ---- which one ------------------------------------------------------------------------------------------------------

# Scripts written without spaces: (languages, their letters, the most letters that a word has on average). Captions that
# somebody has cut into words have more spaces than one in so many letters. Korean is written with spaces.
_UNSPACED = (
    ("Chinese or Japanese", "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", 5),
    ("Thai", "\u0e01-\u0e3a\u0e40-\u0e4e", 12),
    ("Lao", "\u0e81-\u0ebd\u0ec0-\u0ece", 12),
    ("Khmer", "\u1780-\u17d3", 12),
    ("Burmese", "\u1000-\u1049", 12),
)  # fmt: skip
_LETTERS = [re.compile(f"[{letters}]") for _, letters, _ in _UNSPACED]
_ALL = "".join(letters for _, letters, _ in _UNSPACED)
_GAP = re.compile(rf"([{_ALL}])\s+(?=[{_ALL}])")
_KANA = re.compile("[\u3041-\u30ff]")
# Of all characters but spaces. A Chinese caption has about 12, an English one 50: 10 % are a third of the captions.
UNSPACED_SHARE, OTHER_SHARE = 0.1, 0.5


class Scripts:
    """Counts the characters of captions, and says which tokeniser they need."""

    def __init__(self, captions: Iterable[str] = ()) -> None:
        self._total = 0
        self._characters: Counter[str] = Counter()  # of captions that aren't ASCII
        self._gaps: Counter[str] = Counter()  # letters of `_UNSPACED` before a space and another one
        self.add(captions)

    def add(self, captions: Iterable[str]) -> None:
        for caption in captions:
            self._total += len(caption) - caption.count(" ")
            if not caption.isascii():
                self._characters.update(caption)
                self._gaps.update(_GAP.findall(caption))

    def unspaced(self) -> str | None:
        """The language of a good part of the captions that has no spaces between its words; None if there is none."""
        found: Counter[str] = Counter()
        for (language, _, longest), letters in zip(_UNSPACED, _LETTERS, strict=True):
            count, gaps = (sum(n for c, n in of.items() if letters.match(c)) for of in (self._characters, self._gaps))
            if count > longest * gaps:
                found[language] = count
        if found.total() <= UNSPACED_SHARE * self._total:
            return None
        language, count = found.most_common(1)[0]
        if language == "Chinese or Japanese":
            kana = sum(n for c, n in self._characters.items() if _KANA.match(c))
            language = "Japanese" if kana > count / 20 else "Chinese"
        return language

    def choose(self) -> tuple[Tokenizer, str]:
        """The tokeniser that these captions need, and why, as the end of a sentence."""
        if (language := self.unspaced()) is not None:
            return TOKENIZERS["char"], f"are in {language}, without spaces between words"
        letters: Counter[str] = Counter()
        for character, times in self._characters.items():
            if unicodedata.category(character)[0] in "LM" and not character.isascii():
                letters[unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]] += times
        del letters["LATIN"], letters["COMBINING"]
        if letters.total() > OTHER_SHARE * self._total:
            script = letters.most_common(1)[0][0]
            return TOKENIZERS["intl"], f"are mostly in {'Chinese' if script == 'CJK' else script.capitalize()} letters"
        return PTB, "are in Latin letters"


@dataclass(frozen=True)
class Choice:
    """A tokeniser, and a sentence about it: why `auto` chose it, or why the one that was named doesn't fit.

    Attributes:
        sentence: None if a fitting one was named.
        usual: `auto` chose `ptb`: of interest while the command runs, but no note for its results.
    """

    tokenizer: Tokenizer
    sentence: str | None = None
    usual: bool = False

    def notes(self) -> list[str]:
        return [] if self.sentence is None or self.usual else [self.sentence]


def choose_tokenizer(name: str, captions: Iterable[str], what: str = "reference captions") -> Choice:
    """The tokeniser that `--tokenize` names; `auto` goes by these captions, usually the references; `what` they are."""
    scripts = Scripts(captions)
    if name == "auto":
        tokenizer, why = scripts.choose()
        sentence = f"--tokenize auto is {tokenizer.name}, because the {what} {why}"
        return Choice(tokenizer, sentence, tokenizer is PTB)
    tokenizer = TOKENIZERS[name]
    language = None if name == "char" else scripts.unspaced()
    if language is None:
        return Choice(tokenizer)
    return Choice(
        tokenizer,
        f"captions are in {language}, without spaces between words, so --tokenize {name} takes a whole clause for a word: "
        "metrics that count words (BLEU, ROUGE-L, CIDEr, lengths, vocabulary) mean nothing; use --tokenize char",
    )
