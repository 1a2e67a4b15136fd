"""Metrics against pycocoevalcap's scorers, against figures that it gave before, and on what is not as it should be."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.errors import InputError, RunError, ToolkitError
from toolkit.evaluation import java
from toolkit.evaluation.health import health
from toolkit.evaluation.metrics import bleu_from_counts, prepare, score

STORED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/metrics/corpus.json").read_text("utf-8"))
EXACT = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


def pieces(caption: str) -> list[str]:
    return [word for word in caption.split(" ") if word]


def drawn(seed: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """A corpus of few or many words, images, references; captions may be empty, long, equal, or hold odd spaces."""
    rng = random.Random(seed)
    size = rng.choice((2, 5, 30, 300))
    words = [f"w{i}" for i in range(size)] + ["1\u00a01/2"]

    def caption() -> str:
        return " ".join(rng.choices(words, k=rng.choice((0, 1, 2, 5, 10, 10, 12, 80 if size < 6 else 9))))

    images = [f"{rng.random()}.jpg" for _ in range(rng.choice((1, 2, 3, 10, 60)))]
    references = {i: [caption() for _ in range(rng.randint(1, 6))] for i in images}
    return {i: caption() if rng.random() < 0.6 else rng.choice(references[i]) for i in images}, references


def theirs(hypotheses: dict[str, str], references: dict[str, list[str]]) -> dict[str, tuple[float, Any]]:
    """pycocoevalcap's figures on captions that are tokenised: metric -> corpus, per image."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    gts = {i: references[i] for i in sorted(references)}
    res = {i: [hypotheses[i]] for i in gts}
    corpus, per_image = bleu.compute_score(gts, res, verbose=0)
    figures = {f"bleu_{n + 1}": (corpus[n], per_image[n]) for n in range(4)}
    return figures | {"rouge_l": rouge.compute_score(gts, res), "cider": cider.compute_score(gts, res)}


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_pycocoevalcap(seed: int) -> None:
    hypotheses, references = drawn(seed)
    ours = score(hypotheses, references, tokenize=pieces)
    assert ours.image_ids == sorted(hypotheses)
    for name, (corpus, per_image) in theirs(hypotheses, references).items():
        assert ours.corpus[name] == pytest.approx(corpus, abs=1e-12)
        np.testing.assert_allclose(ours.per_image[name], per_image, atol=1e-12)


def test_equal_to_stored() -> None:
    """Whole way, with quotes, numbers, hyphens, emoji, an empty caption and an empty reference."""
    ours = score(STORED["hypotheses"], STORED["references"])
    for name in EXACT:
        assert ours.corpus[name] == pytest.approx(STORED["corpus"][name], abs=1e-12)
        np.testing.assert_allclose(ours.per_image[name], STORED["per_image"][name], atol=1e-12)


@JAVA
def test_equal_to_the_whole_pipeline() -> None:
    """Raw captions through pycocoevalcap's tokenizer and scorers."""
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    from test_ptb import drawn as captions

    texts = iter(captions(1200, seed=5))
    references = {f"{i:03d}": [next(texts) for _ in range(5)] for i in range(200)}
    hypotheses = {i: next(texts) for i in references}
    gts = tokenizer.tokenize({i: [{"caption": c} for c in references[i]] for i in references})
    res = tokenizer.tokenize({i: [{"caption": hypotheses[i]}] for i in hypotheses})
    ours = score(hypotheses, references)
    for name, (corpus, per_image) in theirs({i: res[i][0] for i in res}, gts).items():
        assert ours.corpus[name] == pytest.approx(corpus, abs=1e-9)
        np.testing.assert_allclose(ours.per_image[name], per_image, atol=1e-9)


def test_java_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    with pytest.raises(ToolkitError, match="SPICE needs Java; install"):
        score({"a": "x"}, {"a": ["x"]}, ["spice"])
    monkeypatch.setattr(java.shutil, "which", lambda name: "java")
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    for name in ("METEOR", "SPICE"):
        with pytest.raises(ToolkitError, match=f"{name} needs pycocoevalcap; pip install"):
            score({"a": "x"}, {"a": ["x"]}, [name.lower()])

    class Spec:
        submodule_search_locations = [str(tmp_path / "a b")]  # noqa: RUF012

    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(ToolkitError, match="has a space in it"):
        score({"a": "x"}, {"a": ["x"]}, ["spice"])


@JAVA
def test_spice_without_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPICE downloads Stanford's models first; where that fails it is one sentence."""
    spice = pytest.importorskip("pycocoevalcap.spice.spice")

    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(spice, "get_stanford_models", no_network)
    with pytest.raises(RunError, match=r"SPICE failed \(OSError: no network\)"):
        score({"a": "x"}, {"a": ["x"]}, ["spice"])


@pytest.mark.parametrize("metrics", [["spider"], ["cider", "spice", "spider"]])
def test_spider_is_the_mean_of_cider_and_spice(monkeypatch: pytest.MonkeyPatch, metrics: list[str]) -> None:
    given = np.array([0.25, 0.5])
    monkeypatch.setattr("toolkit.evaluation.metrics.score_with_spice", lambda *_: (0.375, given))
    hypotheses = {"a": "a dog runs on grass", "b": "two cats sit"}
    references = {"a": ["a dog runs on the grass", "a brown dog"], "b": ["two cats sit down", "cats"]}
    found, cider = score(hypotheses, references, metrics), score(hypotheses, references, ["cider"]).per_image["cider"]
    assert found.per_image["spider"].tolist() == [(c + s) / 2 for c, s in zip(cider, given, strict=True)]
    assert found.corpus["spider"] == pytest.approx((cider.mean() + 0.375) / 2, abs=1e-12)
    assert found.corpus.keys() == set(metrics)


def plain_cider(
    hypotheses: dict[str, str], references: dict[str, list[str]], documents: list[list[str]], plain: bool
) -> float:
    """The paper's formulas once more, by hand: no arrays, no ids."""

    def grams(caption: str, n: int) -> list[tuple[str, ...]]:
        words = caption.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = 0.0
    for image, hypothesis in hypotheses.items():
        for reference in references[image]:
            for n in (1, 2, 3, 4):
                mine, other = grams(hypothesis, n), grams(reference, n)

                def weight(gram: tuple[str, ...], n: int = n) -> float:
                    with_it = sum(any(gram in grams(c, n) for c in document) for document in documents)
                    return math.log(len(documents)) - math.log(max(1, with_it))

                a = {g: mine.count(g) * weight(g) for g in set(mine)}
                b = {g: other.count(g) * weight(g) for g in set(other)}
                dot = sum((v if plain else min(v, b[g])) * b[g] for g, v in a.items() if g in b)
                norm = math.hypot(*a.values()) * math.hypot(*b.values())
                delta = max(len(hypothesis.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
                penalty = 1.0 if plain else math.exp(-(delta**2) / 72)
                total += (dot / norm if norm else 0.0) * penalty / 4 / len(references[image]) * 10
    return total / len(hypotheses)


@pytest.mark.parametrize("seed", [3, 4, 8])
def test_cider_with_an_idf_corpus(seed: int) -> None:
    hypotheses, references = drawn(seed)
    _, other = drawn(100 + seed)
    other["z"] = ["w0 w1", "w1 w0 w3"]
    ours = score(hypotheses, references, ["cider", "cider_d", "cider_plain"], idf=other, tokenize=pieces)
    expected = [plain_cider(hypotheses, references, list(other.values()), plain) for plain in (False, True)]
    assert ours.corpus["cider"] == pytest.approx(expected[0], abs=1e-9)
    assert ours.corpus["cider_d"] == ours.corpus["cider"]
    assert ours.corpus["cider_plain"] == pytest.approx(expected[1], abs=1e-9)


def test_idf_of_the_same_corpus_is_the_default() -> None:
    hypotheses, references = drawn(11)
    same = score(hypotheses, references, ["cider"], idf=references).corpus
    assert same == pytest.approx(score(hypotheses, references, ["cider"]).corpus)


def test_prepared_once() -> None:
    hypotheses, references = STORED["hypotheses"], STORED["references"]
    prepared = prepare(references)
    assert prepared.score(hypotheses).corpus == score(hypotheses, references).corpus
    others = {i: references[i][0] for i in references}
    assert prepared.score(others).corpus == score(others, references).corpus
    assert prepared.score(hypotheses).corpus == score(hypotheses, references).corpus
    assert prepared.score(dict(reversed(hypotheses.items()))).corpus == prepared.score(hypotheses).corpus


def test_bleu_counts_are_what_a_bootstrap_needs() -> None:
    hypotheses, references = drawn(9)
    whole = score(hypotheses, references)
    assert whole.bleu_counts is not None
    some = whole.image_ids[::2]
    part = score({i: hypotheses[i] for i in some}, {i: references[i] for i in some})
    expected = [part.corpus[f"bleu_{n}"] for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(bleu_from_counts(whole.bleu_counts[::2].sum(axis=0)), expected, rtol=1e-14)


def test_one_image() -> None:
    """CIDEr of a single image is 0: every n-gram is in every document. With an IDF corpus it is not."""
    hypotheses, references = {"a": "a red dog runs"}, {"a": ["a red dog runs"]}
    assert score(hypotheses, references).corpus == pytest.approx(
        {"bleu_1": 1, "bleu_2": 1, "bleu_3": 1, "bleu_4": 1, "rouge_l": 1, "cider": 0}, abs=1e-8
    )
    other = {"b": ["a cat"], "c": ["a fish"]}
    assert score(hypotheses, references, ["cider"], idf=other).corpus["cider"] == pytest.approx(10)


def test_empty_hypotheses() -> None:
    ours = score({"a": "", "b": " ... "}, {"a": ["a dog"], "b": ["a cat", "!"]})
    assert ours.corpus["bleu_4"] == ours.corpus["cider"] == 0
    assert ours.per_image["rouge_l"].tolist() == [0, 1]  # pycocoevalcap: an empty caption is one empty word


@pytest.mark.parametrize(
    ("hypotheses", "references", "named", "message"),
    [
        ({"a": "x"}, {"b": ["x"]}, ["bleu"], "1 captions have no references, such as 'a' and 1 images have no caption"),
        ({"a": "x", "b": "x"}, {"b": ["x"]}, ["bleu"], "1 captions have no references, such as 'a'; score"),
        ({"a": "x"}, {"a": []}, ["bleu"], "1 of 1 images have no list of captions, such as 'a'"),
        ({"a": "x"}, {"a": "x"}, ["bleu"], "no list of captions"),
        ({}, {}, ["bleu"], "contains no images"),
        ({"a": "x"}, {"a": ["x"]}, ["blue"], "blue is unknown; choose from bleu, rouge_l"),
        ({"a": "x"}, {"a": ["x"]}, [], "none given"),
    ],
)
def test_mistakes(hypotheses: Any, references: Any, named: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(hypotheses, references, named)


def test_idf_corpus_without_captions() -> None:
    with pytest.raises(InputError, match="the IDF corpus: contains no images"):
        score({"a": "x"}, {"a": ["x"]}, ["cider"], idf={})


def test_health() -> None:
    captions = ["A dog runs.", "a dog runs", "", "a man in a hat " * 3, "a cat's tail"]
    found = asdict(health(captions, [True, True, True, False, True], ["A dog runs!", "the end"]))
    length = {"mean": 5.0, "min": 0, "max": 15, "p5": 0.6, "p25": 3.0, "p50": 3.0, "p75": 4.0, "p95": 12.8}
    assert found.pop("length") == pytest.approx(length)
    assert found == {
        "captions": 5,
        "ended": 0.8,
        "loops": 0.2,
        "distinct": 0.8,
        "empty": 0.2,
        "vocabulary": 9,
        "novel": 0.6,
    }
    assert health(["a"]).ended is None
    assert health(["a"]).novel is None
    assert health(["a man in a hat a man in a hat"]).loops == 0  # twice can be meant
    with pytest.raises(InputError, match="there are none"):
        health([])
    with pytest.raises(InputError, match="1 entries for 2 captions"):
        health(["a", "b"], [True])
