"""Counting captions and pictures: small sets with known answers, and every pair found that a full search finds."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.errors import InputError
from toolkit.reports.facts.models import tensors
from toolkit.reports.facts.stats import CaptionStats, duplicates, near_duplicates, near_pairs, perceptual_hash, spread

PHOTOS = Path(__file__).parents[1] / "data" / "photos" / "Images"


def test_spread() -> None:
    assert spread(Counter()) is None
    assert spread(Counter({3: 1, 8: 1})) == {"min": 3, "median": 5.5, "max": 8}


def test_captions() -> None:
    stats = CaptionStats()
    stats.add([["A dog's day.", "a dog, a DOG"], ["été à 2"]])
    stats.add([["A dog's day."]])
    values = stats.values()
    assert (values["count"], values["distinct"], values["vocabulary"]) == (4, 3, 7)
    assert values["per_image"] == {"min": 1, "median": 1, "max": 2}
    assert values["words"] == {"min": 3, "median": 3, "max": 4}
    assert values["frequent"][:3] == [["a", 4], ["day", 2], ["dog", 2]]
    assert ["dog's", 2] in values["frequent"]
    assert values["tokens"] is None
    assert values["truncated"] is None


def test_no_captions_at_all() -> None:
    assert CaptionStats().values() == {
        "count": 0, "distinct": 0, "per_image": None, "words": None, "tokens": None, "truncated": None,
        "tokenize": "ptb", "vocabulary": 0, "frequent": [],
    }  # fmt: skip


def test_duplicates_and_leaks() -> None:
    names, splits = list("abcdef"), ["train", "test", "train", None, "validation", "train"]
    values = duplicates(names, splits, ["1", "1", "2", "2", "3", "1"])
    assert values["duplicates"] == {"pictures": 2, "copies": 3, "examples": [["a", "b", "f"], ["c", "d"]]}
    assert values["leaks"] == {"pictures": 1, "examples": [{"train": ["a", "f"], "test": ["b"]}]}


# What imagehash 4.3.2 says of these files: str(imagehash.phash(Image.open(file).convert("RGB"))).
IMAGEHASH = {
    "astronaut.jpg": "c2924c5532bddfc8",
    "brick.jpg": "a2818b1566fd46f9",
    "cat.jpg": "b15fe6465121175e",
    "motorcycle.png": "c507c66b9370aa73",
}


@pytest.mark.parametrize("name", IMAGEHASH)
def test_perceptual_hash_is_that_of_imagehash(name: str) -> None:
    with Image.open(PHOTOS / name) as image:
        assert f"{perceptual_hash(image.convert('RGB')):016x}" == IMAGEHASH[name]


def test_a_picture_keeps_its_hash() -> None:
    with Image.open(PHOTOS / "cat.jpg") as file:
        image = file.convert("RGB")
    buffer = io.BytesIO()
    image.resize((image.width // 2, image.height // 2)).save(buffer, "JPEG", quality=40)
    copy = perceptual_hash(Image.open(buffer))
    assert (perceptual_hash(image) ^ copy).bit_count() <= 2
    grey = [perceptual_hash(Image.new("RGB", (40, 30), (v, v, v))) for v in (1, 100, 201)]
    assert len(set(grey)) == 1  # not the noise of a float


@pytest.mark.parametrize("distance", [0, 1, 4, 16])
def test_near_pairs_are_those_of_a_full_search(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = np.array([sum(1 << int(b) for b in rng.choice(64, k, replace=False)) for k in range(12)], dtype=np.uint64)
    hashes = np.concatenate([hashes, hashes[:12] ^ flips, hashes[:3]])
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    wanted = {(i, j, int(bits[i, j])) for i, j in zip(*np.triu_indices(len(hashes), 1), strict=True) if bits[i, j] <= distance}  # fmt: skip
    found = [pair for block in near_pairs(hashes, distance) for pair in zip(*(a.tolist() for a in block), strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert len(wanted) > 3


def test_large_buckets_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.reports.facts.stats.BLOCK", 100)
    assert sum(len(i) for i, _, _ in near_pairs(np.zeros(50, np.uint64), 4)) == 50 * 49 // 2
    assert list(near_pairs(np.zeros(0, np.uint64), 4)) == []


def test_near_duplicates_leave_identical_ones_out() -> None:
    splits = ["train", "train", "test", None]
    values, pairs = near_duplicates(list("abcd"), splits, ["1", "1", "2", "3"], [0, 0, 3, 2**40], 2)
    assert values == {
        "distance": 2,
        "pairs": 2,
        "images": 3,
        "across_splits": 1,
        "nearest": [
            {"images": ["a", "d"], "splits": ["train", None], "distance": 1},
            {"images": ["a", "c"], "splits": ["train", "test"], "distance": 2},
        ],
    }
    assert pairs == [(0, 3), (0, 2)]


def test_photographs_are_told_apart() -> None:
    hashes = [perceptual_hash(Image.open(path).convert("RGB")) for path in sorted(PHOTOS.iterdir())]
    assert list(near_pairs(np.array(hashes, dtype=np.uint64), 16)) == []


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 20, (2).to_bytes(8, "little") + b"[]", b"\0" * 8])
def test_a_damaged_weight_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        tensors(tmp_path / "model.safetensors")
