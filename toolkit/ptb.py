"""Captions to words as in the COCO evaluation."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[a-z0-9]+(?:[-.,/][a-z0-9]+)*|n't|'[a-z]+|[^\s\w.,:;?!'\"`(){}-]")


def ptb_tokenize(caption: str) -> list[str]:
    """Words of a caption, lower-case, without punctuation."""
    return _WORDS.findall(caption.lower())
