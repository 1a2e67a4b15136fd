"""Karpathy's `dataset_*.json`, with the splits that captioning papers report on.

    {"images": [{"filename": "COCO_val2014_000000391895.jpg", "filepath": "val2014", "cocoid": 391895, "imgid": 0,
                 "split": "restval", "sentences": [{"raw": "A man with a red helmet ...", "tokens": [...]}, ...]}, ...]}

`filepath` and `cocoid` are COCO's only; `restval` is train.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.annotations._gather import Gathered, Notes, captions_in
from toolkit.annotations._text import bad_shape, head, read_json
from toolkit.records import ImageRecord

_SHAPE = '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}'


def detect(path: Path) -> bool:
    text = head(path)
    return text.lstrip().startswith("{") and all(re.search(rf'"{key}"\s*:', text) for key in ("sentences", "filename"))


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    gathered = Gathered(path, notes)
    seen = False
    for key, image in read_json(path):
        if key != "images":
            continue
        seen = True
        captions = captions_in(image.get("sentences")) if isinstance(image, dict) else None
        if captions is None or not isinstance(image.get("filename"), str):
            raise bad_shape(path, f"an image is {str(image)[:60]}", _SHAPE)
        folder = image.get("filepath")
        name = f"{folder}/{image['filename']}" if isinstance(folder, str) and folder else image["filename"]
        image_id = image.get("cocoid")
        gathered.add(name, captions, None if image_id is None else str(image_id), image.get("split"))
    if not seen:
        raise bad_shape(path, "no images in it", _SHAPE)
    yield from gathered.records()
