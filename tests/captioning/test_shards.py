"""Captioning in shards: the rows of a run without, also after a stop; here without Ray, the shards one after another."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import toolkit.captioning.shards
from toolkit.captioning.journal import Fingerprint
from toolkit.captioning.shards import ShardCaptioner
from toolkit.commands.batch_caption import batch_caption
from toolkit.errors import OutputError, RunError
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary

SHARDS = 4


class Engine:
    """In place of Ray: each task by a fresh copy of the function, until it is stopped."""

    def __init__(self, tasks: int = 100) -> None:
        self.left, self.shared = tasks, ()

    def __call__(self, function: Any, tasks: Any, resources: Any, progress: Any, done: Any) -> None:
        self.shared = resources.shared
        for task in tasks:
            if not self.left:
                raise RunError("stopped")
            self.left -= 1
            pickle.loads(pickle.dumps(function))(task)
        assert done() == progress.total


@pytest.fixture
def images(sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """16 images: one that can't be read and one that stands in two shards among them."""
    folder = tmp_path / "images"
    folder.mkdir()
    some = sorted((sample_dir / "Images").iterdir())[:14]
    for path in some:
        shutil.copy(path, folder)
    shutil.copy(some[0], folder / f"zz{some[0].suffix}")
    (folder / "bad.jpg").write_text("no image")
    monkeypatch.setattr(toolkit.captioning.shards, "SHARD_IMAGES", 16 // SHARDS)
    return folder


def run(images: Path, model: Path, output: str, **options: Any) -> Summary:
    given: dict[str, Any] = {"paths": (str(images),), "model": str(model), "output": images.parent / output}
    return batch_caption(from_flat(BatchCaptionOptions, {**given, "batch_size": "2", **options}))


def test_the_same_rows(images: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = run(images, model_dir, "local.jsonl")
    engine = Engine()
    monkeypatch.setitem(toolkit.captioning.shards.ENGINES, "ray", engine)
    summary = run(images, model_dir, "shards.jsonl", engine="ray")
    assert engine.left == 100 - SHARDS
    assert engine.shared == (images.parent / "shards.jsonl.pieces", images)
    assert (images.parent / "shards.jsonl").read_bytes() == (images.parent / "local.jsonl").read_bytes()
    assert summary.values == {**local.values, "output": str(images.parent / "shards.jsonl")}
    assert summary.values["errors"] == 1
    assert run(images, model_dir, "shards.jsonl", engine="ray").values["new"] == 0
    assert engine.left == 100 - SHARDS
    assert not (images.parent / "shards.jsonl.pieces").exists()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_later_run_takes_finished_shards(
    images: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    run(images, model_dir, "local.jsonl")
    monkeypatch.setitem(toolkit.captioning.shards.ENGINES, "ray", Engine(3))
    with pytest.raises(RunError, match="stopped"):
        run(images, model_dir, "shards.jsonl", engine="ray")
    monkeypatch.setitem(toolkit.captioning.shards.ENGINES, "ray", Engine(1))
    summary = run(images, model_dir, "shards.jsonl", engine=engine)
    assert summary.values["new"] == 3  # of the last four one is a copy of the first
    assert (images.parent / "shards.jsonl").read_bytes() == (images.parent / "local.jsonl").read_bytes()
    assert not (images.parent / "shards.jsonl.pieces").exists()


def test_shards_of_other_settings_are_not_taken(images: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toolkit.captioning.shards.ENGINES, "ray", Engine(3))
    with pytest.raises(RunError, match="stopped"):
        run(images, model_dir, "shards.jsonl", engine="ray", num_beams=2)
    assert run(images, model_dir, "shards.jsonl").values["new"] == 15


def test_another_model_on_a_node(tmp_path: Path, model_dir: Path) -> None:
    options = BatchCaptionOptions(paths=(".",), model=str(model_dir))
    (tmp_path / "000000.todo").touch()
    function = ShardCaptioner(tmp_path, options, Fingerprint("2:other weights", ""), 1)
    with pytest.raises(
        RunError,
        match=r"--model .*: a node of the cluster has other weights, another precision \(fp32 there\)",
    ):
        function({"shard": 0})
    assert not list(tmp_path.glob("*.jsonl"))


def test_what_lies_in_the_folder_of_shards(images: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images by name alone, and nothing that could run; what is somebody else's stays."""
    odd = os.fsdecode(b"b\xff.jpg")  # no UTF-8
    shutil.copy(images / "zz.jpg" if (images / "zz.jpg").exists() else images / "zz.png", images / odd)
    monkeypatch.setitem(toolkit.captioning.shards.ENGINES, "ray", Engine(1))
    folder = images.parent / "shards.jsonl.pieces"
    with pytest.raises(RunError, match="stopped"):
        run(images, model_dir, "shards.jsonl", engine="ray")
    lines = [json.loads(line) for path in sorted(folder.glob("*.todo")) for line in path.read_text().splitlines()]
    assert sorted(line[2] for line in lines) == sorted(path.name for path in images.iterdir())
    assert {(line[0], line[1]) for line in lines} == {(str(images), None)}
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"shards.jsonl.pieces: holds files that batch-caption did not write"):
        run(images, model_dir, "shards.jsonl")
    assert len(list(folder.iterdir())) == 1 + 5 + 1
    (folder / "mine.txt").unlink()
    run(images, model_dir, "shards.jsonl")
    assert not folder.exists()
    assert odd in [json.loads(line)["image"] for line in (images.parent / "shards.jsonl").read_text().splitlines()]
