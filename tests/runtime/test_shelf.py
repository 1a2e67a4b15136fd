"""A dictionary that is partly on the disk: it answers as one that isn't."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import pytest

from toolkit.errors import RunError
from toolkit.runtime import shelf
from toolkit.runtime.shelf import Shelf

ODD = ["", "é", "e\u0301", "\ud83d", "a\0b", "a\nb", "日本"]


@pytest.mark.parametrize("entries", [1, 3, 1000])
def test_as_a_dictionary(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ENTRIES", entries)
    monkeypatch.setattr(shelf, "CHUNK", 2)
    rng, plain, ours = random.Random(1), dict[str, Any](), Shelf()
    for step in range(500):
        key = rng.choice([*ODD, *map(str, range(40))])
        assert (key in ours) == (key in plain)
        assert ours.get(key) == plain.get(key)
        for one in (plain, ours):
            one.setdefault(key, [step]).append(step)  # in place
        assert len(ours) == len(plain)
        if step % 100 == 99:
            assert list(ours) == list(plain)
            assert list(ours.items()) == list(plain.items())
            assert list(ours.in_order()) == sorted(plain)


def test_asked_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ENTRIES", 2)
    monkeypatch.setattr(shelf, "CHUNK", 2)
    ours = Shelf()
    for i in range(9):
        ours.setdefault(str(i), i)
    assert [(key, ours.get(str(8 - value))) for key, value in ours.items()] == [(str(i), 8 - i) for i in range(9)]


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(sqlite3.Connection):
        def executemany(self, *args: Any) -> Any:
            raise sqlite3.OperationalError("database or disk is full")

    real = sqlite3.connect
    monkeypatch.setattr(shelf, "ENTRIES", 1)
    monkeypatch.setattr(shelf.sqlite3, "connect", lambda *args, **named: real(*args, **named, factory=Full))
    ours = Shelf()
    ours.setdefault("a", 1)
    with pytest.raises(
        RunError, match=r"can't be sorted there \(database or disk is full\); set TMPDIR to a folder with more"
    ):
        ours.setdefault("b", 1)
