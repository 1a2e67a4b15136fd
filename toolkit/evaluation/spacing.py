"""Captions in languages that are written without spaces between words: figures that count words mean nothing there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# (language, its letters, how long a run of them is no single word). Captions whose words somebody has cut with spaces
# have only short runs, and are counted as they should be. Korean has spaces of its own.
_RUNS = (
    ("Chinese or Japanese", re.compile("[\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{5,}")),
    ("Thai", re.compile("[\u0e01-\u0e3a\u0e40-\u0e4e]{12,}")),
    ("Lao", re.compile("[\u0e81-\u0ebd\u0ec0-\u0ece]{12,}")),
    ("Khmer", re.compile("[\u1780-\u17d3]{12,}")),
    ("Burmese", re.compile("[\u1000-\u1049]{12,}")),
)  # fmt: skip
_KANA = re.compile("[\u3041-\u30ff]")
SHARE = 0.1  # of all letters and marks, from which on it is told


class Spacing:
    """Counts characters as captions go by."""

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
        """A sentence for people where a good part of the captions has no spaces between words."""
        if self.unspaced.total() <= SHARE * self.characters:
            return None
        language, count = self.unspaced.most_common(1)[0]
        if language == "Chinese or Japanese":
            language = "Japanese" if self.kana > count / 20 else "Chinese"
        return (
            f"captions are in {language}, without spaces between words, and there is no tokenizer for it here yet: figures "
            "that count words (BLEU, ROUGE-L, CIDEr, lengths, vocabulary) mean nothing; go by the loss (`toolkit finetune "
            "--eval-metric loss`) and by what you see"
        )
