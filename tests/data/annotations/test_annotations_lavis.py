from __future__ import annotations

import json

from reading import Reader

ROWS = [
    {"image": "val2014/a.jpg", "caption": "A man .", "image_id": "coco_0"},
    {"image": "val2014/b.jpg", "caption": ["A cat .", " A dog . "], "image_id": 5},
    {"image": "val2014/a.jpg", "caption": "A person .", "image_id": "coco_0"},
    {"image": "c.jpg", "caption": "x"},
    {"image": "d.jpg", "caption": "y", "image_id": "coco_0"},
    {"image": "e.jpg", "caption": None},
]
WANT = [
    ("coco_0", "val2014/a.jpg", ("A man .", "A person .")),
    ("5", "val2014/b.jpg", ("A cat .", "A dog .")),
    ("c.jpg", "c.jpg", ("x",)),
    ("d.jpg", "d.jpg", ("y",)),
]


def test_strings_and_lists(reader: Reader) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    for name, text in (("coco_karpathy_train.json", json.dumps(ROWS)), ("captions.jsonl", lines + "\n\n")):
        assert [(r.image_id, r.path, r.captions) for r in reader(name, text)] == WANT
        assert reader.set.format == "lavis"
        assert reader.notes == [
            "image ids given to two images, replaced by their names: 1 (d.jpg)",
            "images without a caption left out: 1 (e.jpg)",
        ]


def test_mistakes(reader: Reader) -> None:
    text = (
        '[{"image": "a.jpg", "caption": 7},\n"a",\n{"caption": "x"},\n{"image": "b.jpg"},\n{"image": "c", "text": "y"}]'
    )
    assert reader.captions("l.json", text) == {"c": ["y"]}
    assert list(reader.set.notes.unusable) == [
        (1, "no caption: its keys are image, caption", "a.jpg"),
        (2, "not a JSON object", None),
        (3, "no image name: its keys are caption", None),
        (4, "no caption: its keys are image", "b.jpg"),
    ]
    assert reader.notes[0] == (
        "rows that can't be used: 4 (line 1: no caption: its keys are image, caption; line 2: not a JSON object; line 3: no "
        "image name: its keys are caption; ...)"
    )
    assert reader.error("l.json", '["a"]', format="lavis").startswith(
        "l.json: names no image with a caption (line 1: not a JSON object"
    )
    assert reader.error("l.json", '{"a": [1]}', format="lavis") == (
        'l.json: a JSON object with the keys a; expected [{"image", "caption"}] (or name another --format).'
    )
    assert reader.captions("l.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image"\n[]\n') == {"a.jpg": ["x"]}
    assert list(reader.set.notes.unusable) == [
        (2, "broken JSON (Expecting ':' delimiter)", None),
        (3, "not a JSON object", None),
    ]
    rows = [{"image": "a.jpg", "caption": "x", "split": s} for s in ("train", "test")]
    assert reader.error("l.json", json.dumps(rows)) == (
        "l.json: a.jpg is in two splits (train and test); leave it in one."
    )
