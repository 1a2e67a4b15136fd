"""batch-caption killed at random: the next run goes on, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import csv
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_for

from toolkit.commands.batch_caption import batch_caption
from toolkit.options import BatchCaptionOptions, GenerationOptions


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
    options = BatchCaptionOptions(
        paths=(str(folder),), model=str(model_dir), batch_size="4", num_workers=1, format="csv",
        generation=GenerationOptions(num_beams=1, max_length=8),
    )  # fmt: skip
    whole = tmp_path / "whole.csv"
    output, state = tmp_path / "out.csv", tmp_path / "out.csv.state"
    assert batch_caption(replace(options, output=whole)).exit_code == 3
    with open(whole, newline="") as file:
        assert {row["image"] for row in csv.DictReader(file) if row["error"]} == bad
    rng = random.Random(5)
    before: dict[str, str] = {}
    for moment in sorted(rng.randrange(1, images * 9 // 10) for _ in range(kills)):
        process = subprocess.Popen([*script, "--output", str(output)], stderr=subprocess.DEVNULL)
        wait_for(lambda wanted=moment: len(stored(state)) >= wanted, process)
        process.kill()
        process.wait()
        after = stored(state)
        assert before.items() <= after.items()
        before = after
    summary = batch_caption(replace(options, output=output))
    assert summary.exit_code == 3
    assert f"{images} images, {images - len(before)} captioned" in summary.text
    assert output.read_bytes() == whole.read_bytes()
    shutil.rmtree(folder)


def test_a_few_kills(tmp_path: Path, sample_dir: Path, model_dir: Path) -> None:
    kill_at_random(tmp_path, sample_dir, model_dir, images=60, kills=2)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path, sample_dir: Path, model_dir: Path) -> None:
    kill_at_random(tmp_path, sample_dir, model_dir, images=2000, kills=20)


# batch-caption with a file server that is gone: the sixth image and all that come after hang in their read.
HANGING = """
import os, sys, threading
from toolkit import cli
from toolkit.data import sources
pipe, _ = os.pipe()
real, lock, reads = sources.read_file, threading.Lock(), []
def read_file(path):
    with lock:
        reads.append(path)
        hang = len(reads) > 5
    if hang:
        os.read(pipe, 1)
    return real(path)
sources.read_file = read_file
sys.argv = ["toolkit", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_one_signal_ends_a_run_that_hangs(sample_dir: Path, model_dir: Path, tmp_path: Path, how: int) -> None:
    """Within seconds; what it has captioned until then stands."""
    folder, output = tmp_path / "pictures", tmp_path / "out.jsonl"
    folder.mkdir()
    for path in sorted((sample_dir / "Images").iterdir())[:9]:
        shutil.copy(path, folder)
    given = ["batch-caption", str(folder), "--model", str(model_dir), "--output", str(output)]
    given += ["--num-beams", "1", "--max-length", "8", "--batch-size", "2"]
    process = subprocess.Popen([sys.executable, "-c", HANGING, *given], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(stored(Path(f"{output}.state"))) >= 4, process)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + how
    assert "run the same command again to go on" in said
    assert not output.exists()
    options = BatchCaptionOptions(
        paths=(str(folder),), model=str(model_dir), output=output, batch_size="2",
        generation=GenerationOptions(num_beams=1, max_length=8),
    )  # fmt: skip
    values = batch_caption(options).values
    assert [values[name] for name in ("output", "images", "new", "errors")] == [str(output), 9, 5, 0]
