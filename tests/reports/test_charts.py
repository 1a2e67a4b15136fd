"""Charts: round ticks, points where they belong, the least and greatest kept of many; and in a browser the values told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest

from toolkit.reports.charts import MOST, Line, Measure, curves, histogram, ticks, within
from toolkit.reports.runs_page import write_runs_page
from toolkit.reports.training_report import run_charts
from toolkit.runtime.overwrite import Output, is_page

needs_browser = pytest.mark.skipif(browser.PATH is None, reason="needs Chromium")


@pytest.mark.parametrize("low", [-3.7, 0.0, 0.0003, 2.1, 99.9])
@pytest.mark.parametrize("width", [1e-6, 0.31, 1.0, 7.0, 123456.0])
def test_ticks(low: float, width: float) -> None:
    found = ticks(low, low + width)
    steps = np.diff(found)
    assert found[0] <= low + 1e-9 * width
    assert found[-1] >= low + width - 1e-9 * width
    assert np.allclose(steps, steps[0], rtol=1e-6)
    mantissa = float(f"{steps[0]:e}".partition("e")[0])
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-4
    assert 3 <= len(found) <= 7
    assert len(within(low, low + width)) >= 2
    assert all(step >= 1 for step in np.diff(ticks(0, 3, whole=True)))


def test_a_curve() -> None:
    measure = Measure("eval_cider", "CIDEr", 100)
    lines = [Line("a", [10, 20], [20.0, 60.0], tone="one"), Line("b", [], []), Line("c", [40], [40.0], tone="two")]
    chart = curves(measure, lines, "step", (0, 40), whole=True)
    assert chart is not None
    assert [label for _, label in chart.x_ticks] == ["0", "10", "20", "30", "40"]
    assert chart.y_ticks == [(0.0, "20"), (25.0, "30"), (50.0, "40"), (75.0, "50"), (100.0, "60")]
    one, two = chart.lines
    assert (one.points, one.told_x, one.told_y) == ("25.00,100.00 50.00,0.00", "10|20", "20.0|60.0")
    assert (two.points, two.dots) == ("100.00,50.00", "M100.00,50.00h0")
    assert chart.last == ""
    assert curves(measure, lines[1:2], "step", (0, 1)) is None


@pytest.mark.parametrize(("value", "bottom", "top"), [(0.0, "0%", "1%"), (100.0, "90%", "100%")])
def test_a_share_that_never_changes(value: float, bottom: str, top: str) -> None:
    chart = curves(Measure("ended", "", 100, "%"), [Line("", [1, 2], [value, value])], "step", (0, 2))
    assert chart is not None
    assert (chart.y_ticks[0][1], chart.y_ticks[-1][1], chart.last) == (bottom, top, f"{value:.1f}%")


def test_of_many_points_the_peaks_stay() -> None:
    values = [0.0] * 10_000
    values[5_003], values[7_001] = 9.0, -9.0
    chart = curves(Measure("loss", ""), [Line("", range(10_000), values)], "step", (0, 9_999))
    assert chart is not None
    told = chart.lines[0].told_y.split("|")
    assert {"9", "-9"} <= set(told)
    assert len(told) <= MOST + 2
    assert chart.lines[0].told_x.split("|")[-1] == "9999"


def test_a_histogram() -> None:
    rows = [("a", "one", np.array([1, 3])), ("b", "two", np.array([0, 0]))]
    chart = histogram("Words", rows, [-0.5, 0.5, 1.5], ["0", "1"], "words")
    assert chart.y_ticks[-1] == (100.0, "80%")
    assert (chart.lines[0].told_y, chart.lines[0].points) == ("25.0%|75.0%", "25.00,68.75 75.00,6.25")
    assert chart.lines[0].outline == "M0,100 H0.00 V68.75 H50.00 V6.25 H100 V100 Z"


LOG = [
    {"step": 10, "epoch": 0.5, "loss": 3.0, "seconds": 40.0},
    {"step": 20, "epoch": 1.0, "loss": 2.5, "seconds": 60.0},
    {"step": 20, "epoch": 1.0, "eval_loss": 2.5, "eval_cider": 0.379},
    {"step": 40, "epoch": 2.0, "loss": float("inf"), "seconds": 60.0},
    {"step": 40, "epoch": 2.0, "eval_loss": 2.0, "eval_cider": 0.41},
    {"step": 40, "epoch": 2.0, "eval_loss": 9.0, "eval_cider": 0.9, "final": 20},
]


def test_the_curves_of_a_run() -> None:
    """On the scale of evaluate, over one axis; without the evaluation after training, and without what is not finite."""
    charts = {chart.title: chart for chart in run_charts(LOG)}
    assert list(charts) == ["training loss, nats a token", "validation loss, nats a token", "validation CIDEr"]
    cider = charts["validation CIDEr"]
    assert (cider.last, cider.lines[0].told_y) == ("41.0", "37.9|41.0")
    assert cider.lines[0].told_x == "20 (epoch 1)|40 (epoch 2)"
    assert {chart.x_ticks[-1] for chart in charts.values()} == {(100.0, "40")}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toolkit.reports.facts.runs import compare_runs

    folder, folders = tmp_path_factory.mktemp("page"), []
    for number, name in enumerate(("<b>one", "two")):
        (folder / name).mkdir()
        rows = [{**row, "step": row["step"] * (number + 1)} for row in LOG]
        (folder / name / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(folder / name)
    out = folder / "runs.html"
    write_runs_page(Output("--page", out, ours=is_page("runs")), folders, compare_runs(folders, folders))
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def pointed(chart: int, share: float) -> str:
    """What is told with the pointer at a place from left to right of a chart that is shown."""
    return f"""(() => {{
      const plot = [...document.querySelectorAll('.plot')].filter((e) => e.offsetParent)[{chart}];
      const box = plot.getBoundingClientRect();
      const at = {{clientX: box.left + {share} * box.width, clientY: box.top + 5, bubbles: true}};
      plot.dispatchEvent(new PointerEvent('pointermove', at));
      return [...plot.querySelector('.tip').children].map((e) => e.textContent.trim());
    }})()"""


SHOWN = "[...document.querySelectorAll('.charts')].filter((e) => e.offsetParent !== null).length"


@needs_browser
def test_values_under_the_pointer(chromium: browser.Browser, page: Path) -> None:
    chromium.messages.clear()
    for width, dark in ((1280, False), (390, True)):
        chromium.screen(width, 900, dark)
        chromium.open(page)
        assert chromium.run(pointed(2, 0.5)) == ["step 40", "<b>one41.0", "two37.9"]
        assert chromium.run(pointed(2, 0.27)) == ["step 20", "<b>one37.9", "two at 4037.9"]
        assert chromium.run("document.documentElement.scrollWidth") <= width
        assert chromium.run(SHOWN) == 1
        assert chromium.run("getComputedStyle(document.body).backgroundColor") == (
            "rgb(22, 22, 24)" if dark else "rgb(250, 250, 248)"
        )
    chromium.run("document.querySelector('label[for=time]').click()")
    assert chromium.run(SHOWN) == 1
    assert chromium.run(pointed(2, 1.0))[0] == "seconds 160"
    chromium.run("[...document.querySelectorAll('.plot')].filter((e) => e.offsetParent)[2].focus()")
    chromium.press("ArrowLeft")
    assert chromium.run("document.activeElement.querySelector('.tip small').textContent") == "seconds 100"
    chromium.press("ArrowRight")
    assert chromium.run("document.activeElement.querySelector('.tip small').textContent") == "seconds 160"
    assert chromium.messages == []


@needs_browser
def test_without_a_script(chromium: browser.Browser, page: Path) -> None:
    """The same curves, with their axes; other axes of x are chosen without it too."""
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.screen(1280, 900)
        chromium.open(page)
        chromium.run("document.getElementById('epoch').click()")
        assert chromium.run(SHOWN) == 1
        assert chromium.run("document.querySelectorAll('.charts.epoch polyline').length") == 6
        assert "0.5" in chromium.run("document.querySelector('.charts.epoch .plot').innerText")
        assert chromium.run("document.querySelector('.tip')") is None
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
