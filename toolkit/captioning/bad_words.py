"""Words and phrases that no caption may contain, as the token sequences that spell them.

In: lines of text and a tokenizer. Out: `bad_words_ids` as `transformers.NoBadWordsLogitsProcessor` takes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.runtime.lines import read_lines

MOST = 1000  # sequences of a spelling; those with the fewest tokens first, which are what a model writes

Lookup = Callable[[int, int], int | None]


def read_bad_words(path: Path) -> tuple[str, ...]:
    """The words and phrases of a file, one a line, blank lines left out.

    Raises:
        InputError: no such file, not text, or nothing in it.
    """
    return tuple(dict.fromkeys(read_lines("--bad-words", path, "write one word or phrase a line, or leave it out")))


def bad_words_ids(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """Every sequence of tokens that spells one of the words or phrases, in one of its spellings.

    Spellings are as written, in lower case, in capitals, and with a capital first letter; each with and without a space
    before it. A spelling is banned however it is cut into tokens, up to `MOST` ways, fewest tokens first.

    >>> # GPT-2: "cat" -> [[9246], [66, 265], [6888, 83], ..., [3797], [269, 265], ...]
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for spelling in dict.fromkeys((word, word.lower(), word.upper(), word[:1].upper() + word[1:])):
            for length, lookup in _forms(tokenizer, spelling):
                found.update(dict.fromkeys(islice(segmentations(length, lookup), MOST)))
    return [list(sequence) for sequence in found]


def _forms(tokenizer: Any, spelling: str) -> Iterator[tuple[int, Lookup]]:
    """How many characters a spelling has as the tokenizer sees it, and which token stands for a part of them."""
    special, vocabulary = set(tokenizer.all_special_ids), tokenizer.get_vocab()

    def token(text: str) -> int | None:
        found = vocabulary.get(text)
        return None if found in special else found

    decoder = ""
    if tokenizer.is_fast:
        decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"], ensure_ascii=False)
        normalizer = tokenizer.backend_tokenizer.normalizer
        if normalizer is not None:
            spelling = normalizer.normalize_str(spelling).replace("▁", " ").strip()
    if "ByteLevel" in decoder:
        yield from _spaced("".join(BYTE_LETTERS[byte] for byte in spelling.encode()), BYTE_LETTERS[ord(" ")], token)
    elif "▁" in decoder:
        yield from _spaced(spelling.replace(" ", "▁"), "▁", token)
    elif "WordPiece" in decoder:
        parts = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(spelling)
        yield from _word_pieces([text for text, _ in parts], token)
    else:
        for text in (spelling, f" {spelling}"):  # only as the tokenizer itself cuts it
            ids = tokenizer(text, add_special_tokens=False).input_ids
            if tokenizer.decode(ids).strip().lower() == spelling.lower():  # else it knows no such letters
                yield len(ids), lambda i, j, ids=ids: ids[i] if j == i + 1 else None  # type: ignore[misc]


def _spaced(text: str, space: str, token: Callable[[str], int | None]) -> Iterator[tuple[int, Lookup]]:
    yield len(text), lambda i, j: token(text[i:j])
    # A space that is a token of its own is left out here: what follows it is banned already.
    after = space + text
    yield len(after), lambda i, j: None if (i, j) == (0, 1) else token(after[i:j])


def _word_pieces(parts: list[str], token: Callable[[str], int | None]) -> Iterator[tuple[int, Lookup]]:
    """Tokens of BERT-likes: ## before whatever does not start a word; spaces are not written."""
    starts = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}
    text = "".join(parts)

    def lookup(i: int, j: int) -> int | None:
        if any(i < start < j for start in starts):
            return None
        return token(text[i:j] if i in starts else "##" + text[i:j])

    yield len(text), lookup


def segmentations(length: int, lookup: Lookup) -> Iterator[tuple[int, ...]]:
    """All ways to write characters 0 to `length` as tokens, fewest tokens first.

    Args:
        lookup: the token that stands for characters i to j, or None.
    """
    edges = [
        [(j, found) for j in range(i + 1, length + 1) if (found := lookup(i, j)) is not None] for i in range(length)
    ]
    counts = [0] * length + [1]  # bit n: the rest from here can be written with n tokens
    for i in reversed(range(length)):
        for j, _ in edges[i]:
            counts[i] |= counts[j] << 1

    def rest(i: int, n: int) -> Iterator[tuple[int, ...]]:
        if n == 0:
            yield ()
            return
        for j, token in edges[i]:
            if counts[j] >> (n - 1) & 1:
                for more in rest(j, n - 1):
                    yield (token, *more)

    for n in range(1, length + 1):
        if counts[0] >> n & 1:
            yield from rest(0, n)


def _byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte: printable ones stand for themselves, the others for
    the letters from U+0100 on (`bytes_to_unicode` of GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
