"""Splits by content: of the image and the seed alone."""

from __future__ import annotations

from collections import Counter

from toolkit.cache.splits import leaks, split_of
from toolkit.runtime.hashing import hash_hex

HASHES = [hash_hex(str(i)) for i in range(4000)]
EXPECTED = ["train", "validation", "train", "validation", "test", "test",
            "test", "test", "validation", "train", "train", "validation"]  # fmt: skip


def test_shares_are_as_asked() -> None:
    counts = Counter(split_of(h, 42, 0.1, 0.2) for h in HASHES)
    assert 300 < counts["validation"] < 500
    assert 700 < counts["test"] < 900
    assert set(Counter(split_of(h, 42, 0.0, 0.0) for h in HASHES)) == {"train"}


def test_a_seed_decides_and_nothing_else() -> None:
    first = [split_of(h, 1, 0.1, 0.1) for h in HASHES]
    assert first == [split_of(h, 1, 0.1, 0.1) for h in reversed(HASHES)][::-1]
    assert first != [split_of(h, 2, 0.1, 0.1) for h in HASHES]


def test_a_larger_test_share_only_takes() -> None:
    small = {h for h in HASHES if split_of(h, 42, 0.1, 0.1) == "test"}
    assert small < {h for h in HASHES if split_of(h, 42, 0.1, 0.3) == "test"}


def test_the_same_on_every_machine() -> None:
    """Written down: a cache made next year has the same splits."""
    assert [split_of(h, 42, 0.25, 0.25) for h in HASHES[:12]] == EXPECTED


def test_leaks() -> None:
    rows = [("h1", "train", "a"), ("h2", "train", "b"), ("h1", "test", "c"), ("h2", "train", "d"), ("h1", "test", "e")]
    assert leaks(rows) == [{"train": ["a"], "test": ["c", "e"]}]
    assert leaks(rows[:2]) == []
