"""Detects captions in languages written without spaces between words, where metrics that count words mean nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# (language, runs of its letters that are too long to be one word). Captions that were segmented with spaces have only
# short runs and are not counted. Korean is written with spaces.
_RUNS = (
    ("Chinese or Japanese", re.compile("[\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{5,}")),
    ("Thai", re.compile("[\u0e01-\u0e3a\u0e40-\u0e4e]{12,}")),
    ("Lao", re.compile("[\u0e81-\u0ebd\u0ec0-\u0ece]{12,}")),
    ("Khmer", re.compile("[\u1780-\u17d3]{12,}")),
    ("Burmese", re.compile("[\u1000-\u1049]{12,}")),
)  # fmt: skip
_KANA = re.compile("[\u3041-\u30ff]")
SHARE = 0.1  # of all characters: from here on there is a note


class Spacing:
    """Counts characters of captions in such languages."""

    def __init__(self, captions: Iterable[str] = ()) -> None:
        self.characters = self.kana = 0
        self.unspaced: Counter[str] = Counter()
        self.add(captions)

    def add(self, captions: Iterable[str]) -> None:
        for caption in captions:
            self.characters += len(caption)
            if caption.isascii():
                continue
            for language, pattern in _RUNS:
                for run in pattern.findall(caption):
                    self.unspaced[language] += len(run)
                    self.kana += len(_KANA.findall(run))

    def note(self) -> str | None:
        """A sentence for the reader if a good part of the captions has no spaces between words."""
        if self.unspaced.total() <= SHARE * self.characters:
            return None
        language, count = self.unspaced.most_common(1)[0]
        if language == "Chinese or Japanese":
            language = "Japanese" if self.kana > count / 20 else "Chinese"
        return (
            f"captions are in {language}, without spaces between words, and toolkit has no tokenizer for it: metrics "
            "that count words (BLEU, ROUGE-L, CIDEr, lengths, vocabulary) mean nothing; use the loss (`toolkit finetune "
            "--eval-metric loss`) and look at the captions"
        )
