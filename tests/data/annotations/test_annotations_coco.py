from __future__ import annotations

import json

from reading import Reader

IMAGES = [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, {"id": 7, "file_name": "b b.JPG"}, {"id": 8, "file_name": "c.jpg"}]  # fmt: skip
SAID = [
    {"image_id": 7, "id": 1, "caption": "A cat.\n"},
    {"image_id": 391895, "id": 2, "caption": 'A "man" with {braces} and [brackets] \\ \u732b'},
    {"image_id": 7, "id": 3, "caption": "A black cat."},
    {"image_id": 7, "id": 4, "caption": "  "},
    {"image_id": 99, "id": 5, "caption": "Nobody knows me."},
    {"image_id": 7, "id": 6, "caption": "Half an emoji \ud83d"},
]
WANT = [
    ("391895", "COCO_val2014_000000391895.jpg", ('A "man" with {braces} and [brackets] \\ \u732b',)),
    ("7", "b b.JPG", ("A cat.", "A black cat.", "Half an emoji \ufffd")),
]


def rows(reader: Reader, value: object, **options: object) -> list[tuple]:
    return [(r.image_id, r.path, r.captions) for r in reader("captions.json", json.dumps(value, **options))]  # type: ignore[arg-type]


def test_captions(reader: Reader) -> None:
    in_order = {"info": {"year": 2014}, "images": IMAGES, "licenses": [], "annotations": SAID}
    annotations_first = {"annotations": SAID, "type": "captions", "images": IMAGES}
    for value, options in ((in_order, {}), (annotations_first, {"indent": 2})):
        assert rows(reader, value, **options) == WANT
        assert reader.set.format == "coco"
        assert reader.notes == [
            "blank captions dropped: 1 (b b.JPG)",
            "captions with half a character repaired: 1 (b b.JPG)",
            "captions of images that are not listed dropped: 1 (99)",
            "images without a caption left out: 1 (c.jpg)",
        ]


def test_results(reader: Reader) -> None:
    assert rows(reader, [{"image_id": 7, "caption": "a cat"}, {"image_id": "a.jpg", "caption": "a dog"}]) == [
        ("7", "7", ("a cat",)),
        ("a.jpg", "a.jpg", ("a dog",)),
    ]


def test_ids_as_text_and_as_numbers(reader: Reader) -> None:
    value = {"images": [{"id": "7", "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "x"}]}
    assert rows(reader, value) == [("7", "a.jpg", ("x",))]


def test_mistakes(reader: Reader) -> None:
    def error(value: object) -> str:
        return reader.error("captions.json", json.dumps(value), format="coco")

    assert error({"images": IMAGES}).startswith("captions.json: names no image with a caption;")
    assert error({"annotations": SAID}).startswith("captions.json: no list of images in it; expected")
    boxes = [{"image_id": 7, "id": 1, "bbox": [0, 0, 1, 1]}]
    assert error({"images": IMAGES, "annotations": boxes}).startswith(
        "captions.json: names no image with a caption (line 1: no image_id or no caption: its keys are image_id, id, "
    )
    assert error({"images": [{"id": 1}], "annotations": []}).startswith(
        "captions.json: names no image with a caption (line 1: an image without id or file_name: its keys are id); "
    )
    twice = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}]
    assert error({"images": twice, "annotations": []}) == (
        "captions.json: two images have the id 7; give each its own."
    )
    assert error({"images": IMAGES, "annotations": []}).startswith("captions.json: names no image with a caption")
    cut = json.dumps({"images": IMAGES, "annotations": SAID})[:200]
    assert reader.error("captions.json", cut).startswith("captions.json: broken JSON at line 1, column ")
    for broken in (
        '{"images": [1 2]}',
        '{"images": [1,]}',
        '{"images": 1,}',
        "{images: 1}",
        '{"a" 1}',
        "[",
        "7",
        '{"a"',
    ):
        assert reader.error("c.json", broken, format="coco").startswith("c.json: ")
    nested = '{"images": ' + "[" * 100_000
    assert reader.error("c.json", nested, format="coco").startswith("c.json: ")
