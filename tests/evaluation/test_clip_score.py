"""CLIPScore and its kin against a plain computation that follows the authors' program, on tiny random models."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_models import LIMIT, Plain, save_clip

from toolkit.commands.evaluate import evaluate
from toolkit.data.images import read_image
from toolkit.errors import InputError, ModelError
from toolkit.evaluation.clip_score import clip_score, with_references
from toolkit.models import vectors
from toolkit.models.clip import Clip, load_clip
from toolkit.models.vectors import Picture, VectorStore
from toolkit.options import EvaluateOptions

SAID = ["a red circle", "two dogs on a horse " * 20, "", "food on a table."]  # the second is longer than LIMIT


@pytest.fixture(scope="module")
def clip_dir(made_once: Callable) -> Path:
    return made_once("clip/model", save_clip)


@pytest.fixture(scope="module")
def legacy_dir(made_once: Callable) -> Path:
    return made_once("clip/legacy", lambda path: save_clip(path, seed=2, legacy=True))


@pytest.fixture
def images(sample_dir: Path) -> list[Path]:
    return sorted((sample_dir / "Images").iterdir())[:4]


def given(paths: list[Path]) -> list[Picture]:
    return [Picture(None, path.read_bytes) for path in paths]


def written(tmp_path: Path, images: list[Path], captions: list[str]) -> tuple[Path, Path]:
    """Captions, and references as annotations: each image's own caption and another."""
    hypotheses, references = tmp_path / "h.jsonl", tmp_path / "captions.txt"
    rows = [{"image": path.name, "caption": caption} for path, caption in zip(images, captions, strict=True)]
    hypotheses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{path.name},{text}" for path in images for text in (f"a dog and {path.stem}", "a plate of red food")]
    references.write_text("\n".join(["image,caption", *lines]) + "\n")
    return hypotheses, references


def test_formula() -> None:
    images, captions = np.array([[1.0, 0], [0, 1], [1, 0]]), np.array([[0.6, 0.8], [0, -1], [0.8, 0.6]])
    scores = clip_score(images, captions)
    assert scores == pytest.approx([1.5, 0, 2.0])
    assert clip_score(images, captions, 2.0) == pytest.approx([1.2, 0, 1.6])
    references = np.array([[0.6, -0.8], [0, 1.0], [0, 1], [-0.8, -0.6]])
    found = with_references(scores, captions, references, np.array([0, 0, 1, 2]))
    assert found == pytest.approx([2 * 1.5 * 0.8 / 2.3, 0, 0])  # the last reference is unlike its caption


@pytest.mark.parametrize("which", ["clip_dir", "legacy_dir"])
def test_vectors_are_those_of_a_plain_computation(
    which: str, request: pytest.FixtureRequest, images: list[Path]
) -> None:
    """One at a time without padding, the stock image processor, texts cut by hand."""
    directory = request.getfixturevalue(which)
    clip, plain = load_clip(str(directory), "--clip-score"), Plain(directory)
    assert clip.limit == LIMIT
    assert len(plain.tokenizer(SAID[1])["input_ids"]) > LIMIT
    seen, said = list(clip.images(given(images), 2)), clip.texts([f"A photo depicts {text}" for text in SAID])
    scores = clip_score(np.stack(seen), said)  # type: ignore[arg-type]
    expected = [plain.clip_score(path, text) for path, text in zip(images, SAID, strict=True)]
    assert scores == pytest.approx(expected, abs=2e-6)
    assert np.ptp(scores) > 0.05


def test_evaluate(clip_dir: Path, legacy_dir: Path, sample_dir: Path, images: list[Path], tmp_path: Path) -> None:
    hypotheses, references = written(tmp_path, images, SAID)
    options = EvaluateOptions(
        hypotheses=hypotheses, references=references, images=sample_dir / "Images", split="all", metrics="rouge_l",
        clip_score=str(clip_dir), pac_score=str(legacy_dir), human=True, missing="empty", resamples=20,
        per_image=tmp_path / "per.csv", page=tmp_path / "page.html",
    )  # fmt: skip
    values = evaluate(options).values
    with open(tmp_path / "per.csv", encoding="utf-8", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    for directory, name, weight in ((clip_dir, "clip_score", 2.5), (legacy_dir, "pac_score", 2.0)):
        plain = Plain(directory)
        expected = [plain.clip_score(p, t, weight) if t else 0.0 for p, t in zip(images, SAID, strict=True)]
        said = [(f"a dog and {p.stem}", "a plate of red food") for p in images]
        both = [
            plain.ref_clip_score(p, t, list(r), weight) if t else 0.0
            for p, t, r in zip(images, SAID, said, strict=True)
        ]
        for metric, numbers in ((name, expected), (f"ref_{name}", both)):
            assert [float(rows[path.name][metric]) for path in images] == pytest.approx(numbers, abs=2e-6)
            figure = values["metrics"][metric]
            assert figure["score"] == pytest.approx(np.mean(numbers), abs=2e-6)
            assert figure["low"] <= figure["score"] <= figure["high"]
        assert f"{name}(w={weight:g},{directory}," in values["signature"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "RefCLIPScore" in page
    assert "PAC-S" in page


def test_of_a_cache_whose_images_are_gone(
    clip_dir: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files while they are there, then the cache's pixels, and it says so."""
    from toolkit.cache.schema import open_cache
    from toolkit.evaluation import clip_score as module

    ids = open_cache(cache_dir)["test"].column("image_id")
    hypotheses = tmp_path / "h.jsonl"
    hypotheses.write_text("".join(json.dumps({"image_id": i, "caption": "a red circle"}) + "\n" for i in ids))
    options = EvaluateOptions(hypotheses=hypotheses, references=cache_dir, metrics="rouge_l", clip_score=str(clip_dir))
    files = evaluate(options).values
    assert ",images=files)" in files["signature"]
    assert not any("--clip-score" in note for note in files["notes"])
    monkeypatch.setattr(module, "_folder_of_cache", lambda references: None)
    pixels = evaluate(options).values
    assert ",images=cache)" in pixels["signature"]
    assert any("the model saw the cache's pixels" in note for note in pixels["notes"])
    one, other = (v["metrics"]["clip_score"]["score"] for v in (files, pixels))
    assert one == pytest.approx(other, abs=0.2)


def test_what_is_kept_is_not_computed_again(
    clip_dir: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip(str(clip_dir), "--clip-score")
    first = list(clip.images(given(images), 1)), clip.texts(SAID)

    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Clip, "_encode_images", never)
    monkeypatch.setattr(Clip, "_encode_texts", never)
    again = load_clip(str(clip_dir), "--clip-score")
    assert np.array_equal(np.stack(list(again.images(given(images[::-1]), 2)))[::-1], np.stack(first[0]))  # type: ignore[arg-type]
    assert np.array_equal(again.texts(SAID[::-1])[::-1], first[1])
    other = load_clip(str(clip_dir), "--clip-score", precision="bf16")
    assert other.key != clip.key


def test_bf16_and_unreadable_images(clip_dir: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    clip, rough = (load_clip(str(clip_dir), "--clip-score", precision=p) for p in ("fp32", "bf16"))
    exact, near = (list(c.images(given([*images, tmp_path / "bad.jpg"]), 1)) for c in (clip, rough))
    assert exact[-1] == near[-1] == "not an image"
    for one, other in zip(exact[:-1], near[:-1], strict=True):
        assert float(np.dot(one, other)) == pytest.approx(1, abs=1e-3)  # type: ignore[arg-type]
    hypotheses, references = written(tmp_path, [*images[:1], tmp_path / "bad.jpg"], SAID[:2])
    for path in images[:1]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"^--clip-score: 1 of 2 images can't be read \(bad.jpg: not an image\)"):
        evaluate(EvaluateOptions(hypotheses=hypotheses, references=references, images=tmp_path, split="all",
                                 metrics="rouge_l", clip_score=str(clip_dir)))  # fmt: skip


def test_other_models_are_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^--clip-score .*: a model of type vision-encoder-decoder, not a CLIP model"):
        load_clip(str(model_dir), "--clip-score")
    with pytest.raises(ModelError, match=r"^--clip-score .*: not a model folder \(no config.json\)"):
        load_clip(str(tmp_path), "--clip-score")


def test_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = VectorStore("one")
    store.put({f"{i}": np.full(3, i, np.float32) for i in range(1200)})
    found = VectorStore("one").get([f"{i}" for i in range(1300)])
    assert len(found) == 1200
    assert found["7"].tolist() == [7, 7, 7]
    os.utime(tmp_path / "toolkit" / "clip" / "one.sqlite", (1, 1))
    VectorStore("two").put({"a": np.ones(3, np.float32)})
    monkeypatch.setattr(vectors, "LIMIT", 20_000)
    VectorStore("two")
    assert [path.name for path in (tmp_path / "toolkit" / "clip").iterdir()] == ["two.sqlite"]
    (tmp_path / "toolkit" / "clip" / "three.sqlite").write_text("no database" * 100)
    broken = VectorStore("three")
    broken.put({"a": np.ones(3, np.float32)})
    assert list(broken.get(["a", "b"])) == ["a"]


def test_a_picture_that_is_no_file(clip_dir: Path, images: list[Path]) -> None:
    clip = load_clip(str(clip_dir), "--clip-score")
    (one,) = clip.images([Picture(None, lambda: read_image(images[0]))], 1)
    (other,) = clip.images(given(images[:1]), 1)
    assert np.allclose(one, other, atol=1e-6)  # type: ignore[arg-type]
