"""A later run of batch-caption, also one that makes every caption anew, and what a person has said before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.review import review
from toolkit.data.reviews import Action, Review
from toolkit.options import BatchCaptionOptions, GenerationOptions, ReviewOptions


def test_a_persons_caption_is_never_replaced(model_dir: Path, pictures: Callable[[int], Path], tmp_path: Path) -> None:
    def caption(**more: object) -> dict[str, object]:
        generation = GenerationOptions(num_beams=1, max_length=int(more.pop("max_length", 6)))  # type: ignore[call-overload]
        options = BatchCaptionOptions(
            generation, paths=(str(pictures_folder),), model=str(model_dir), output=tmp_path / "captions.jsonl", **more
        )
        return batch_caption(options).values

    pictures_folder = pictures(3)
    assert "reviewed" not in caption()
    kept = Review(tmp_path / "captions.jsonl.review")
    kept.append([Action("0.jpg", "edit", "said by a person"), Action("1.jpg", "accept", "accepted by a person")])
    kept.append([Action("2.jpg", "reject")])
    before = (tmp_path / "captions.jsonl.review").read_bytes()
    for more in ({}, {"existing": "overwrite", "overwrite": True, "max_length": 8}):
        assert caption(**more)["reviewed"] == f"{tmp_path / 'captions.jsonl.review'}"
        assert (tmp_path / "captions.jsonl.review").read_bytes() == before
        review(ReviewOptions(tmp_path / "captions.jsonl", export=tmp_path / "out.jsonl"))
        rows = {row["image"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
        assert [rows[f"{i}.jpg"]["caption"] for i in (0, 1)] == ["said by a person", "accepted by a person"]
        assert [rows[f"{i}.jpg"]["source"] for i in (0, 1)] == ["person", "person"]
        assert rows["2.jpg"]["rejected"]
        assert rows["bad.jpg"]["error"] == "not an image"


def test_the_images_are_found_where_they_were_captioned(
    model_dir: Path, pictures: Callable[[int], Path], tmp_path: Path
) -> None:
    """By the state file, wherever the captions are."""
    from toolkit.reviewing.listing import list_captions

    (tmp_path / "elsewhere").mkdir()
    folder, output = pictures(2), tmp_path / "elsewhere" / "captions.jsonl"
    generation = GenerationOptions(num_beams=1, max_length=4)
    batch_caption(BatchCaptionOptions(generation, paths=(str(folder),), model=str(model_dir), output=output))
    listing = list_captions(ReviewOptions(output))
    assert [item.id for item in listing.items] == ["0.jpg", "1.jpg", "bad.jpg"]
    assert listing.pictures.read(1).mode == "RGB"
