from __future__ import annotations

import json

from reading import Reader


def image(filename: str, split: str, *raw: str, **more: object) -> dict:
    return {"filename": filename, "split": split, "sentences": [{"raw": r, "tokens": r.split()} for r in raw], **more}


def test_cocos_file(reader: Reader) -> None:
    images = [
        image("COCO_val2014_000000391895.jpg", "restval", "A man .", " ", filepath="val2014", cocoid=391895, imgid=0),
        image("COCO_val2014_000000522418.jpg", "val", "A woman .", filepath="val2014", cocoid=522418, imgid=1),
        image("COCO_train2014_1.jpg", "train", "A cat .", "A cat .", filepath="train2014", cocoid=1, imgid=2),
        image("COCO_val2014_2.jpg", "test", "A dog .", filepath="val2014", cocoid=2, imgid=3),
    ]
    records = reader("dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    assert [(r.image_id, r.path, r.captions, r.split) for r in records] == [
        ("391895", "val2014/COCO_val2014_000000391895.jpg", ("A man .",), "train"),
        ("522418", "val2014/COCO_val2014_000000522418.jpg", ("A woman .",), "validation"),
        ("1", "train2014/COCO_train2014_1.jpg", ("A cat .", "A cat ."), "train"),
        ("2", "val2014/COCO_val2014_2.jpg", ("A dog .",), "test"),
    ]
    assert reader.set.format == "karpathy"
    assert reader.notes == [
        "blank captions dropped: 1 (val2014/COCO_val2014_000000391895.jpg)",
        "repeated captions of an image kept: 1 (train2014/COCO_train2014_1.jpg)",
    ]


def test_flickrs_file(reader: Reader) -> None:
    images = [image("a.jpg", "train", "x", imgid=0), {"filename": "b.jpg", "sentences": [{"tokens": ["y", "z"]}]}]
    records = reader("dataset_flickr8k.json", "\ufeff" + json.dumps({"images": images}, indent=1).replace("\n", "\r\n"))
    assert [(r.image_id, r.path, r.captions, r.split) for r in records] == [
        ("a.jpg", "a.jpg", ("x",), "train"),
        ("b.jpg", "b.jpg", ("y z",), None),
    ]


def test_mistakes(reader: Reader) -> None:
    text = json.dumps({"images": [image("a.jpg", "train", "x")]})
    assert reader.error("d.json", text[:-1]).startswith("d.json: broken JSON at line 1, column ")
    assert reader.error("d.json", text + "x").startswith("d.json: broken JSON at line 1, column ")
    assert reader.error("d.json", text.replace('"x"', "7", 1)).startswith(
        "d.json: names no image with a caption (line 1: no filename or no sentences: its keys are filename, split, "
    )
    assert reader.error("d.json", '{"images": {}}', format="karpathy").startswith("d.json: names no image with a cap")
    assert reader.error("d.json", "[]", format="karpathy").startswith("d.json: no images in it; expected ")
    assert "split 'minival', which is unknown" in reader.error("d.json", text.replace('"train"', '"minival"'))
    assert "split 3, which is unknown" in reader.error("d.json", text.replace('"train"', "3"))
    assert "line 1 is not UTF-8" in reader.error("d.json", text.replace("x", "\u00e9").encode("cp1252") + b"\xe9")
