"""`preprocess --reviewed`: a person's captions in a cache, and what a changed review costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toolkit.cache.schema import open_cache
from toolkit.commands.preprocess import preprocess
from toolkit.data.reviews import Action, Review
from toolkit.errors import InputError
from toolkit.options import PreprocessOptions
from toolkit.records import SPLITS


def rows_of(folder: Path) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    cache = open_cache(folder)
    found = {}
    for split in SPLITS:
        for number, (image, captions) in enumerate(
            zip(cache[split].column("image_id"), cache[split].column("captions"), strict=True)
        ):
            row = cache[split][number]
            found[image] = (captions, np.array(row["pixel_values"]), np.array(row["labels"]))
    return found


@pytest.mark.usefixtures("small_shards")
def test_a_review_rebuilds_labels_and_no_pixels(sample_dir: Path, tmp_path: Path) -> None:
    plain = PreprocessOptions(
        annotations=sample_dir / "captions.txt", images=sample_dir / "Images", preset="tiny", num_workers=1,
        out=tmp_path / "cache",
    )  # fmt: skip
    assert preprocess(plain).values["decoded"] == 48
    manifest = (tmp_path / "cache" / "manifest.json").read_bytes()
    before = rows_of(tmp_path / "cache")
    one, two, three = sorted(before)[:3]
    review = Review(tmp_path / "cache.review")
    review.append([Action(one, "edit", "a new caption", before[one][0][2]), Action(two, "edit", "the only one")])
    review.append([Action(three, "reject"), Action("elsewhere.jpg", "reject")])
    options = replace(plain, reviewed=tmp_path / "cache.review")
    dry = preprocess(replace(options, dry_run=True)).values
    assert (dry["images"], dry["captions"], dry["up_to_date"]) == (47, 47 * 5 - 4, False)
    summary = preprocess(options)
    assert (summary.values["decoded"], summary.values["edited"], summary.values["reviewed_out"]) == (0, 2, 1)
    assert f"2 captions edited and 1 images rejected in {tmp_path / 'cache.review'}" in summary.text
    after = rows_of(tmp_path / "cache")
    assert after.keys() == before.keys() - {three}
    for image, (captions, pixels, labels) in after.items():
        assert (pixels == before[image][1]).all()
        if image not in (one, two):
            assert (captions, labels.tolist()) == (before[image][0], before[image][2].tolist())
    assert after[one][0] == [*before[one][0][:2], "a new caption", *before[one][0][3:]]
    assert after[two][0] == ["the only one"]
    assert (after[one][2][2] != before[one][2][2]).any()
    assert preprocess(options).text.startswith(f"{tmp_path / 'cache'}: up to date")
    review.append([Action(three, "undo"), Action(two, "undo")])
    summary = preprocess(options)
    assert (summary.values["decoded"], summary.values["edited"], summary.values["reviewed_out"]) == (1, 1, 0)
    preprocess(plain)  # without the review the cache is as it was, manifest and all
    assert (tmp_path / "cache" / "manifest.json").read_bytes() == manifest


@pytest.mark.usefixtures("small_shards")
def test_a_review_of_other_images(sample_dir: Path, tmp_path: Path) -> None:
    options = PreprocessOptions(
        annotations=sample_dir / "captions.txt", images=sample_dir / "Images", preset="tiny", num_workers=1,
        out=tmp_path / "cache", reviewed=tmp_path / "r.review",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"--reviewed .*r\.review: no such file; name the \.review file"):
        preprocess(options)
    Review(tmp_path / "r.review").append([Action("elsewhere.jpg", "reject")])
    with pytest.raises(InputError, match=r"none of its images \(such as elsewhere\.jpg\) is in .*captions\.txt"):
        preprocess(options)
    assert not (tmp_path / "cache").exists()
