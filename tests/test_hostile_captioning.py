"""The hostile folder through captioning: none of its files hangs or ends a command, and each is told."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import hostile
import pytest

import toolkit.captioning.shards
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.caption import caption
from toolkit.options import BatchCaptionOptions, CaptionOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary

FAST = {"num_beams": 1, "max_length": 6, "device": "cpu"}


def captioned(images: Path, model: Path, output: Path, **more: Any) -> tuple[Summary, dict[str, dict]]:
    given = {"paths": (str(images),), "model": str(model), "output": output, "batch_size": "8", **FAST, **more}
    with hostile.within():
        summary = batch_caption(from_flat(BatchCaptionOptions, given))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert summary.values["images"] == len(rows)
    return summary, {row["image"]: row for row in rows}


def check(summary: Summary, rows: dict[str, dict]) -> None:
    assert summary.exit_code == 3
    assert {name: rows[name]["error"] for name in hostile.REASONS if name != "folder.jpg"} == {
        name: reason for name, reason in hostile.REASONS.items() if name != "folder.jpg"
    }  # a folder called so is looked into
    assert all(rows[name]["caption"] for name in hostile.GOOD)
    for row in rows.values():
        assert (row["error"] is None) == (row["caption"] is not None)
        assert row["error"] is None or (0 < len(row["error"]) < 120 and "\n" not in row["error"])


def test_batch_caption(hostile_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    page, output = tmp_path / "page.html", tmp_path / "out.jsonl"
    summary, rows = captioned(hostile_dir / "Images", model_dir, output, gallery=page, attention=True)
    check(summary, rows)
    assert page.read_text().count('"error":') == summary.values["errors"]
    again, same = captioned(hostile_dir / "Images", model_dir, output)
    assert same == rows
    # what was not opened is looked at again: FIFO, device, socket, links, the sparse file
    assert again.values["new"] == 6


def test_batch_caption_in_shards(
    hostile_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(function: Any, tasks: Any, resources: Any, progress: Any, done: Any) -> None:
        for task in tasks:
            pickle.loads(pickle.dumps(function))(task)

    monkeypatch.setitem(toolkit.captioning.shards.ENGINES, "ray", run)
    local = captioned(hostile_dir / "Images", model_dir, tmp_path / "local.jsonl")[1]
    summary, rows = captioned(hostile_dir / "Images", model_dir, tmp_path / "out.jsonl", engine="ray")
    check(summary, rows)
    assert rows == local


@pytest.mark.slow
def test_batch_caption_on_ray(hostile_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    check(*captioned(hostile_dir / "Images", model_dir, tmp_path / "out.jsonl", engine="ray", num_workers=1))


def test_caption(hostile_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = hostile_dir / "Images"
    names = [*sorted(path.name for path in images.iterdir()), *hostile.NAMED_ONLY]
    paths = tuple(f"{images}/{name}" for name in names)
    with hostile.within():
        summary = caption(from_flat(CaptionOptions, {"images": paths, "model": str(model_dir), **FAST}))  # type: ignore[arg-type]
    assert summary.exit_code == 3
    errors = {name: row["error"] for name, row in zip(names, summary.values["images"], strict=True)}
    expected = {**hostile.REASONS, "script.eps": "not an image", "gone.jpg": "missing", "../outside.jpg": "missing"}
    assert {name: errors[name] for name in expected} == expected
    assert {errors[name] for name in hostile.GOOD} == {None}
    said = capsys.readouterr().err
    assert sum(error is not None for error in errors.values()) == sum(
        f"{images}/" in line for line in said.splitlines()
    )
