"""What batch-caption knows from earlier runs: whose caption it is, and what made it; also in journals of toolkit 0.1."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from transformers import AutoImageProcessor, GenerationConfig

from toolkit.captioning import pipeline
from toolkit.captioning.captioner import load_captioner
from toolkit.commands.batch_caption import batch_caption
from toolkit.data import sources
from toolkit.errors import OutputError
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary

FAST = {"num_beams": 2, "max_length": 12}


@pytest.fixture
def folder(pictures: Callable[[int], Path]) -> Path:
    return pictures(5)


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "model"


def run(folder: Path, model: Path, **more: Any) -> Summary:
    given = {"paths": (str(folder),), "model": str(model), "output": folder.parent / "out.jsonl", **FAST, **more}
    return batch_caption(from_flat(BatchCaptionOptions, given))


def rows(folder: Path) -> dict[str, dict]:
    lines = (folder.parent / "out.jsonl").read_text().splitlines()
    return {row["image"]: row for row in map(json.loads, lines)}


def test_two_folders_with_files_of_one_name_size_and_time(folder: Path, model_dir: Path, tmp_path: Path) -> None:
    """Told apart by their widths, which the rows have."""
    sizes = {"one": (40, 30), "two": (30, 40)}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.ppm").write_bytes(b"P6 %d %d 255\n" % size + bytes(3 * 40 * 30))
        os.utime(tmp_path / name / "a.ppm", ns=(1, 1))
    for name, size in sizes.items():
        assert run(folder, model_dir, paths=(str(tmp_path / name),)).values["new"] == 1
        assert (rows(folder)["a.ppm"]["width"], rows(folder)["a.ppm"]["height"]) == size
    # the same folder by another name is the same folder
    (tmp_path / "link").symlink_to("one")
    seen: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read_file", seen.append)
        assert run(folder, model_dir, paths=(str(tmp_path / "link" / "..") + "/one",)).values["new"] == 0
        assert run(folder, model_dir, paths=(str(tmp_path / "link"),)).values["new"] == 0
    assert seen == []


def test_what_decides_a_caption(folder: Path, model: Path) -> None:
    """Each of these alone makes captions anew, and going back to it brings the old ones back."""

    def settings(**more: Any) -> None:
        config = GenerationConfig.from_pretrained(model)
        config.update(**more)
        config.save_pretrained(model)

    def mean(*value: float) -> None:
        processor = AutoImageProcessor.from_pretrained(model, backend="pil")
        processor.image_mean = value
        processor.save_pretrained(model)

    def end(word: str) -> None:
        text = (model / "tokenizer.json").read_text()
        (model / "tokenizer.json").write_text(text.replace('"content": "<|endoftext|>"', f'"content": "{word}"'))

    assert run(folder, model).values["new"] == 6
    for file, change in (
        ("generation_config.json", lambda: settings(repetition_penalty=5.0)),
        ("preprocessor_config.json", lambda: mean(0.1, 0.5, 0.9)),
        ("tokenizer.json", lambda: end("<|end|>")),
    ):
        before = (model / file).read_bytes()
        change()
        assert (model / file).read_bytes() != before
        assert run(folder, model).values["new"] == 6, file
        (model / file).write_bytes(before)
        assert run(folder, model).values["new"] == 0, file
    assert run(folder, model, precision="bf16").values["new"] == 6
    # what an option overrides, or does not use, decides nothing
    settings(max_length=7)
    assert run(folder, model).values["new"] == 0
    (model / "README.md").write_text("other words")
    assert run(folder, model).values["new"] == 0


def test_a_raised_version_of_decoding(folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, model_dir)
    monkeypatch.setattr("toolkit.__version__", "9.9")
    assert run(folder, model_dir).values["new"] == 0
    monkeypatch.setattr(pipeline, "DECODING_VERSION", 99)
    assert run(folder, model_dir).values["new"] == 6


# ---- journals of toolkit 0.1 ------------------------------------------------------------------------------------------


FORMER = {
    "num_beams": 4, "max_length": 50, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "early_stopping": "false",
    "sample": False, "top_k": 50, "top_p": 1.0, "temperature": 1.0, "num_captions": 1, "seed": 42,
}  # fmt: skip


def former_maker(model: Path, **more: Any) -> str:
    """As toolkit 0.1 made it: xxh3 over weights, then version, options and precision as JSON."""
    captioner = load_captioner(model, "cpu")
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(captioner.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    given = {**FORMER, **FAST, **more}
    digest.update(json.dumps(["0.1.0", given, "torch.float32"], sort_keys=True).encode())
    return digest.hexdigest()


def write_former(folder: Path, maker: str, written: str = "out.jsonl") -> None:
    """A journal of toolkit 0.1 that says "said before" of each image, and "not an image" of the bad one."""
    database = sqlite3.connect(folder.parent / "out.jsonl.state")
    database.executescript(
        """
        CREATE TABLE captions (content TEXT, maker TEXT, row TEXT, PRIMARY KEY (content, maker)) WITHOUT ROWID;
        CREATE TABLE files (name BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content TEXT) WITHOUT ROWID;
        CREATE TABLE written (path BLOB PRIMARY KEY) WITHOUT ROWID;
        """
    )
    for path in folder.iterdir():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        row = {"image": path.name, "caption": f"said before of {path.name}", "score": -1.0, "ended": True, "error": None,
               "width": 9, "height": 9}  # fmt: skip
        if path.name == "bad.jpg":
            row = {**dict.fromkeys(row), "image": path.name, "error": "not an image"}
        database.execute("INSERT INTO captions VALUES (?, ?, ?)", (content, maker, json.dumps(row)))
        state = path.stat()
        database.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?)", (path.name.encode(), state.st_size, state.st_mtime_ns, content)
        )
    database.execute("INSERT INTO written VALUES (?)", (written.encode(),))
    database.commit()
    database.close()


def test_rows_of_a_former_journal_serve(folder: Path, model: Path) -> None:
    write_former(folder, former_maker(model))
    summary = run(folder, model)
    assert (summary.values["new"], summary.values["uncompared"], summary.values["errors"]) == (0, 6, 1)
    assert rows(folder)["3.jpg"]["caption"] == "said before of 3.jpg"
    assert (
        "6 captions were made by toolkit 0.1 with the same weights and options; whether its tokenizer" in summary.text
    )
    assert run(folder, model).values["uncompared"] == 6  # it stays so
    # from here on the tokenizer counts
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace('"content": "<|endoftext|>"', '"content": "<|end|>"'))
    summary = run(folder, model)
    assert (summary.values["new"], "uncompared" in summary.values) == (6, False)
    assert "said before" not in (folder.parent / "out.jsonl").read_text()


def test_a_former_journal_knows_no_folders(folder: Path, model: Path, tmp_path: Path) -> None:
    """The same name, size and time in another folder, but another image."""
    write_former(folder, former_maker(model))
    (tmp_path / "other").mkdir()
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        (tmp_path / "other" / path.name).write_bytes(data)
        os.utime(tmp_path / "other" / path.name, ns=(1, path.stat().st_mtime_ns))
    summary = run(folder, model, paths=(str(tmp_path / "other"),))
    assert summary.values["new"] == 6
    assert "said before" not in (folder.parent / "out.jsonl").read_text()


def test_a_former_journal_by_other_options(folder: Path, model: Path) -> None:
    write_former(folder, former_maker(model, num_beams=3))
    summary = run(folder, model)
    assert (summary.values["new"], "uncompared" in summary.values) == (6, False)
    assert "6 had a caption by toolkit 0.1 with other weights or options, and were captioned again" in summary.text
    assert "earlier toolkit" not in run(folder, model).text


def test_a_state_file_of_another_program(folder: Path, model_dir: Path) -> None:
    state = folder.parent / "out.jsonl.state"
    database = sqlite3.connect(state)
    database.execute("CREATE TABLE mine (x)")
    database.commit()
    database.close()
    before = state.read_bytes()
    with pytest.raises(OutputError, match=r"out.jsonl.state: is a database of another program"):
        run(folder, model_dir)
    state.write_text("my notes, long enough for a header that is none " * 40)
    with pytest.raises(OutputError, match=r"out.jsonl.state: can't be used"):
        run(folder, model_dir)
    assert before != b""
    assert state.read_text().startswith("my notes")
    (folder.parent / "out.jsonl.lock").write_text("mine")
    with pytest.raises(OutputError, match=r"needs out.jsonl.lock beside it, which toolkit did not write"):
        run(folder, model_dir)
    assert (folder.parent / "out.jsonl.lock").read_text() == "mine"
