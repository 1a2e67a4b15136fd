"""Progress and messages for people, all on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

quiet = False  # set once by the command line
spoken: Callable[[str], str] = str  # how a message is worded: `urls.named` puts URLs for what stands for them


def say(message: str) -> None:
    """One line on stderr."""
    if not quiet:
        tqdm.write(spoken(message), file=sys.stderr)


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
        self.bar = None
        if sys.stderr.isatty() and not quiet:
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
