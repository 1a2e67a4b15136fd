"""Rewards of drawn captions: against pycocoevalcap's scorers, with the end as a word and other document frequencies."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.errors import InputError
from toolkit.evaluation.metrics import score
from toolkit.evaluation.rewards import END, FREQUENCIES, DocumentFrequencies, Rewards, words_of
from toolkit.evaluation.tokenizers import PTB, TOKENIZERS
from toolkit.options.objective import parse_reward

WORDS = ["a", "dog", "man", "red", "ball", "runs", "with", "the", "two", "children", "play", "near", "don't", "1 1/2"]


def drawn(seed: int) -> tuple[list[list[str]], list[int], list[list[list[str]]]]:
    """Captions of all training images; numbers of some; of each as many samples, as words, some without an end."""
    rng = random.Random(seed)

    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice((0, 1, 3, 8, 11, 30))))

    captions = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(rng.choice((2, 9, 40)))]
    images = rng.sample(range(len(captions)), min(len(captions), 7))
    samples = []
    for image in images:
        texts = [caption() if rng.random() < 0.6 else rng.choice(captions[image]) for _ in range(4)]
        samples.append([[*words_of(text), *[END] * (rng.random() < 0.8)] for text in texts])
    return captions, images, samples


def cider_of(captions: list[list[str]], references: list[str], sample: str) -> float:
    """pycocoevalcap's CIDEr of one caption, its document frequencies replaced by those of the training captions."""
    module = pytest.importorskip("pycocoevalcap.cider.cider_scorer")

    class Scorer(module.CiderScorer):  # type: ignore[misc, name-defined]
        ref_len = property(lambda self: math.log(len(captions)), lambda self, value: None)

        def compute_doc_freq(self) -> None:
            for of_image in captions:
                cooked = [module.cook_refs([ended(caption)])[0] for caption in of_image]
                for ngram in {ngram for caption in cooked for ngram in caption}:
                    self.document_frequency[ngram] += 1

    scorer: Any = Scorer(n=4, sigma=6.0)
    scorer += (sample, references)
    scorer.compute_doc_freq()
    return float(scorer.compute_cider()[0])


def ended(caption: str) -> str:
    return " ".join([*words_of(caption), END])


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocoevalcap(seed: int) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer").BleuScorer
    captions, images, samples = drawn(seed)
    frequencies = DocumentFrequencies.of(captions)
    cider = Rewards(captions, frequencies, {"cider": 1.0})(images, samples)
    bleu_4 = Rewards(captions, frequencies, {"bleu_4": 1.0})(images, samples)
    both = Rewards(captions, frequencies, {"cider": 1.0, "bleu_4": 0.5})(images, samples)
    np.testing.assert_allclose(both, cider + 0.5 * bleu_4, rtol=1e-12)
    for i, (image, of_image) in enumerate(zip(images, samples, strict=True)):
        references = [ended(caption) for caption in captions[image]]
        for k, words in enumerate(of_image):
            text = " ".join(words)
            assert cider[i, k] == pytest.approx(cider_of(captions, references, text), abs=1e-9)
            theirs = bleu(n=4)
            theirs += (text, references)
            assert bleu_4[i, k] == pytest.approx(theirs.compute_score(option="closest", verbose=0)[1][3][0], abs=1e-9)


def test_a_whole_split_is_scored_as_evaluate_does_it() -> None:
    """The same words and the images' own document frequencies: `toolkit evaluate`'s CIDEr."""
    captions, _, _ = drawn(3)
    texts = [of_image[0] for of_image in captions]
    rewards = Rewards(captions, DocumentFrequencies.of(captions), {"cider": 1.0})
    ours = rewards(range(len(captions)), [[[*words_of(text), END]] for text in texts])[:, 0]
    references = {f"{i:03d}": [ended(caption) for caption in of_image] for i, of_image in enumerate(captions)}
    theirs = score({i: ended(text) for i, text in zip(references, texts, strict=True)}, references, ["cider"],
                   tokenize=str.split)  # fmt: skip
    np.testing.assert_allclose(ours, theirs.per_image["cider"], atol=1e-12)


def test_an_end_is_worth_something() -> None:
    captions = [["A dog runs with a ball."], ["A man runs."], ["Two children play near the dog"]]
    rewards = Rewards(captions, DocumentFrequencies.of(captions), {"cider": 1.0})
    whole, endless, cut = (["a", "dog", "runs", "with", "a", "ball"][:n] for n in (6, 6, 5))
    values = rewards([0], [[[*whole, END], endless, [*cut, END], cut]])[0]
    assert values[0] == pytest.approx(10.0)
    assert values[0] > values[1] > values[3] > values[2]  # to end after "with a" is worse than to go on


def test_frequencies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file of these very captions, finished by a rename; what is left of one is counted again."""
    captions, _, _ = drawn(1)
    said: list[str] = []
    counted = DocumentFrequencies.of(captions)
    assert DocumentFrequencies.kept(tmp_path, captions, PTB, said.append) == counted
    (file,) = (tmp_path / FREQUENCIES).iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(DocumentFrequencies, "of", None)
        assert DocumentFrequencies.kept(tmp_path, captions, PTB, said.append) == counted
    file.write_bytes(file.read_bytes()[:-10])
    assert DocumentFrequencies.kept(tmp_path, captions, PTB, said.append) == counted
    other = DocumentFrequencies.kept(tmp_path, captions, TOKENIZERS["char"], said.append)
    assert other.counts["d o g"] > 0
    moved = [*captions[0], *captions[1]], *captions[2:]  # the same captions, of other images
    DocumentFrequencies.kept(tmp_path, moved, PTB, said.append)
    assert len(list((tmp_path / FREQUENCIES).iterdir())) == 3
    (tmp_path / "file").write_text("")
    assert DocumentFrequencies.kept(tmp_path / "file", captions, PTB, said.append) == counted
    assert len(said) == 1
    assert "can't be written" in said[0]


def test_without_captions() -> None:
    with pytest.raises(InputError, match="some have no caption"):
        Rewards([["a dog"], []], DocumentFrequencies(2, {}), {"cider": 1.0})


def test_reward_texts() -> None:
    assert parse_reward("cider:1, bleu_4:0.5") == {"cider": 1.0, "bleu_4": 0.5}
    assert parse_reward("bleu_4") == {"bleu_4": 1.0}
    for text in ("", "meteor:1", "cider:0", "cider:x", "cider:nan", "cider,cider", "cider:inf"):
        with pytest.raises(ValueError, match=r"no reward|twice|a number above 0"):
            parse_reward(text)
