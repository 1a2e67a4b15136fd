"""Facts about several runs, side by side: how far they are, how good, and in which options they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.evaluation.shown import NAMES, SHARES, duration, figure
from toolkit.options.finetune import BEFORE
from toolkit.reports.facts.models import RUN_LOG, read_json, read_log, run_facts
from toolkit.runtime.progress import printable

SHOWN = ("loss", "cider", "bleu_4", "rouge_l", "ended", "distinct")  # in tables


def compare_runs(folders: Sequence[Path], given: Sequence[Path]) -> dict[str, Any]:
    """
    Args:
        folders: with a `RUN_LOG` each.
        given: the same as they were named; of a run that is not finished another folder.

    Raises:
        InputError: a file in one of them is damaged.
    """
    runs = [
        {"name": name, "path": f"{path}", **_run(folder)}
        for name, path, folder in zip(short_names(given), given, folders, strict=True)
    ]
    options = [run.pop("options") or {} for run in runs]
    names = dict.fromkeys(name for each in options for name in each)
    differing = {name: [each.get(name, BEFORE.get(name)) for each in options] for name in names}
    images = [run.pop("images") for run in runs]
    notes = []
    if len({str(each) for each in images}) > 1:
        notes.append("these runs were not validated on the same images: their metrics can't be compared")
    return {
        "kind": "runs",
        "runs": runs,
        "options": {n: values for n, values in differing.items() if any(v != values[0] for v in values)},
        "notes": notes,
    }


def _run(folder: Path) -> dict[str, Any]:
    facts, summary = run_facts(folder), read_json(folder / "finetune.json") or {}
    seconds = sum(row.get("seconds", 0.0) for row in read_log(folder / RUN_LOG))
    best = facts["best"] or {}
    return {
        **{name: facts[name] for name in ("finished", "steps", "epoch", "evaluations", "metric", "options")},
        "seconds": round(seconds, 1) or summary.get("seconds"),
        "best_step": summary.get("best_step") or best.get("step"),
        "validation": summary.get("validation") or {name: best[name] for name in SHOWN if name in best},
        "images": ((read_json(folder / "options.json") or {}).get("cache") or {}).get("validation"),
    }


def short_names(paths: Sequence[Path]) -> list[str]:
    """As many of the last parts of each path as tell them apart.

    >>> short_names([Path("runs/a/model"), Path("runs/b/model")])
    ['a/model', 'b/model']
    """
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


# ---- as text --------------------------------------------------------------------------------------------------------


def runs_table(values: dict[str, Any]) -> list[list[str]]:
    """A row for each run, after a row of names; metrics times 100."""
    runs = values["runs"]
    names = [name for name in SHOWN if any(name in run["validation"] for run in runs)]
    rows = [["run", "steps", "epochs", "time", "best step", *(NAMES.get(name, name) for name in names)]]
    for run in runs:
        steps = f"{run['steps']}" + ("" if run["finished"] else " so far")
        epoch = "–" if run["epoch"] is None else f"{run['epoch']:.3g}"
        best = "–" if run["best_step"] is None else f"{run['best_step']}"
        scores = [figure(n, run["validation"][n]) if n in run["validation"] else "–" for n in names]
        rows.append([run["name"], steps, epoch, duration(run["seconds"]), best, *scores])
    return rows


def options_table(values: dict[str, Any]) -> list[list[str]]:
    """A row for each option that differs, after a row of the runs' names; empty if none does."""
    if not values["options"]:
        return []
    cells = [[name, *("–" if v is None else str(v) for v in given)] for name, given in values["options"].items()]
    return [["option", *(run["name"] for run in values["runs"])], *cells]


def describe_runs(values: dict[str, Any]) -> str:
    lines = [f"{len(values['runs'])} runs; on validation, metrics times 100", *_columns(runs_table(values))]
    differing = options_table(values)
    lines += ["options that differ", *_columns(differing)] if differing else ["no option differs"]
    return "\n".join(map(printable, [*lines, *(f"note: {note}" for note in values["notes"])]))


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


BEST = dict.fromkeys((*NAMES, *SHARES), max) | {"loss": min, "loops": min}


def best_of(values: dict[str, Any]) -> set[tuple[int, int]]:
    """Row and column in `runs_table` of the best figure of each metric; none where they can't be compared."""
    rows, runs = runs_table(values), values["runs"]
    if values["notes"] or len(runs) < 2:
        return set()
    names, found = [name for name in SHOWN if any(name in run["validation"] for run in runs)], set()
    for column, name in enumerate(names, len(rows[0]) - len(names)):
        figures = {row: run["validation"][name] for row, run in enumerate(runs, 1) if name in run["validation"]}
        best = BEST[name](figures.values())
        if len(set(figures.values())) > 1:
            found |= {(row, column) for row, value in figures.items() if value == best}
    return found
