"""--by: figures of parts of the images, against those of these images alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toolkit.cache.schema import open_cache
from toolkit.commands.evaluate import evaluate
from toolkit.errors import InputError
from toolkit.evaluation.metrics import score
from toolkit.options import EvaluateOptions

SAID = {
    "a.jpg": ("dog", ["a dog runs on grass", "a brown dog runs"]),
    "b.jpg": ("cat", ["two cats sleep on a bed", "cats on a bed"]),
    "c.jpg": ("dog", ["a white dog sits", "the dog is sitting"]),
    "d.jpg": ("", ["a red ball on grass", "ball"]),
}
FOUND = {"a.jpg": "a dog runs", "b.jpg": "two cats", "c.jpg": "a dog sits", "d.jpg": "a ball on grass"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = [f"{image},{caption},{kind}" for image, (kind, said) in SAID.items() for caption in said]
    (tmp_path / "r.csv").write_text("\n".join(["image,caption,kind", *rows]))
    (tmp_path / "h.jsonl").write_text("\n".join(json.dumps({"image": i, "caption": c}) for i, c in FOUND.items()))
    return tmp_path / "h.jsonl", tmp_path / "r.csv"


def test_figures_of_a_group(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = evaluate(
        EvaluateOptions(*files, "all", by="kind", resamples=50, against=files[0], page=tmp_path / "p.html", human=True)
    )
    groups = found.values["by"]
    assert [(group["value"], group["images"]) for group in groups] == [("dog", 2), ("(none)", 1), ("cat", 1)]
    every = score(FOUND, {i: said for i, (_, said) in SAID.items()})
    dogs = ["a.jpg", "c.jpg"]
    alone = score({i: FOUND[i] for i in dogs}, {i: SAID[i][1] for i in dogs}, ["bleu", "rouge_l"]).corpus
    metrics = {name: metric["score"] for name, metric in groups[0]["metrics"].items()}
    assert {name: metrics[name] for name in alone} == pytest.approx(alone)
    at = [every.image_ids.index(i) for i in dogs]
    assert metrics["cider"] == pytest.approx(np.mean(every.per_image["cider"][at]))  # by all images' word weights
    interval = groups[0]["metrics"]["cider"]
    assert interval["low"] <= interval["score"] <= interval["high"]
    assert found.values["against"]["by"] == groups
    line = next(line for line in found.text.splitlines() if line.startswith("  dog "))
    assert line.split()[1] == "2"
    assert "\nh.jsonl by kind:\n" in found.text
    assert "by kind</h2>" in (tmp_path / "p.html").read_text()
    without = evaluate(EvaluateOptions(*files, "all", resamples=50))
    assert without.values["by"] is None
    assert "by kind" not in without.text


def test_several_values_of_an_image(files: tuple[Path, Path]) -> None:
    found = evaluate(EvaluateOptions(*files, "all", by="caption", metrics="rouge_l", resamples=5)).values["by"]
    assert len(found) == 8  # each caption is a value, as a category of several would be
    assert {group["images"] for group in found} == {1}


def test_more_groups_than_are_shown(tmp_path: Path) -> None:
    rows = [f"{n}.jpg,a dog {n},k{n}" for n in range(40)]
    (tmp_path / "r.csv").write_text("\n".join(["image,caption,kind", *rows]))
    (tmp_path / "h.jsonl").write_text(
        "\n".join(json.dumps({"image": f"{n}.jpg", "caption": "a dog"}) for n in range(40))
    )
    found = evaluate(EvaluateOptions(tmp_path / "h.jsonl", tmp_path / "r.csv", "all", by="kind", resamples=5))
    assert len(found.values["by"]) == 40
    assert "\n  10 more  10" in found.text


def test_mistakes(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"--by nothing") as error:
        evaluate(EvaluateOptions(*files, "all", by="nothing"))
    assert "--caption-column" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cache_knows_its_annotations(cache_dir: Path, sample_dir: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"image": image, "caption": "a"}) for image in open_cache(cache_dir)["test"].column("path")]
    (tmp_path / "h.jsonl").write_text("\n".join(rows))
    options = EvaluateOptions(tmp_path / "h.jsonl", cache_dir, by="caption", resamples=5, metrics="rouge_l")
    values = evaluate(options).values
    assert {group["value"] for group in values["by"]} == {
        c for said in open_cache(cache_dir)["test"].column("captions") for c in said
    }
    shutil.copytree(cache_dir, tmp_path / "cache")
    file = tmp_path / "cache" / "manifest.json"
    file.write_text(file.read_text().replace(json.dumps(str(sample_dir / "captions.txt")), '"gone/captions.txt"'))
    with pytest.raises(
        InputError, match=r"^--by caption: .*cache was made from gone/captions.txt, which is not there; put"
    ):
        evaluate(replace(options, references=tmp_path / "cache"))
