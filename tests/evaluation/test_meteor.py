"""METEOR without Java: figures of pycocoevalcap's jar, stored and, where Java is there, side by side."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.evaluation import meteor as module
from toolkit.evaluation import meteor_table
from toolkit.evaluation.meteor import score_meteor
from toolkit.evaluation.metrics import score
from toolkit.evaluation.porter2 import stem

DATA = Path(__file__).parents[1] / "data/metrics"
# Written by `java -jar meteor-1.5.jar - - -stdio -l en -norm -a TABLE`, with a small table of paraphrases of its own.
STORED: dict[str, Any] = json.loads((DATA / "meteor.json").read_text("utf-8"))
needs_data = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


def theirs() -> Path:
    import pycocoevalcap

    return Path(pycocoevalcap.__path__[0]) / "meteor"


@needs_data
def test_stored(tmp_path: Path) -> None:
    """All four kinds of matches, ties and repeated words, punctuation, empty and identical sentences."""
    (tmp_path / "data").mkdir()
    (tmp_path / "meteor-1.5.jar").symlink_to(theirs() / "meteor-1.5.jar")
    with gzip.open(tmp_path / "data" / "paraphrase-en.gz", "wt") as file:
        file.writelines(f"0.5\n{said}\n{told}\n" for said, told in STORED["table"])
    words = [case["caption"].split(" ") for case in STORED["cases"]]
    references = [[one.split(" ") for one in case["references"]] for case in STORED["cases"]]
    corpus, per_image = score_meteor(tmp_path, references, words)
    assert per_image.tolist() == pytest.approx([case["score"] for case in STORED["cases"]], abs=1e-12)
    assert corpus == pytest.approx(STORED["corpus"], abs=1e-12)


def test_stems() -> None:
    """Some of the 143,840 words and word-like strings whose stems are the jar's; a later Snowball has others of the last two."""
    told = {"running": "run", "skies": "sky", "dying": "die", "generously": "generous", "hopping": "hop", "hoping": "hope",
            "happiness": "happi", "cries": "cri", "ties": "tie", "gas": "gas", "kiwis": "kiwi", "agreed": "agre",
            "feed": "feed", "vietnamization": "vietnam", "sensational": "sensat", "youth": "youth", "inning": "inning",
            "controlling": "control", "'tis": "tis", "dogs'": "dog", "universal": "univers", "past": "past"}  # fmt: skip
    assert {word: stem(word) for word in told} == told


@pytest.mark.parametrize(("part", "end"), [(7, ""), (100, "\n"), (1 << 22, "\n")])
def test_the_table_is_read_as_by_a_loop(part: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of any size: phrases that differ late, in length or in one letter, and pairs that stand there twice."""
    words = ["in", "the", "middle", "of", "town", "towns", "é"]
    rng = random.Random(3)
    phrases = [" ".join(rng.choices([*words, "unknown"], k=rng.randint(1, 6))) for _ in range(40)]
    phrases += [f"in the middle of the {last}" for last in ("town", "towns", "towm", "tows")]
    rows = [(said, rng.choice(phrases)) for said in sorted(phrases) for _ in range(rng.choice([1, 1, 5]))] * 2
    with gzip.open(tmp_path / "table.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(f"0.5\n{said}\n{told}" for said, told in rows) + end)
    expected: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}
    for row, (said, told) in enumerate(rows):
        if set(said.split()) | set(told.split()) <= set(words):
            expected.setdefault(tuple(said.split()), {}).setdefault(tuple(told.split()), []).append(row)
    assert any(len(places) > 1 for told in expected.values() for places in told.values())
    monkeypatch.setattr(meteor_table, "PART", part)
    found = meteor_table.read_paraphrases(tmp_path / "table.gz", set(words))
    named = {phrase.number: text for text, phrase in found.items()}
    assert len(named) == len(found)
    assert all(phrase.length == len(text) for text, phrase in found.items())
    said = {text: phrase.told for text, phrase in found.items() if phrase.told}
    assert {text: {named[number]: rows for number, rows in told.items()} for text, told in said.items()} == expected


def test_one_table_for_the_rounds_of_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Loaded:
        def __init__(self, folder: Path, words: set[str]) -> None:
            made.append(words)

    monkeypatch.setattr(module, "Meteor", Loaded)
    monkeypatch.setattr(module, "_last", [])
    for words in ({"a", "b"}, {"a"}, {"a", "b"}, {"c"}):
        module._loaded(Path("x"), words)
    assert made == [{"a", "b"}, {"c"}]


@pytest.mark.slow
@needs_data
def test_stored_with_the_whole_table() -> None:
    stored = json.loads((DATA / "corpus.json").read_text("utf-8"))
    ours = score(stored["hypotheses"], stored["references"], ["meteor"])
    assert ours.corpus["meteor"] == pytest.approx(stored["corpus"]["meteor"], abs=1e-12)
    np.testing.assert_allclose(ours.per_image["meteor"], stored["per_image"]["meteor"], atol=1e-12)


ODD = [
    "'s", "U.S.", "e.g.", "Mr.", "No.", "5", "1,000", "...", "..", "--", "-", "–", "well-dressed", "``", "''", "“", "‘a’",
    "children's", "dogs'", "&", "ful", "handful", "men", "ran", "1990's", "é", "naïve", "the.", "a", "a", "the", "the",
    "of", "in", "in front of", "kid", "young", "child", "people", "is", "are", "DOTMULTI", "人", "\u00a0", "x\u00a0y", "ß",
    "İ", ",", "a,b", "'", "it's", "o'clock", "a-", "p.m.", "Σας", "|||",
]  # fmt: skip


@pytest.mark.slow
@needs_data
@needs_java
def test_against_the_jar() -> None:
    """2,000 captions put together of words of the stored ones and of odd ones, shuffled, cut and extended as references."""
    from pycocoevalcap.meteor.meteor import Meteor

    rng = random.Random(0)
    stored = json.loads((DATA / "corpus.json").read_text("utf-8"))
    usual = [word for said in stored["references"].values() for one in said for word in one.split()]

    def drawn() -> list[str]:
        length = rng.choice([0, 1, 3, 8, 12, 25])
        return " ".join(rng.choice(ODD if rng.random() < 0.35 else usual) for _ in range(length)).split(" ")

    words = [drawn() for _ in range(2000)]
    references = []
    for caption in words:
        mixed = rng.sample(caption, len(caption))
        references.append(rng.sample([drawn(), mixed, caption, [*mixed[::2], *drawn()]], rng.randint(1, 3)))
    corpus, per_image = score_meteor(theirs(), references, words)
    said = {i: [" ".join(one) for one in all_] for i, all_ in enumerate(references)}
    expected = Meteor().compute_score(said, {i: [" ".join(caption)] for i, caption in enumerate(words)})
    np.testing.assert_allclose(per_image, expected[1], atol=1e-9)
    assert corpus == pytest.approx(expected[0], abs=1e-9)
