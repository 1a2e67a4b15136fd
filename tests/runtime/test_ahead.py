"""Threads ahead of their use: order, errors, how far ahead, and that none keeps a command alive."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from toolkit.runtime.ahead import in_threads


def test_order_and_distance() -> None:
    taken: list[int] = []

    def source() -> object:
        for i in range(20):
            taken.append(i)
            yield i

    results = in_threads(lambda i: i * i, source(), workers=3, ahead=4)  # type: ignore[arg-type]
    assert next(results) == 0
    assert len(taken) == 5
    assert list(results) == [i * i for i in range(1, 20)]
    assert list(in_threads(str, [], workers=2, ahead=4)) == []


def test_an_error_is_raised_in_its_place_and_ends_the_threads() -> None:
    before = threading.active_count()
    results = in_threads(lambda i: 1 // (2 - i), range(9), workers=2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


HANGING = """
import os, sys, threading
import toolkit.runtime.ahead
toolkit.runtime.ahead.PATIENCE = 0.1
pipe, _ = os.pipe()
for result in toolkit.runtime.ahead.in_threads(lambda i: os.read(pipe, 1) if i == 2 else i, range(9), workers=2, ahead=8):
    if result == 1:
        raise KeyboardInterrupt
"""


def test_a_thread_that_hangs_keeps_nothing_alive() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
