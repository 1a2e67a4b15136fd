"""Charts: curves and histograms with axes, as SVG that needs no script. templates/chart.js shows values at the pointer.

Positions are per cent of the drawing's width and height, so that a page may stretch it; texts of ticks stand beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TONES = ("one", "two", "three", "four", "five", "six")  # CSS classes of colours; more lines take them again, dashed
MOST = 400  # points of a drawn line; of more, the least and the greatest of each stretch are drawn
DOTS = 16  # lines of no more points have them marked


@dataclass(frozen=True)
class Measure:
    """What a chart is about, and how its values are told.

    Attributes:
        name: of the value where it is logged.
        times: what a value is multiplied by, to be shown on the scale of every other page.
        unit: stands behind a figure; "%" is at most 100.
    """

    name: str
    title: str
    times: float = 1.0
    unit: str = ""

    def tell(self, value: float) -> str:
        """
        Args:
            value: multiplied already.
        """
        return f"{value:.1f}{self.unit}" if self.times == 100 else number(value) + self.unit


@dataclass(frozen=True)
class Line:
    """What one line of a chart shows.

    Attributes:
        name: in the key; "" if the chart has one line.
        x, y: ascending, and finite.
        at: how each x is told, as "120 (epoch 0.64)"; () to tell the number.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    at: Sequence[str] = ()
    tone: str = TONES[0]


@dataclass(frozen=True)
class Drawn:
    """A line as the template writes it: `points` as SVG has them, and for each what is told at the pointer."""

    name: str
    tone: str
    points: str
    told_x: str
    told_y: str
    dots: str  # the path of its marks
    outline: str = ""  # of a histogram: the path that is drawn in place of the line


@dataclass(frozen=True)
class Chart:
    """Attributes:
    last: told beside the title.
    x_ticks, y_ticks: place in per cent, text.
    """

    title: str
    last: str
    x_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Drawn]

    @property
    def summary(self) -> str:
        """For those who hear the page."""
        spans = f"{self.x_name} {self.x_ticks[0][1]} to {self.x_ticks[-1][1]}"
        return f"{self.title}: axis from {self.y_ticks[0][1]} to {self.y_ticks[-1][1]} over {spans}"


# ---- axes -----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`: at most `most` + 2.

    >>> ticks(2.37, 2.92), ticks(0, 752, whole=True)
    ([2.2, 2.4, 2.6, 2.8, 3.0], [0.0, 200.0, 400.0, 600.0, 800.0])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * times for times in (1, 2, 5, 10) if power * times * most >= (high - low) * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12 - math.floor(math.log10(step))) for n in range(first, last + 1)]


def within(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Those of `ticks` that lie from `low` to `high`, for an axis that is not lengthened."""
    room = (high - low) * 1e-9
    return [tick for tick in ticks(low, high, most, whole) if low - room <= tick <= high + room]


def number(value: float) -> str:
    """
    >>> number(0.0003), number(2e-05), number(1234567.0), number(-0.0)
    ('0.0003', '2e-5', '1,234,567', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 10_000 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


# ---- curves ---------------------------------------------------------------------------------------------------------


def curves(
    measure: Measure, lines: Sequence[Line], x_name: str, span: tuple[float, float], whole: bool = False
) -> Chart | None:
    """Lines over a common axis; None if none of them has a point.

    Args:
        span: from where to where the axis of x goes.
        whole: x are whole numbers.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return None
    left, right = span if span[1] > span[0] else (span[0], span[0] + 1)
    y_ticks = _upright(min(min(line.y) for line in lines), max(max(line.y) for line in lines), measure.unit == "%")
    bottom, top = y_ticks[0], y_ticks[-1]

    def place(line: Line) -> Drawn:
        kept = _thinned(line.y)
        px = [100 * (line.x[i] - left) / (right - left) for i in kept]
        py = [100 * (top - line.y[i]) / (top - bottom) for i in kept]
        at = line.at or [number(x) for x in line.x]
        marks = "".join(f"M{x:.2f},{y:.2f}h0" for x, y in zip(px, py, strict=True)) if len(kept) <= DOTS else ""
        return Drawn(line.name, line.tone, _points(px, py), "|".join(at[i] for i in kept),
                     "|".join(measure.tell(line.y[i]) for i in kept), marks)  # fmt: skip

    x_ticks = [(100 * (x - left) / (right - left), number(x)) for x in within(left, right, 5, whole)]
    return Chart(
        measure.title, measure.tell(lines[0].y[-1]) if len(lines) == 1 else "", x_name, x_ticks,
        [(100 * (y - bottom) / (top - bottom), number(y) + measure.unit) for y in y_ticks], [place(line) for line in lines],
    )  # fmt: skip


def _upright(low: float, high: float, share: bool) -> list[float]:
    """Ticks of y; a line without rise and fall is given room, but none below zero or above 100 %."""
    if not high > low:
        room = abs(low) * 0.1 or 1.0
        low, high = (max(low - room, 0.0) if low >= 0 else low - room), high + room
    found = ticks(low, min(high, 100.0) if share else high, most=4)
    return [tick for tick in found if tick <= 100] if share else found


def _thinned(y: Sequence[float]) -> list[int]:
    """The places of the points to draw."""
    if len(y) <= MOST:
        return list(range(len(y)))
    values, bounds = np.asarray(y), np.linspace(0, len(y), MOST // 2 + 1).astype(int)
    ends = {0, len(y) - 1}
    for start, stop in itertools.pairwise(bounds):
        ends |= {start + int(values[start:stop].argmin()), start + int(values[start:stop].argmax())}
    return sorted(ends)


def _points(px: Sequence[float], py: Sequence[float]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in zip(px, py, strict=True))


# ---- histograms -----------------------------------------------------------------------------------------------------


def histogram(title: str, rows: Sequence[tuple[str, str, np.ndarray]], edges: Sequence[float], names: Sequence[str],
              x_name: str) -> Chart:  # fmt: skip
    """Shares of each row in per cent.

    Args:
        rows: name, tone and the counts of each.
        edges: one more than there are counts.
        names: how each bin is told at the pointer.
    """
    shares = [100 * counts / max(counts.sum(), 1) for _, _, counts in rows]
    y_ticks = ticks(0.0, max(float(share.max()) for share in shares), most=4)
    top, left, right = y_ticks[-1], edges[0], edges[-1]
    sides = [100 * (edge - left) / (right - left) for edge in edges]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(sides)]
    lines = []
    for (name, tone, _), share in zip(rows, shares, strict=True):
        py = [100 - 100 * float(s) / top for s in share]
        steps = " ".join(f"H{a:.2f} V{y:.2f}" for a, y in zip(sides[:-1], py, strict=True))
        outline = f"M0,100 {steps} H100 V100 Z"
        told = "|".join(f"{s:.1f}%" for s in share)
        lines.append(Drawn(name, tone, _points(middles, py), "|".join(names), told, "", outline))
    x_ticks = [(100 * (x - left) / (right - left), number(x)) for x in within(left, right, 5)]
    return Chart(title, "", x_name, x_ticks, [(100 * y / top, f"{number(y)}%") for y in y_ticks], lines)
