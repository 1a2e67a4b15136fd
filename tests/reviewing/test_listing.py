"""What is reviewed first and why; heat maps and references; images that are nearly the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from serving import write_captions

from toolkit.data.sources import FoundImage
from toolkit.errors import InputError
from toolkit.options import ReviewOptions
from toolkit.records import CaptionResult, HeatMaps
from toolkit.reports import gallery
from toolkit.reports.gallery import Card, gallery_output, write_gallery
from toolkit.reports.pictures import heat_png
from toolkit.reviewing.heat import Heat
from toolkit.reviewing.listing import list_captions
from toolkit.reviewing.near import near_groups
from toolkit.reviewing.pictures import FilePictures
from toolkit.reviewing.weakness import repeats_itself, signs_of, weaknesses


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a dog and a dog and a cat", True), ("the the the dog", True), ("a very very old dog", False),
        ("a red ring above a red square", False), ("one two three four one two three four", True), ("", False),
    ],
)  # fmt: skip
def test_repeats(caption: str, repeats: bool) -> None:
    assert repeats_itself(caption.split()) == repeats


def test_signs_and_weakness() -> None:
    captions = [
        "a dog runs on grass",
        "a cat sits on a mat",
        "dog",
        " .",
        None,
        "a man in a hat",
        "a " + "very big " * 20,
    ]
    signs = signs_of(captions, [True, False, None, None, None, True, True])
    assert signs == [(), ("not ended",), ("short",), ("empty",), (), (), ("repeats", "long")]
    assert weaknesses(signs) == [0, 1, 0.5, 2, 0, 0, 1.5]
    assert weaknesses([(), (), (), ("short",)], [-0.1, -2, None, -1], [None, 0.5, 0.1, None]) == [0, 0.5, 1, 1]


def test_captions_in_another_script() -> None:
    signs = signs_of(["一只狗在草地上奔跑", "一只猫坐在垫子上", "狗", "男人戴着帽子走路"], [None] * 4)
    assert [("short" in shown) for shown in signs] == [False, False, True, False]


@pytest.fixture
def folder(sample_dir: Path, tmp_path: Path) -> Path:
    for path in sorted((sample_dir / "Images").glob("*.jpg"))[:4]:
        (tmp_path / "Images").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "Images" / path.name)
    return tmp_path


def test_references(folder: Path, sample_dir: Path) -> None:
    """The caption that says the least of what its references say is the weakest, where scores are equal."""
    names = sorted(path.name for path in (folder / "Images").iterdir())
    lines = (sample_dir / "captions.txt").read_text().splitlines()
    said = {name: next(line.partition(",")[2].strip('"') for line in lines if line.startswith(name)) for name in names}
    rows = {str(i): {"caption": said[name], "score": -1.0} for i, name in enumerate(names)}
    rows["2"]["caption"] = "something else entirely is in here"
    write_captions(folder / "captions.jsonl", names, **rows)
    options = ReviewOptions(folder / "captions.jsonl", images=folder / "Images", references=sample_dir / "captions.txt")
    items = list_captions(options).items
    assert [item.agreement == 1 for item in items] == [True, True, False, True]
    assert max(items, key=lambda item: item.weakness).id == names[2]
    assert all(said[item.id] in item.references and len(item.references) == 5 for item in items)


@pytest.mark.parametrize("limit", [1000, 1], ids=["embedded", "linked"])
def test_heat_maps_of_a_gallery(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    class Explainer:
        def prepare(self, image: Image.Image) -> tuple[int, int]:
            return image.size

        def explain(self, prepared: object, captions: list[str]) -> list[HeatMaps | None]:
            return [HeatMaps(((0, 1),), np.full((1, 2, 2), 9, np.uint8)) for _ in captions]

    names = sorted(path.name for path in (folder / "Images").iterdir())
    monkeypatch.setattr(gallery, "EMBED_LIMIT", limit)
    results = [CaptionResult(name, "a dog", ("a dog",), -1.0, True) for name in names]
    page = gallery_output(folder / "a page.html", total=len(names))
    gallery.write_caption_gallery(page, results, [FoundImage(folder / "Images", name) for name in names], Explainer())
    heat = Heat(folder / "a page.html", {names[1]: 0, "other.jpg": 1, names[0]: 2})
    assert heat.words == {key: {"caption": "a dog", "words": [[0, 1]], "grid": [2, 2]} for key in (0, 2)}
    assert heat.png(0) == heat_png(np.full((1, 2, 2), 9, np.uint8))
    assert heat.png(1) is None
    with pytest.raises(InputError, match="has no heat maps of these images; make it with --attention"):
        Heat(folder / "a page.html", {"other.jpg": 0})


def test_a_gallery_that_names_other_files(folder: Path) -> None:
    """Only images that a gallery writes are passed on, and only as the PNG that they are."""
    (folder / "secret.png").write_bytes(b"secret")
    heat = HeatMaps(((0, 1),), np.full((1, 2, 2), 9, np.uint8))
    for place in ("../secret.png", "/etc/passwd", "secret.png"):
        cards = [Card("a.jpg", None, "a dog", heat=(heat, place)), Card("b.jpg", None, "a dog", heat=(heat, b"no png"))]
        write_gallery(gallery_output(folder / "page.html"), "Captions", cards)
        found = Heat(folder / "page.html", {"a.jpg": 0, "b.jpg": 1})
        assert (found.png(0), found.png(1)) == (None, None)


def test_near_duplicates(folder: Path) -> None:
    first, second = sorted((folder / "Images").iterdir())[:2]
    Image.open(first).resize((400, 300)).save(folder / "Images" / "zoomed.png")
    (folder / "Images" / "bad.jpg").write_text("no image")
    names = [first.name, "bad.jpg", second.name, "gone.jpg", "zoomed.png"]
    pictures = FilePictures([(folder / "Images", name) for name in names])
    assert near_groups(pictures, 4, 2, Event()) == [[0, 4]]
    stopped = Event()
    stopped.set()
    assert near_groups(pictures, 4, 2, stopped) == []
