"""batch-caption killed at random: the next run goes on, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import csv
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest


def stored(state: Path) -> dict[str, str]:
    """The rows in the journal by the content of their image."""
    with suppress(sqlite3.Error):
        if state.exists():
            database = sqlite3.connect(f"file:{state}?mode=ro", uri=True)
            try:
                return dict(database.execute("SELECT content, row FROM captions"))
            finally:
                database.close()
    return {}


def kill_at_random(tmp_path: Path, sample_dir: Path, model_dir: Path, images: int, kills: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = sorted((sample_dir / "Images").iterdir())
    bad = set()
    for i in range(images):
        path = folder / f"{i:05d}.jpg"
        data = pictures[i % len(pictures)].read_bytes()
        if i % 20 == 7:
            path.write_bytes(data[: 40 + i])  # cut short, each at another place
            bad.add(path.name)
        else:
            path.write_bytes(data + str(i).encode())  # bytes after a JPEG's end: other content, the same picture
    script = [sys.executable, "-m", "toolkit", "batch-caption", str(folder), "--model", str(model_dir)]
    script += ["--num-beams", "1", "--max-length", "8", "--batch-size", "4", "--num-workers", "1", "--format", "csv"]
    whole = tmp_path / "whole.csv"
    output, state = tmp_path / "out.csv", tmp_path / "out.csv.state"
    done = subprocess.run([*script, "--output", str(whole)], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    with open(whole, newline="") as file:
        assert {row["image"] for row in csv.DictReader(file) if row["error"]} == bad
    rng = random.Random(5)
    before: dict[str, str] = {}
    for moment in sorted(rng.randrange(1, images * 9 // 10) for _ in range(kills)):
        process = subprocess.Popen([*script, "--output", str(output)], stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while len(stored(state)) < moment and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
        process.wait()
        after = stored(state)
        assert before.items() <= after.items()
        before = after
    done = subprocess.run([*script, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert f"{images} images, {images - len(before)} captioned" in done.stdout + done.stderr
    assert output.read_bytes() == whole.read_bytes()
    shutil.rmtree(folder)


def test_a_few_kills(tmp_path: Path, sample_dir: Path, model_dir: Path) -> None:
    kill_at_random(tmp_path, sample_dir, model_dir, images=60, kills=2)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path, sample_dir: Path, model_dir: Path) -> None:
    kill_at_random(tmp_path, sample_dir, model_dir, images=2000, kills=20)
