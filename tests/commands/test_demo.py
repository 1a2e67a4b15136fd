"""The main job, end to end, as a newcomer runs it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from toolkit.commands.demo import demo
from toolkit.data.scenes import judge
from toolkit.errors import OutputError
from toolkit.evaluation.metrics import score
from toolkit.options import DemoOptions

PHOTOS = Path(__file__).parents[1] / "data" / "photos"


def run(*arguments: str, cwd: Path) -> dict:
    """A command in a folder; its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *arguments, "--json"], cwd=cwd, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("source", ["sample", pytest.param("photos", marks=pytest.mark.slow)])
def test_three_bare_commands(source: str, sample_dir: Path, tmp_path: Path) -> None:
    """On drawn scenes and on a handful of real photographs with captions written by hand."""
    root = tmp_path / "mine"
    shutil.copytree(sample_dir if source == "sample" else PHOTOS, root)
    images = len(list((root / "Images").iterdir()))
    made = run("preprocess", "--preset", "tiny", cwd=root)
    assert made["images"] == images
    assert sum(made["splits"].values()) == images
    assert (made["rejected"], made["truncated"]) == (0, 0)
    splits = datasets.load_from_disk(str(root / "cache" / "dataset"))
    assert {name: len(split) for name, split in splits.items()} == made["splits"]
    trained = run("finetune", cwd=root)
    assert trained["steps"] > 0
    captioned = run("batch-caption", "Images/", cwd=root)
    assert {setting["from"] for setting in captioned.pop("settings").values()} == {"model"}
    assert captioned == {"output": "captions.jsonl", "images": images, "new": images, "errors": 0}
    rows = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == sorted(p.name for p in (root / "Images").iterdir())
    assert run("batch-caption", "Images/", cwd=root)["new"] == 0
    # the same again elsewhere: equal cache, weights and captions
    again = tmp_path / "again"
    shutil.copytree(root, again, ignore=shutil.ignore_patterns("cache", "model", "captions.jsonl*"))
    for command in (
        ["preprocess", "--preset", "tiny", "--num-workers", "1"],
        ["finetune"],
        ["batch-caption", "Images/"],
    ):
        run(*command, cwd=again)
    for name in ("captions.jsonl", "model/model.safetensors"):
        assert (again / name).read_bytes() == (root / name).read_bytes(), name
    for path in (root / "cache" / "dataset").rglob("*.*"):
        twin = again / path.relative_to(root)
        assert twin.read_bytes() == path.read_bytes(), path


def read_captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    return captions


def test_demo_at_a_small_size(tmp_path: Path) -> None:
    options = DemoOptions(directory=tmp_path / "demo", images=60, epochs=1, seed=1, num_workers=1)
    summary = demo(options)
    assert summary.values["test_images"] == len((tmp_path / "demo/data/testImages.txt").read_text().split())
    assert "toolkit preprocess\n  toolkit finetune\n  toolkit batch-caption FOLDER" in summary.text
    page = (tmp_path / "demo" / "gallery.html").read_text()
    assert page.count('{"name":') == summary.values["test_images"]
    assert "http" not in page.replace("http-equiv", "")
    assert "CIDEr" in (tmp_path / "demo" / "evaluation.html").read_text()
    # the share it reports is the judge's, by the scenes
    scenes = {s["image"]: s for s in map(json.loads, (tmp_path / "demo/data/scenes.jsonl").read_text().splitlines())}
    rows = [json.loads(line) for line in (tmp_path / "demo/captions.jsonl").read_text().splitlines()]
    references = read_captions(tmp_path / "demo/data/captions.txt")
    scores = score(
        {row["image"]: row["caption"] for row in rows}, {row["image"]: references[row["image"]] for row in rows}
    )
    assert summary.values["cider"] == round(scores.corpus["cider"], 4)
    right = sum(judge(row["caption"], scenes[row["image"]]) for row in rows)
    assert summary.values["exactly_right"] == round(right / len(rows), 4)
    assert all(scenes[row["image"]]["split"] == "test" for row in rows)
    assert demo(options).values["exactly_right"] == summary.values["exactly_right"]  # goes on, does nothing twice


def test_demo_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(OutputError, match="did not write"):
        demo(DemoOptions(directory=tmp_path))
    with pytest.raises(OutputError, match="a file or a broken link; name a folder"):
        demo(DemoOptions(directory=tmp_path / "notes"))
    assert os.listdir(tmp_path) == ["notes"]


@pytest.mark.slow
def test_demo_learns(tmp_path: Path) -> None:
    """The promise of the README: at least 95 % of the captions of unseen combinations exactly right, all ended."""
    summary = demo(DemoOptions(directory=tmp_path / "demo"))
    assert summary.values["exactly_right"] >= 0.95
    assert (summary.values["ended"], summary.values["loops"]) == (1.0, 0.0)
