"""docs/guide.md: every command as it is printed, in its order, in a new folder."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.data.reviews import Action, Review

PAGE = Path(__file__).parents[1] / "docs" / "guide.md"


def commands() -> list[str]:
    return re.findall(r"(?m)^    (.+)$", PAGE.read_text(encoding="utf-8"))


def test_the_page_has_the_whole_way() -> None:
    told = [line.split()[1] for line in commands() if line.startswith("toolkit ")]
    steps = [
        "sample",
        "preprocess",
        "finetune",
        "batch-caption",
        "evaluate",
        "review",
        "preprocess",
        "finetune",
        "batch-caption",
    ]
    rest = iter(told)
    assert all(step in rest for step in steps), told


@pytest.mark.slow
def test_every_command(tmp_path: Path) -> None:
    """Where a person would correct a caption on the page, the test does: the first of a train image."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "toolkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m toolkit "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    folder, outputs = tmp_path, list[str]()
    for line in commands():
        if line.startswith("cd "):
            folder /= line.removeprefix("cd ")
        elif line.startswith("toolkit review") and "--export" not in line:
            look(line, folder, environment)
        else:
            done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
            outputs.append(done.stdout)
    assert any("1 captions edited and 0 images rejected" in output for output in outputs)
    assert "difference" in outputs[-1]
    with open(folder / "corrected.csv", encoding="utf-8", newline="") as file:
        assert {row["source"] for row in csv.DictReader(file)} == {"model"}


def look(line: str, folder: Path, environment: dict[str, str]) -> None:
    """Opens the page and ends it; of the cache's captions one is edited."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {line}"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as page:
        assert page.stderr is not None
        try:
            said = next((text for text in page.stderr if text.startswith("review at http://")), None)
            assert said is not None, line
            if "cache/dataset --split train" in line:
                name = (folder / "trainImages.txt").read_text().split("\n")[0]
                with open(folder / "captions.txt", encoding="utf-8", newline="") as file:
                    caption = next(row["caption"] for row in csv.DictReader(file) if row["image"] == name)
                edited = Action(name, "edit", "a shape that I saw", caption)
                Review(folder / "cache" / "dataset.review").append([edited])
        finally:
            page.send_signal(signal.SIGINT)
            page.stderr.read()
