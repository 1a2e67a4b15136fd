"""COCO captions, and the results format that captioners write.

    {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, ...],
     "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man with a red helmet ..."}, ...]}

    [{"image_id": 391895, "caption": "a man riding a motorcycle"}, ...]

Results name no files: there the id stands for the name too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.annotations._gather import Gathered, Notes, captions_in
from toolkit.annotations._text import bad_shape, head, read_json
from toolkit.errors import InputError
from toolkit.records import ImageRecord

_SHAPE = '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'


def detect(path: Path) -> bool:
    text = head(path).lstrip()
    if text.startswith("["):
        first = text[: text.find("}") + 1]
        return all(re.search(rf'"{key}"\s*:', first) for key in ("image_id", "caption")) and '"image"' not in first
    if not text.startswith("{") or path.suffix.lower() == ".jsonl" or '"sentences"' in text:
        return False
    return re.search(r'"(annotations|images)"\s*:\s*\[', text) is not None or '"licenses"' in text


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    names: dict[str, tuple[str, Any]] = {}  # image id -> (file name, split)
    captions: dict[str, list[str]] = {}
    seen = set()
    for key, value in read_json(path):
        seen.add(key)
        if key == "images":
            if (
                not isinstance(value, dict)
                or not isinstance(value.get("file_name"), str)
                or not _is_id(value.get("id"))
            ):
                raise bad_shape(path, f"an image is {str(value)[:60]}", _SHAPE)
            if names.setdefault(str(value["id"]), (value["file_name"], value.get("split")))[0] != value["file_name"]:
                raise InputError(f"{path}: two images have the id {value['id']}; give each its own.")
        elif key == "annotations" or key is None:
            said = captions_in(value.get("caption")) if isinstance(value, dict) and "caption" in value else None
            if said is None or not _is_id(value.get("image_id")):
                raise bad_shape(path, f"an annotation is {str(value)[:60]}", _SHAPE)
            captions.setdefault(str(value["image_id"]), []).extend(said)
    if not seen & {None, "images"}:
        raise bad_shape(path, "no list of images in it", _SHAPE)
    if None in seen:
        names = {image_id: (image_id, None) for image_id in captions}
    gathered = Gathered(path, notes)
    for image_id, (name, split) in names.items():
        gathered.add(name, captions.pop(image_id, []), image_id, split)
    for image_id, said in captions.items():
        notes.count("captions of images that are not listed dropped", image_id, len(said))
    yield from gathered.records()


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
