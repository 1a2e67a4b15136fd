"""Progress and messages for people, all on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

quiet = False  # set once by the command line

# What a terminal obeys (C0 and C1), breaks a line at, or writes the rest of a line backwards for; and halves of
# characters (from names that are no UTF-8), which no stream takes.
_CONTROLS = {
    code: ascii(chr(code))[1:-1]
    for code in (
        *range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    )
}  # fmt: skip
_CONTROLS_BUT_LINES = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\t\n"}


def printable(text: str, lines: bool = False) -> str:
    """Text as a terminal may have it: names and captions are other people's, and control characters in them are
    written as Python writes them. With `lines` it stays in its lines: then only names that stand in it must have been
    made printable before.

    >>> printable("a\\x1b[31m\\n.jpg")
    'a\\\\x1b[31m\\\\n.jpg'
    """
    return (
        text if text.isascii() and text.isprintable() else text.translate(_CONTROLS_BUT_LINES if lines else _CONTROLS)
    )


def say(message: str) -> None:
    """One line on stderr."""
    if not quiet:
        with suppress(OSError):  # a standard error that can't be written stops no work
            text, bars = printable(message), sys.modules.get("tqdm")
            if bars is None:  # no bar was ever shown, by us or by a library
                print(text, file=sys.stderr, flush=True)
            else:
                bars.tqdm.write(text, file=sys.stderr)


class Progress:
    """Counts work with rate and time left; silent for anything shorter than a second.

    On a terminal a tqdm bar. Elsewhere (a log file, CI) a plain line every ten seconds, since a bar's carriage
    returns make logs unreadable.
    """

    def __init__(self, description: str, total: int | None, unit: str = "images") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.count = 0
        self.started = time.monotonic()
        self.next_line = self.started + 1.0
        self.bar: Any = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm  # 30 ms, which help does without

            self.bar = tqdm(total=total, desc=description, unit=f" {unit}", delay=1.0, dynamic_ncols=True)

    def update(self, n: int = 1) -> None:
        self.count += n
        if self.bar is not None:
            self.bar.update(n)
        elif not quiet and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + 10.0
            self._line()

    def _line(self) -> None:
        rate = self.count / max(time.monotonic() - self.started, 1e-9)
        left = f", {(self.total - self.count) / rate:.0f} s left" if self.total and rate else ""
        of = f"/{self.total}" if self.total else ""
        say(f"{self.description}: {self.count}{of} {self.unit}, {rate:.3g} {self.unit}/s{left}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
