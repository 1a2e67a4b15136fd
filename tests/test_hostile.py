"""The folder that nobody should have to open (hostile.py), in the commands that read annotations: nothing hangs, each
image is told."""

from __future__ import annotations

import json
from pathlib import Path

import hostile
import pytest

import toolkit.reports.evaluation_page
import toolkit.reports.facts.stats
from toolkit.commands.evaluate import evaluate
from toolkit.commands.inspect import inspect
from toolkit.options import EvaluateOptions, InspectOptions


@pytest.mark.parametrize("near", ["3", "off"])
def test_inspect(near: str, hostile_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.reports.facts.stats, "EXAMPLES", 1000)
    expected = {**hostile.REASONS, **hostile.REASONS_OF_NAMES}
    if near == "off":  # read, but not decoded
        files = ("not a regular file", "dangling link", "missing", "leads outside", "too large: a file of")
        expected = {name: reason for name, reason in expected.items() if reason.startswith(files)}
    options = InspectOptions(hostile_dir / "captions.txt", sheet=tmp_path / "sheet.html", near_duplicates=near)
    with hostile.within():
        found = inspect(options)
    reasons = {row["path"]: row["reason"] for row in found.values["rejected"]["examples"]}
    assert found.exit_code == 3
    assert found.values["images"] == 212
    assert len(reasons) == found.values["rejected"]["count"]
    assert {name: reasons.get(name) for name in expected} == expected
    assert not set(hostile.GOOD) & set(reasons)
    assert (tmp_path / "sheet.html").stat().st_size > 10_000


def test_evaluate(hostile_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all images on the page: of each the picture, or why there is none."""
    monkeypatch.setattr(toolkit.reports.evaluation_page, "CARDS", 1000)
    names = [*hostile.GOOD, *hostile.REASONS, *hostile.REASONS_OF_NAMES]
    rows = [{"image": name, "caption": f"a picture called {name}"} for name in names]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = EvaluateOptions(
        hypotheses=tmp_path / "h.jsonl",
        references=hostile_dir / "captions.txt",
        images=hostile_dir / "Images",
        split="all",
        missing="skip",
        page=tmp_path / "page.html",
    )
    with hostile.within():
        found = evaluate(options)
    assert found.values["images"] == len(names)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    sections = page.count(f'alt="{hostile.GOOD[0]}"')
    assert sections > 0
    assert page.count("data:image/jpeg") == sections * len(hostile.GOOD)
    for name, reason in {**hostile.REASONS, **hostile.REASONS_OF_NAMES}.items():
        assert page.count(f"{name}: {reason}") == sections, name
