"""LAVIS: a list of images with captions, one or several; the same as JSON Lines, and what else is made of such objects.

[{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": "A man with a red helmet ...", "image_id": "coco_0"},
 {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": ["A woman ...", "A cake ..."]}, ...]

{"data": [{"file_name": "a.jpg", "caption": "A dog runs ."}, ...]}           under whatever key
{"a.jpg": ["A dog runs .", "A brown dog ."], "b.jpg": "A cat .", ...}        names as keys
[{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                      {"from": "gpt", "value": "A dog runs ."}]}, ...]        LLaVA's
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.data.annotations import coco, imagefolder, karpathy
from toolkit.data.annotations._columns import Columns
from toolkit.data.annotations._gather import Gathered, Notes, add_suffix, captions_in
from toolkit.data.annotations._json import (
    CONVERSATIONS,
    Keys,
    is_image_name,
    is_row,
    json_shape,
    read_json,
    read_json_lines,
    what_keys,
)
from toolkit.data.annotations._text import bad_shape
from toolkit.records import ImageRecord

_SHAPE = '[{"image", "caption"}]'


def detect(path: Path) -> bool:
    shape = json_shape(path)
    if shape is None or any(reader.detect(path) for reader in (karpathy, coco, imagefolder)):
        return False
    if any(is_row(value) for values in shape.samples.values() for value in values):
        return True
    names = [key for key in shape.samples if is_image_name(key)]
    return len(names) > len(shape.samples) / 2 and any(captions_in(v) for name in names for v in shape.samples[name])


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    keys = Keys(path, columns)
    gathered = Gathered(path, notes, columns)
    for line, name, row in _rows(path, keys, notes):
        if not isinstance(row, dict):
            captions = captions_in(row) if name is not None else None
            if name is None or captions is None:
                notes.reject(line, "not a JSON object" if name is None else "captions that are not text", name)
            else:
                gathered.add(add_suffix(images, name), captions, line=line)
            continue
        said = keys.read(row)
        name = said.name or (add_suffix(images, name) if name is not None else None)
        if name is None and CONVERSATIONS in row:
            notes.count("conversations without an image left out")
        elif name is None:
            notes.reject(line, f"no image name: {what_keys(row)}")
        elif said.captions is None:
            notes.reject(line, f"no caption: {what_keys(row)}", name)
        else:
            if isinstance(row.get(CONVERSATIONS), list) and len(row[CONVERSATIONS]) > 2:
                notes.count("images whose further questions and answers are left out", name)
            image_id = row.get("image_id")
            gathered.add(name, said.captions, None if image_id is None else str(image_id), said.split, line=line)
    yield from gathered.records()


def _rows(path: Path, keys: Keys, notes: Notes) -> Iterator[tuple[int, str | None, Any]]:
    """(line, name, row) of each entry; the name where the entries stand under names."""
    shape = json_shape(path)
    if shape is not None and shape.kind == "lines":
        yield from ((line, None, row) for line, row in read_json_lines(path, notes))
        return
    samples = shape.samples if shape is not None else {}
    under = next((key for key, values in samples.items() if any(keys.is_row(value) for value in values)), None)
    if shape is not None and shape.kind == "object" and under is None and not any(map(is_image_name, samples)):
        raise bad_shape(path, f"a JSON object with the keys {', '.join(map(str, list(samples)[:8]))}", _SHAPE)
    for line, key, value in read_json(path):
        if key is None or key == under:
            yield line, None, value
        elif under is None or is_image_name(under):
            yield line, key, value
