"""`toolkit caption`: lines for people, all of it as JSON, standard input and pipes, bad pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import toolkit.commands.caption
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.caption import caption
from toolkit.errors import InputError, ModelError
from toolkit.options import BatchCaptionOptions, CaptionOptions
from toolkit.options.fields import from_flat

SETTINGS = (
    "decoding with num_beams 2, max_length 12 (options); no_repeat_ngram_size 3, length_penalty 2.0, early_stopping False "
    "(the model's generation_config.json)"
)
FAST = {"max_length": 12, "num_beams": 2, "device": "cpu"}


@pytest.fixture
def folder(sample_dir: Path, tmp_path: Path) -> Path:
    for i, path in enumerate(sorted((sample_dir / "Images").glob("*.jpg"))[:3]):
        shutil.copy(path, tmp_path / f"{i}.jpg")
    (tmp_path / "bad.jpg").write_text("no picture")
    return tmp_path


@pytest.fixture
def captions(folder: Path, model_dir: Path) -> dict[str, dict]:
    """Rows of batch-caption, by file name."""
    output = folder / "rows.jsonl"
    paths = tuple(str(folder / f"{i}.jpg") for i in range(3))
    batch_caption(from_flat(BatchCaptionOptions, {"paths": paths, "model": str(model_dir), "output": output, **FAST}))  # type: ignore[arg-type]
    return {row["image"]: row for row in map(json.loads, output.read_text().splitlines())}


def options(model_dir: Path, *images: object, **more: object) -> CaptionOptions:
    return from_flat(CaptionOptions, {"images": tuple(map(str, images)), "model": str(model_dir), **FAST, **more})  # type: ignore[arg-type]


def test_lines_and_rows(folder: Path, model_dir: Path, captions: dict, capsys: pytest.CaptureFixture[str]) -> None:
    one = caption(options(model_dir, folder / "0.jpg"))
    assert (one.text, one.exit_code) == (captions["0.jpg"]["caption"], 0)
    several = caption(options(model_dir, folder / "2.jpg", folder / "bad.jpg", folder / "0.jpg", folder))
    assert several.text.splitlines() == [f"{folder}/{name}: {captions[name]['caption']}" for name in ("2.jpg", "0.jpg")]
    assert several.exit_code == 3
    assert capsys.readouterr().err.splitlines()[2:] == [  # the settings are told in each call
        f"{folder}/bad.jpg: not an image.",
        f"{folder}: not a regular file; `toolkit batch-caption` takes folders.",
    ]
    assert several.values["errors"] == 2
    rows = several.values["images"]
    assert rows[0] == {**captions["2.jpg"], "image": f"{folder}/2.jpg"}
    assert [row["error"] for row in rows] == [None, "not an image", None, "not a regular file"]
    assert list(rows[1]) == list(captions["0.jpg"])


def test_several_captions(folder: Path, model_dir: Path) -> None:
    found = caption(options(model_dir, folder / "0.jpg", num_captions=2))
    assert found.text.splitlines() == found.values["images"][0]["captions"]
    assert len(found.text.splitlines()) == 2


def test_standard_input_and_pipes(
    folder: Path, model_dir: Path, captions: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (folder / "1.jpg").read_bytes()
    with open(folder / "1.jpg", "rb") as file:
        monkeypatch.setattr(sys, "stdin", file)
        found = caption(options(model_dir, "-"))
    assert found.text == captions["1.jpg"]["caption"]
    os.mkfifo(folder / "pipe")
    writer = threading.Thread(target=(folder / "pipe").write_bytes, args=(data,))
    writer.start()
    assert caption(options(model_dir, folder / "pipe")).values["images"][0]["caption"] == captions["1.jpg"]["caption"]
    writer.join()
    # who has it open may be slow; whom nobody writes to is no image
    monkeypatch.setattr(toolkit.commands.caption, "PATIENCE", 0.0)
    reading, writing = os.pipe()
    real = os.set_blocking

    def late(*given: int) -> None:
        os.write(writing, data)
        os.close(writing)
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, "set_blocking", late)
        found = caption(options(model_dir, f"/dev/fd/{reading}"))
    assert found.values["images"][0]["caption"] == captions["1.jpg"]["caption"]
    os.close(reading)
    assert caption(options(model_dir, folder / "pipe")).values["images"][0]["error"] == "not a regular file"


def test_on_the_command_line(folder: Path, model_dir: Path, captions: dict) -> None:
    evil = "\x1b[31mred\nline.jpg"
    shutil.copy(folder / "0.jpg", folder / evil)
    flags = ["--model", str(model_dir), "--max-length", "12", "--num-beams", "2", "--device", "cpu"]
    run = [sys.executable, "-m", "toolkit", "caption"]
    with open(folder / "1.jpg", "rb") as file:
        done = subprocess.run(
            [*run, "-", evil, "bad.jpg", *flags], stdin=file, capture_output=True, text=True, cwd=folder
        )
    assert done.stdout.splitlines() == [
        f"-: {captions['1.jpg']['caption']}", f"\\x1b[31mred\\nline.jpg: {captions['0.jpg']['caption']}"
    ]  # fmt: skip
    assert (done.stderr.splitlines(), done.returncode) == ([SETTINGS, "bad.jpg: not an image."], 3)
    before = sorted(folder.iterdir())
    done = subprocess.run([*run, "0.jpg", "--json", *flags], capture_output=True, text=True, cwd=folder)
    said = json.loads(done.stdout)
    assert said.pop("settings")["num_beams"] == {"value": 2, "from": "option"}
    assert said == {"images": [captions["0.jpg"]], "errors": 0}
    assert done.stderr == SETTINGS + "\n"
    assert sorted(folder.iterdir()) == before  # writes nothing


def test_mistakes(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        caption(options(tmp_path / "nowhere", "a.jpg"))
    with pytest.raises(InputError, match="--num-captions 3: needs as many beams"):
        options(model_dir, "a.jpg", num_captions=3)
    with pytest.raises(InputError, match="--precision half"):
        options(model_dir, "a.jpg", precision="half")
