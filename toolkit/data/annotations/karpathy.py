"""Karpathy's `dataset_*.json`, with the splits that captioning papers report on.

    {"images": [{"filename": "COCO_val2014_000000391895.jpg", "filepath": "val2014", "cocoid": 391895, "imgid": 0,
                 "split": "restval", "sentences": [{"raw": "A man with a red helmet ...", "tokens": [...]}, ...]}, ...]}

`filepath` and `cocoid` are COCO's only; `restval` is train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Gathered, Notes, captions_in
from toolkit.data.annotations._json import json_shape, read_json, what_keys
from toolkit.data.annotations._text import bad_shape
from toolkit.records import ImageRecord

_SHAPE = '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}'


def detect(path: Path) -> bool:
    shape = json_shape(path)
    return shape is not None and any({"sentences", "filename"} <= set(image) for image in shape.objects("images"))


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    gathered = Gathered(path, notes, columns)
    seen = False
    name_key, caption_keys = columns.image or "filename", columns.captions or ("sentences",)
    for line, key, image in read_json(path):
        if key != "images":
            continue
        seen = True
        if not isinstance(image, dict):
            notes.reject(line, "not a JSON object")
            continue
        columns.meet(image)
        name, found = image.get(name_key), [image[key] for key in caption_keys if key in image]
        captions = captions_in(found) if found else None
        if captions is None or not isinstance(name, str):
            notes.reject(line, f"no {name_key} or no {caption_keys[0]}: {what_keys(image)}")
            continue
        folder = image.get("filepath") if columns.image is None else None
        name = f"{folder}/{name}" if isinstance(folder, str) and folder else name
        image_id = image.get("cocoid")
        split = image.get(columns.split or "split")
        gathered.add(name, captions, None if image_id is None else str(image_id), split, line=line)
    if not seen:
        raise bad_shape(path, "no images in it", _SHAPE)
    yield from gathered.records()
