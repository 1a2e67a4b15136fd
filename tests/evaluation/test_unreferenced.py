"""evaluate without references: the figures by a CLIP model and of the captions themselves, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_models import Plain, save_clip

from toolkit.commands.evaluate import evaluate
from toolkit.errors import InputError
from toolkit.evaluation.diversity import diversity
from toolkit.evaluation.metrics import prepare
from toolkit.evaluation.tokenizers import PTB
from toolkit.options import EvaluateOptions
from toolkit.outputs.tables import read_captions

SAID = {
    "one/a.jpg": ["a red circle", "a red circle on blue"],
    "one/b.jpg": ["two dogs on a horse", "a horse"],
    "c.jpg": ["food on a table and a table and a table and a table and a table", "a dog"],
}


@pytest.fixture(scope="module")
def clip_dir(made_once: Callable) -> Path:
    return made_once("clip/model", save_clip)


@pytest.fixture
def folder(sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images and their captions as batch-caption writes them, here."""
    pictures = sorted((sample_dir / "Images").iterdir())
    for name, picture in zip(SAID, pictures, strict=False):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / "photos" / name)
    rows: list[dict[str, Any]] = [
        {"image": name, "caption": said[0], "captions": said, "ended": name != "c.jpg", "weak": name == "c.jpg"}
        for name, said in SAID.items()
    ]
    rows.append({"image": "bad.jpg", "caption": None, "error": "truncated"})
    (tmp_path / "photos" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def run(folder: Path, clip_dir: Path, **more: Any) -> dict[str, Any]:
    given = {"hypotheses": folder / "captions.jsonl", "clip_score": str(clip_dir), "resamples": 20, **more}
    return evaluate(EvaluateOptions(**given)).values


def test_figures(folder: Path, clip_dir: Path) -> None:
    texts, plain = folder.parent / "texts", Plain(clip_dir)
    for name in SAID:
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / name).with_suffix(".txt").write_text("a photo of something")
    given = {
        "pac_score": str(clip_dir),
        "by": "weak",
        "against": texts,
        "page": Path("p.html"),
        "per_image": Path("p.csv"),
    }
    values = run(folder, clip_dir, **given)
    expected = {name: plain.clip_score(folder / name, said[0]) for name, said in SAID.items()}
    others = [plain.clip_score(folder / name, "a photo of something") for name in SAID]
    table = read_captions("p.csv").set_index("image")
    assert table["clip_score"].to_dict() == pytest.approx(expected, abs=2e-6)
    assert list(values["metrics"]) == ["clip_score", "pac_score"]
    mean = float(np.mean(list(expected.values())))
    assert values["metrics"]["clip_score"]["score"] == pytest.approx(mean, abs=2e-6)
    assert values["metrics"]["pac_score"]["score"] == pytest.approx(mean * 2 / 2.5, abs=2e-6)
    assert values["against"]["differences"]["clip_score"]["score"] == pytest.approx(np.mean(others) - mean, abs=2e-6)
    groups = {group["value"]: group for group in values["by"]}
    assert {value: group["images"] for value, group in groups.items()} == {"false": 2, "true": 1}
    assert groups["true"]["metrics"]["clip_score"]["score"] == pytest.approx(expected["c.jpg"], abs=2e-6)
    health = values["health"]
    assert (health["ended"], health["loops"], health["distinct"]) == (2 / 3, 1 / 3, 1.0)
    assert values["images"] == 3
    assert (values["references"], values["split"], values["references_health"]) == (None, None, None)
    assert values["notes"][0].startswith("without references (cache/dataset is not there): BLEU, ROUGE-L, CIDEr,")
    assert "|tok:ptb-corenlp-3.4.1|idf:captions|split:all|images:3/4|refs:0|" in values["signature"]
    corpus = {name: [*said, said[0]] for name, said in SAID.items()}
    by_captions = diversity(SAID, prepare(corpus), PTB)
    assert by_captions is not None
    assert values["diversity"]["self_cider"] == pytest.approx(by_captions.self_cider)
    page = Path("p.html").read_text(encoding="utf-8")
    assert "RefCLIPScore" not in page.replace(values["notes"][0], "")
    assert "against" not in page.split("</h1>")[0]


@pytest.mark.parametrize("form", ["coco", "imagefolder"])
def test_other_forms(form: str, folder: Path, clip_dir: Path) -> None:
    """Image ids that are names without suffix; metadata of the images' own folder."""
    if form == "coco":
        (folder / "one" / "7.jpg").write_bytes((folder / "c.jpg").read_bytes())
        path = folder / "one" / "results.json"
        path.write_text(json.dumps([{"image_id": 7, "caption": SAID["c.jpg"][0]}]))
    else:
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "c.jpg", "text": SAID["c.jpg"][0]}) + "\n")
        path = folder
    values = run(folder, clip_dir, hypotheses=path)
    expected = Plain(clip_dir).clip_score(folder / "c.jpg", SAID["c.jpg"][0])
    assert values["metrics"]["clip_score"]["score"] == pytest.approx(expected, abs=2e-6)
    elsewhere = run(folder, clip_dir, hypotheses=path, images=path.parent if form == "coco" else path)
    assert elsewhere["metrics"] == values["metrics"]


def test_asked_for_beside_a_cache(folder: Path, clip_dir: Path, cache_dir: Path) -> None:
    (folder.parent / "cache").mkdir()
    Path("cache/dataset").symlink_to(cache_dir)
    with pytest.raises(InputError, match=r"none of its 4 captions belongs to an image of cache/dataset"):
        run(folder, clip_dir)
    values = run(folder, clip_dir, references="none")
    assert values["notes"][0].startswith("without references (--references none): ")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"metrics": "cider"}, r"^--metrics cider: needs references, and there are none \(cache/dataset is not there\);"),
        ({"split": "all"}, "^--split all: needs references"),
        ({"human": True, "references": "none"}, r"^--human True: needs references, and there are none \(--references none"),
        ({"by": "place"}, r"^--by place: without references it names a column of the captions, and .*captions.jsonl has none"),
        ({"images": "nowhere"}, "^--images nowhere: no such folder"),
        ({"references": "other"}, "^--references other: no such file or folder"),
        ({"clip_score": None}, "^--references cache/dataset: no such .*; where there are no references, name a CLIP model with"),
        ({"clip_score": None, "references": "none"}, "^--references none: needs a CLIP model to judge by; name one"),
        ({"model": "m", "hypotheses": None, "references": "none"}, "^--references none: --model captions the pixels of a cache"),
    ],
)  # fmt: skip
def test_mistakes(given: dict[str, Any], sentence: str, folder: Path, clip_dir: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        run(folder, clip_dir, **given)


def test_images_that_are_not_found(folder: Path, clip_dir: Path) -> None:
    alone = folder.parent / "captions.jsonl"
    shutil.move(folder / "captions.jsonl", alone)
    with pytest.raises(
        InputError, match=r"its images \(the first is one/a.jpg\) are not found beside it; name .* --images"
    ):
        run(folder, clip_dir, hypotheses=alone)
    assert run(folder, clip_dir, hypotheses=alone, images=folder)["images"] == 3
