"""Several captions of an image: figures against plain Python, numpy's SVD and pycocoevalcap's vectors."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.commands.evaluate import evaluate
from toolkit.evaluation.diversity import diversity
from toolkit.evaluation.hypotheses import read_hypotheses
from toolkit.evaluation.metrics import prepare
from toolkit.evaluation.tokenizers import PTB, TOKENIZERS
from toolkit.options import EvaluateOptions

SAID = {"a": ["a dog runs", "a brown dog"], "b": ["two cats sleep", "cats on a bed"], "c": ["a red ball"]}


def drawn(seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(rng.choice((3, 12, 200)))]

    def caption() -> str:
        return " ".join(rng.choices(words, k=rng.choice((0, 1, 3, 8, 12))))

    references = {f"{i}": [caption() for _ in range(rng.randint(1, 4))] for i in range(9)}
    return {i: [caption() for _ in range(rng.randint(1, 6))] for i in references}, references


def plainly(captions: list[str], references: dict[str, list[str]]) -> tuple[float, float, float]:
    """distinct-1, distinct-2, self-CIDEr of one image by dictionaries and a singular value decomposition."""

    def grams(caption: str, n: int) -> list[tuple[str, ...]]:
        words = caption.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    distinct = [[g for c in captions for g in grams(c, n)] for n in (1, 2)]
    kernel = np.zeros((len(captions), len(captions)))
    for n in range(1, 5):
        seen = Counter(g for said in references.values() for g in {g for c in said for g in grams(c, n)})
        names = sorted({g for c in captions for g in grams(c, n)})
        rows = np.array(
            [
                [Counter(grams(c, n))[g] * (math.log(len(references)) - math.log(max(1, seen[g]))) for g in names]
                for c in captions
            ]
        )
        norms = np.linalg.norm(rows.reshape(len(captions), -1), axis=1, keepdims=True)
        rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        kernel += rows @ rows.T / 4
    values = np.sqrt(np.linalg.svd(kernel, compute_uv=False).clip(1e-12))
    ratio = values.max() / values.sum()
    several = [len(set(d)) / max(len(d), 1) for d in distinct]
    return several[0], several[1], -math.log(ratio, len(captions)) if kernel.any() else 0.0


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_the_plain_way(seed: int) -> None:
    captions, references = drawn(seed)
    found = diversity(captions, prepare(references, tokenize=str.split), TOKENIZERS["intl"])
    several = [of_image for of_image in captions.values() if len(of_image) > 1]
    expected = np.mean([plainly(of_image, references) for of_image in several], axis=0)
    assert found is not None
    assert (found.distinct_1, found.distinct_2, found.self_cider) == pytest.approx(tuple(expected), abs=1e-9)
    assert (found.images, found.captions) == (len(several), np.mean([len(s) for s in several]))


def test_cosines_are_ciders() -> None:
    """The entry of two captions is a tenth of the plain CIDEr of one against the other."""
    prepared = prepare(SAID)
    pair = ["a brown dog runs", "the dog runs fast"]
    dots = []
    for row, gram, _, value in prepared.vectors([caption.split() for caption in pair]):
        one, two = (dict(zip(gram[row == r].tolist(), value[row == r].tolist(), strict=True)) for r in (0, 1))
        dots.append(sum(v * two.get(g, 0) for g, v in one.items()))
    # The same word weights: those of SAID alone.
    against = prepare({"x": [pair[1]]}, idf=SAID).score({"x": pair[0]}, ["cider_plain"]).corpus["cider_plain"]
    assert np.mean(dots) == pytest.approx(against / 10)


def test_ends_of_the_range() -> None:
    prepared = prepare(SAID)
    same = diversity({"a": ["a dog runs"] * 3}, prepared, PTB)
    assert same is not None
    assert same.self_cider == pytest.approx(0, abs=1e-5)
    assert same.distinct_1 == pytest.approx(1 / 3)
    other = diversity({"a": ["dog brown", "cats sleep", "red ball"]}, prepared, PTB)
    assert other is not None
    assert (other.self_cider, other.distinct_1, other.distinct_2) == pytest.approx((1, 1, 1), abs=1e-9)
    empty = diversity({"a": ["", ""]}, prepared, PTB)
    assert empty is not None
    assert (empty.self_cider, empty.distinct_1) == (0, 0)
    assert diversity({"a": ["one"], "b": []}, prepared, PTB) is None


SEVERAL = {"a": ["a dog runs", "the dog, brown", "a dog"], "b": ["cats sleep", "two cats"], "c": ["a ball"]}


def written(folder: Path, form: str) -> Path:
    path = folder / f"h.{form}"
    if form == "jsonl":
        rows = [
            {"image": f"{i}.jpg", "caption": c[0], **({"captions": c} if len(c) > 1 else {})}
            for i, c in SEVERAL.items()
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "csv":
        cell = {i: json.dumps(c).replace('"', '""') for i, c in SEVERAL.items()}
        path.write_text(
            "image,caption,captions\n" + "".join(f'{i}.jpg,"{c[0]}","{cell[i]}"\n' for i, c in SEVERAL.items())
        )
    elif form == "coco":
        path.write_text(json.dumps([{"image_id": f"{i}.jpg", "caption": c} for i, cs in SEVERAL.items() for c in cs]))
    elif form == "txt":
        path.mkdir()
        for i, captions in SEVERAL.items():
            (path / f"{i}.txt").write_text("\n".join(captions))
    else:
        path.mkdir()
        rows = [{"file_name": f"{i}.jpg", "text": c} for i, c in SEVERAL.items()]
        (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "coco", "txt", "imagefolder"])
def test_all_captions_of_a_row(form: str, tmp_path: Path) -> None:
    found = read_hypotheses(written(tmp_path, form)).rows
    assert [row.caption for row in found] == [captions[0] for captions in SEVERAL.values()]
    assert [row.captions for row in found] == [tuple(c) if len(c) > 1 else () for c in SEVERAL.values()]


def test_evaluate(tmp_path: Path) -> None:
    lines = [f"{i}.jpg,{caption}" for i, said in SAID.items() for caption in said]
    (tmp_path / "r.csv").write_text("\n".join(["image,caption", *lines]))
    hypotheses = written(tmp_path, "jsonl")
    found = evaluate(EvaluateOptions(hypotheses, tmp_path / "r.csv", split="all", page=tmp_path / "p.html"))
    of: dict[str, Any] = found.values["diversity"]
    expected = diversity(SEVERAL, prepare(SAID), PTB)
    assert expected is not None
    assert of == vars(expected)
    assert (of["images"], of["captions"]) == (2, 2.5)
    theirs = found.values["references_diversity"]
    assert (theirs["images"], theirs["captions"]) == (2, 2)
    people = found.values["references_health"]
    assert (people["captions"], people["length"]["mean"], people["vocabulary"]) == (3, 3, 8)
    shown = f"h.jsonl: 2.5 captions of each of 2 images: distinct-1 {of['distinct_1']:.3f}, distinct-2"
    assert shown in found.text
    assert "\na person (the first reference of each image): 3.0 words per caption" in found.text
    assert "\nreferences: 2 captions of each of 2 images" in found.text
    assert "2.5 captions of each of 2 images" in (tmp_path / "p.html").read_text()
    (tmp_path / "one.csv").write_text("image,caption\na.jpg,a dog\n")
    alone = evaluate(EvaluateOptions(tmp_path / "one.csv", tmp_path / "r.csv", split="all")).values
    assert (alone["diversity"], alone["references_diversity"]) == (None, None)
