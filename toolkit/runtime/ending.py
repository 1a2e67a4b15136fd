"""How a command ends: Ctrl-C and SIGTERM, once and twice, whatever the command hangs in.

The first signal is a `KeyboardInterrupt` in the main thread, within `allowing` at the end of its block; there the command
leaves what it has in order, for which it has `GRACE` seconds. The second signal, or the end of that time, ends the
process at once. Both are seen by a thread of their own, since the main thread may be in a call that does not return.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

GRACE = 10.0  # seconds
# What comes so soon after the first is the same signal once more: `timeout` sends it to the process and to its group.
SAME = 0.5
SAME_LAUNCHED = 5.0  # torchrun sends its own SIGTERM after the terminal's Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_first: int | None = None  # the signal that ends this command
_over = False
_allowed = 0.0  # until when the end may take, by time.monotonic()
_waiting = False  # whether the block of `allowing` is on
_deferring = False  # ... of `deferring`


def watch() -> None:
    """From now on signals end this process as told above; called once, in the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    os.register_at_fork(after_in_child=_in_child)
    threading.Thread(target=_guard, args=(reading,), daemon=True, name="toolkit-signals").start()


def over() -> None:
    """The command is done but for the process's own end: a signal interrupts nothing more, it can only be awaited."""
    global _over
    _over = True


def code(otherwise: int) -> int:
    """The exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    return otherwise if _first is None else 128 + _first


@contextmanager
def allowing(seconds: float) -> Iterator[None]:
    """The block is finished before a signal within it ends the command, if that takes no longer: a checkpoint is being
    written. What follows has `GRACE` again."""
    global _allowed, _waiting
    before = _first
    _allowed, _waiting = time.monotonic() + seconds, True
    try:
        yield
    finally:
        _allowed, _waiting = time.monotonic() + GRACE, False
    if _first is not before:
        raise KeyboardInterrupt


@contextmanager
def deferring(on: bool = True) -> Iterator[None]:
    """In the block the first signal interrupts nothing: whoever asks `told` ends it within `GRACE`. With `on` false, a
    part of such a block in which it interrupts at once."""
    global _deferring
    before, _deferring = _deferring, on
    try:
        if not on and _first is not None:
            raise KeyboardInterrupt
        yield
        if on and _first is not None:
            raise KeyboardInterrupt
    finally:
        _deferring = before


def told() -> bool:
    """Whether a signal has come that is to end the command."""
    return _first is not None


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None and not _over:
        _first = number
        if not (_waiting or _deferring):
            raise KeyboardInterrupt


def _in_child() -> None:
    """A fork is another process: its signals are not this one's."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, signal.default_int_handler)


def _guard(reading: int) -> None:
    """Reads the number of each signal as it comes."""
    number = 0
    while number not in SIGNALS:
        number = os.read(reading, 1)[0]
    began = time.monotonic()
    same = SAME_LAUNCHED if "WORLD_SIZE" in os.environ else SAME
    while (left := max(began + GRACE, _allowed) - time.monotonic()) > 0:
        ready, _, _ = select.select([reading], [], [], min(left, 0.5))
        if ready and os.read(reading, 1)[0] in SIGNALS and time.monotonic() - began > same:
            _end(number)
    _end(number)


def _end(number: int) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"\nStopped at once; run the same command again to go on.\n")
    os._exit(128 + number)
