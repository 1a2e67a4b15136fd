"""COCO captions, and the results format that captioners write.

    {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, ...],
     "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man with a red helmet ..."}, ...]}

    [{"image_id": 391895, "caption": "a man riding a motorcycle"}, ...]

Results name no files: there the id stands for the name too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.data.annotations._columns import IMAGE_KEYS, Columns, caption_columns, known_column
from toolkit.data.annotations._gather import Gathered, Notes, captions_in
from toolkit.data.annotations._json import json_shape, read_json, what_keys
from toolkit.data.annotations._text import bad_shape
from toolkit.errors import InputError
from toolkit.records import ImageRecord
from toolkit.runtime.shelf import Shelf

_SHAPE = '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'


def detect(path: Path) -> bool:
    shape = json_shape(path)
    if shape is None or shape.kind == "lines":
        return False
    said = [set(row) for row in shape.objects(None) + shape.objects("annotations")]
    if any({"image_id", "caption"} <= keys and known_column(keys, IMAGE_KEYS) is None for keys in said):
        return True
    return any({"id", "file_name"} <= set(image) and not caption_columns(image) for image in shape.objects("images"))


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    names = Shelf()  # image id -> [file name, split, line]
    captions = Shelf()  # image id -> its captions
    seen = set()
    name_key, split_key = columns.image or "file_name", columns.split or "split"
    caption_keys = columns.captions or ("caption",)
    for line, key, value in read_json(path):
        seen.add(key)
        if key not in ("images", "annotations", None):
            continue
        if not isinstance(value, dict):
            notes.reject(line, "not a JSON object")
            continue
        columns.meet(value)
        if key == "images":
            name = value.get(name_key)
            if not isinstance(name, str) or not _is_id(value.get("id")):
                notes.reject(line, f"an image without id or {name_key}: {what_keys(value)}")
            elif names.setdefault(str(value["id"]), [name, value.get(split_key), line])[0] != name:
                raise InputError(f"{path}: two images have the id {value['id']}; give each its own.")
        else:
            id_key = name_key if key is None and columns.image else "image_id"
            found = [value[name] for name in caption_keys if name in value]
            said = captions_in(found) if found else None
            if said is None or not _is_id(value.get(id_key)):
                notes.reject(line, f"no {id_key} or no caption: {what_keys(value)}")
            else:
                captions.setdefault(str(value[id_key]), []).extend(said)
    if not seen & {None, "images"}:
        raise bad_shape(path, "no list of images in it", _SHAPE)
    gathered = Gathered(path, notes, columns)
    if None in seen:
        for image_id, said in captions.items():
            gathered.add(image_id, said, image_id, line=1)
    else:
        for image_id, (name, split, line) in names.items():
            gathered.add(name, captions.get(image_id) or [], image_id, split, line=line)
        for image_id, said in captions.items():
            if image_id not in names:
                notes.count("captions of images that are not listed dropped", image_id, len(said))
    yield from gathered.records()


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
