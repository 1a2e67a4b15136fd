"""Captions to masked labels: the one place that decides what the decoder is taught.

GPT-2's tokenizer adds no end of text, and its pad token is that same end of text. A recipe that masks "where the token
is pad" therefore hides the only sign to stop, and the model rambles until `max_length`. So here: append EOS to each
caption, pad by LENGTH with -100, never by looking at ids (recipe: RitaRamo/smallcap `src/utils.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's default ignore_index


class CaptionEncoder:
    """Turns captions into label rows with a fast tokenizer's own file, without importing transformers or torch.

    Args:
        tokenizer_file: a `tokenizer.json`.
        eos_token_id: the id that ends every row.
        max_length: row length in tokens, EOS included.

    >>> # GPT-2, max_length 8: "A dog runs ." is 32 3290 4539 764
    >>> # encoder(["A dog runs ."]) -> [[32, 3290, 4539, 764, 50256, -100, -100, -100]], 0
    """

    def __init__(self, tokenizer_file: Path, eos_token_id: int, max_length: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # a caption that spells "<|endoftext|>" is text, not an end
        self.eos_token_id = eos_token_id
        self.max_length = max_length

    def lengths(self, captions: Sequence[str]) -> np.ndarray:
        """Tokens of each caption, EOS included, before any cut: int32 (n,)."""
        encodings = self.tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)
        return np.array([len(e.ids) + 1 for e in encodings], dtype=np.int32)

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Label rows of some captions.

        Returns:
            labels: int32 (n, max_length): the caption's tokens, one EOS, then -100. A caption with more than
                max_length - 1 tokens is cut there; its EOS stays.
            truncated: bool (n,), True where tokens were cut.
        """
        labels = np.full((len(captions), self.max_length), IGNORE_INDEX, dtype=np.int32)
        truncated = np.zeros(len(captions), dtype=bool)
        # Special tokens of the tokenizer's own (BERT's [CLS], [SEP]) stay out: the start token is the model's business
        # and the end is ours, so that every tokenizer gives the same form of row.
        for row, encoding in enumerate(self.tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)):
            ids = encoding.ids[: self.max_length - 1]
            labels[row, : len(ids)] = ids
            labels[row, len(ids)] = self.eos_token_id
            truncated[row] = len(encoding.ids) > len(ids)
        return labels, truncated
