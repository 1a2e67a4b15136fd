"""A page of one run or several: their curves in the same charts, over steps, epochs and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.reports.charts import TONES, Chart, Line, Measure, curves, number
from toolkit.reports.facts.models import RUN_LOG, read_log
from toolkit.reports.facts.runs import best_of, options_table, runs_table
from toolkit.reports.html import chart_script, write_page
from toolkit.reports.training_report import LOGGED, during, points
from toolkit.runtime.overwrite import Output

Row = dict[str, Any]


class Over(NamedTuple):
    """What the charts are drawn over."""

    key: str
    x_name: str
    place: Callable[[Row], float | None]
    whole: bool = False


def write_runs_page(page: Output, folders: Sequence[Path], values: dict[str, Any]) -> None:
    """One HTML file that needs no network.

    Args:
        folders: with a `RUN_LOG` each.
        values: what `compare_runs` says of them.
    """
    rows = [_timed(during(read_log(folder / RUN_LOG))) for folder in folders]
    names = [run["name"] for run in values["runs"]]
    tones = [TONES[k % len(TONES)] + (" dashed" if k >= len(TONES) else "") for k in range(len(names))]
    drawn = [(over, _charts(over, rows, names, tones)) for over in _overs(rows)]
    write_page(
        page, "runs", title=names[0] if len(names) == 1 else f"{len(names)} runs", systems=[
            {"name": name, "tone": tone} for name, tone in zip(names, tones, strict=True)],
        table=runs_table(values), best=best_of(values), options=options_table(values), notes=values["notes"],
        drawn=[(over, charts) for over, charts in drawn if charts], **chart_script(),
    )  # fmt: skip


def _timed(rows: Sequence[Row]) -> list[Row]:
    """With the seconds since the start: `seconds` of a row are those since the row before that has some."""
    passed = accumulate(row.get("seconds", 0.0) for row in rows)
    known = any("seconds" in row for row in rows)
    return [{**row, "passed": time if known else None} for row, time in zip(rows, passed, strict=True)]


def _overs(rows: Sequence[Sequence[Row]]) -> list[Over]:
    longest = max((row["passed"] or 0.0 for each in rows for row in each), default=0.0)
    unit, divisor = ("seconds", 1) if longest < 600 else ("minutes", 60) if longest < 10_800 else ("hours", 3600)

    def passed(row: Row) -> float | None:
        return None if row["passed"] is None else row["passed"] / divisor

    return [
        Over("step", "step", lambda row: row["step"], whole=True),
        Over("epoch", "epoch", lambda row: row.get("epoch")),
        Over("time", unit, passed),
    ]


def _charts(over: Over, rows: Sequence[Sequence[Row]], names: Sequence[str], tones: Sequence[str]) -> list[Chart]:
    def told(row: Row) -> str:
        return number(round(over.place(row) or 0.0, 2))

    def lines(measure: Measure) -> list[Line]:
        every = [points(each, measure, over.place, told) for each in rows]
        return [Line(name, tone=tone, **xy) for name, tone, xy in zip(names, tones, every, strict=True) if xy["x"]]

    found = [(measure, lines(measure)) for measure in LOGGED]
    last = max((line.x[-1] for _, each in found for line in each), default=0.0)
    drawn = [curves(measure, each, over.x_name, (0.0, last), over.whole) for measure, each in found]
    return [chart for chart in drawn if chart is not None]
