"""Drawn scenes: what is written is what is drawn, and captions can be judged."""

from __future__ import annotations

import csv
import json
import os
import random
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.data.annotations import read_annotations
from toolkit.data.drawing import draw_sample, draw_scene
from toolkit.data.scenes import COLOURS, INVERSE, POSITIONS, SHAPES, captions_of, combination, judge, make_scene
from toolkit.errors import OutputError


def scenes_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "scenes.jsonl").read_text().splitlines()]


def test_files(sample_dir: Path) -> None:
    scenes = scenes_of(sample_dir)
    with open(sample_dir / "captions.txt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * len(scenes) == 240
    assert sorted(p.name for p in (sample_dir / "Images").iterdir()) == sorted(s["image"] for s in scenes)
    assert {p.suffix for p in (sample_dir / "Images").iterdir()} == {".jpg", ".png"}
    for name, split in (("trainImages.txt", "train"), ("devImages.txt", "validation"), ("testImages.txt", "test")):
        assert (sample_dir / name).read_text().split() == [s["image"] for s in scenes if s["split"] == split]
    for scene in scenes:
        with Image.open(sample_dir / "Images" / scene["image"]) as image:
            assert image.size == (scene["width"], scene["height"])
    assert any('"' in line for line in (sample_dir / "captions.txt").read_text().splitlines())  # quoted commas


@pytest.mark.parametrize("images", [1, 2, 6])
def test_a_handful_of_images_is_a_data_set(images: int, tmp_path: Path) -> None:
    """It can be read as it stands: a split that got no image has no list, for an empty list is a mistake."""
    draw_sample(tmp_path / "few", images=images, seed=42)
    scenes = scenes_of(tmp_path / "few")
    records = list(read_annotations(tmp_path / "few", tmp_path / "few" / "Images").records)
    assert [(record.path, record.split) for record in records] == [(s["image"], s["split"]) for s in scenes]
    assert len(records) == images
    assert not (tmp_path / "few" / "testImages.txt").exists()


def test_same_seed_same_bytes(sample_dir: Path, tmp_path: Path) -> None:
    draw_sample(tmp_path / "fewer", images=20, seed=7)  # image i does not depend on how many follow
    for path in (tmp_path / "fewer" / "Images").iterdir():
        assert path.read_bytes() == (sample_dir / "Images" / path.name).read_bytes()
    assert scenes_of(tmp_path / "fewer") == scenes_of(sample_dir)[:20]
    draw_sample(tmp_path / "other", images=20, seed=8)
    assert scenes_of(tmp_path / "other") != scenes_of(tmp_path / "fewer")


def test_combinations_of_test_never_occur_in_train() -> None:
    seen: dict[str, set[str]] = {}
    for i in range(4000):
        scene = make_scene(i, random.Random(i))
        seen.setdefault(scene["split"], set()).add(
            combination([(o["colour"], o["shape"]) for o in scene["objects"]], scene["says"])
        )
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert min(len(s) for s in seen.values()) > 20
    # but every object of the test scenes is known from train, on its own or beside another
    kinds = {split: {kind for name in names for kind in name.split(" & ")[:1]} for split, names in seen.items()}
    assert kinds["test"] <= kinds["train"]


def test_pictures_show_what_scenes_say() -> None:
    for i in range(60):
        scene, picture = draw_scene(i, seed=3)
        pixels = np.asarray(picture).astype(int)
        for item in scene["objects"]:
            x, y = (
                round(item["centre"][0]),
                round(item["centre"][1] - (item["shape"] == "ring") * 0.75 * item["radius"]),
            )
            near = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
            distances = {name: np.abs(near - colour).sum() for name, colour in COLOURS.items()}
            assert min(distances, key=distances.get) == item["colour"]  # type: ignore[arg-type]
            left, top, right, bottom = item["bbox"]
            assert 0 <= left < item["centre"][0] < right <= scene["width"]
            assert 0 <= top < item["centre"][1] < bottom <= scene["height"]
            assert max(right - left, bottom - top) <= 2 * 1.15 * item["radius"] + 3
        if len(scene["objects"]) == 2:
            (ax, ay), (bx, by) = (o["centre"] for o in scene["objects"])
            assert ax < bx if scene["says"] == "to the left of" else ay < by


def flips(caption: str) -> list[str]:
    """The caption with one size, colour, shape, position or relation another, each in every possible way."""
    groups = [("small", "large"), ("little", "big"), tuple(COLOURS), SHAPES, tuple(POSITIONS), tuple(INVERSE)]
    found = []
    for group in groups:
        for word in group:
            parts = re.split(rf"\b{word}\b", caption)
            for at in range(1, len(parts)):
                before, after = word.join(parts[:at]), word.join(parts[at:])
                found += [before + other + after for other in group if other != word]
    return found


def test_flips_reach_every_attribute() -> None:
    assert len(flips("a small red ring above a large blue cross")) == 2 * (1 + 5 + 3) + 3
    assert len(flips("a big red ring , in the middle")) == 1 + 5 + 3 + 4


def test_judge_accepts_every_wording_and_no_other_scene() -> None:
    scenes = [make_scene(i, random.Random(i)) for i in range(150)]
    for scene in scenes:
        captions = captions_of(scene)
        assert len(set(captions)) == 5
        assert all(judge(caption, scene) for caption in captions)
        for caption in captions:
            words = caption.split()
            for flipped in flips(caption):
                assert not judge(flipped, scene), flipped
            assert not judge(caption + " " + caption, scene)
            assert not judge(" ".join(words[:-1]), scene)
    for scene, other in pairwise(scenes):
        same = (scene["objects"], scene["says"]) == (other["objects"], other["says"])
        assert same or not any(judge(caption, scene) for caption in captions_of(other))
    assert not judge("", scenes[0])


def test_judge_turns_relations_round() -> None:
    items = [
        {"shape": "ring", "colour": "red", "size": "small"},
        {"shape": "cross", "colour": "blue", "size": "large"},
    ]
    scene = {"objects": items, "says": "above"}
    assert judge("a small red ring above a large blue cross", scene)
    assert judge("there is a big blue cross below a little red ring", scene)
    assert not judge("a small red ring below a large blue cross", scene)
    assert not judge("a large blue cross above a small red ring", scene)


def test_no_caption_repeats_three_words() -> None:
    """Decoding forbids it by default (no_repeat_ngram_size 3), so the truth may not need it."""
    for i in range(300):
        for caption in captions_of(make_scene(i, random.Random(i))):
            words = caption.split()
            grams = [tuple(words[k : k + 3]) for k in range(len(words) - 2)]
            assert len(grams) == len(set(grams)), caption


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(OutputError, match="not an empty folder"):
        draw_sample(tmp_path / "mine", 3, 0)
    with pytest.raises(OutputError, match="not an empty folder"):
        draw_sample(tmp_path / "mine" / "file", 3, 0)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "file"]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that the user stands in, which stays the same folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = os.stat(".").st_ino
    draw_sample(Path("."), 3, 0)
    draw_sample(tmp_path / "deep" / "there", 3, 0)
    assert os.stat(".").st_ino == before == (tmp_path / "here").stat().st_ino
    names = ["Images", "captions.txt", "scenes.jsonl", "trainImages.txt"]  # all three are for training
    assert sorted(os.listdir(".")) == sorted(os.listdir(tmp_path / "deep" / "there")) == names
    assert sorted(os.listdir(tmp_path)) == ["deep", "here"]


def test_an_interrupted_sample_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.partial").mkdir()  # a neighbour of the user's
    (tmp_path / "data.partial" / "file").write_text("x")
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):

        def broken(index: int, seed: int, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("toolkit.data.drawing.draw_scene", broken)
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
            draw_sample(tmp_path / "data", 3, 0)
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["data.partial", "file"]
