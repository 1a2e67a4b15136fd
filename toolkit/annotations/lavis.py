"""LAVIS: a list of images with captions, one or several; the same as JSON Lines (`captions.jsonl`).

[{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": "A man with a red helmet ...", "image_id": "coco_0"},
 {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": ["A woman ...", "A cake ..."]}, ...]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.annotations._gather import Gathered, Notes, captions_in
from toolkit.annotations._text import bad_shape, head, read_json, read_json_lines
from toolkit.records import ImageRecord

_SHAPE = '[{"image", "caption"}]'


def detect(path: Path) -> bool:
    text = head(path).lstrip()
    start = "{" if path.suffix.lower() == ".jsonl" else "["
    first = text[: text.find("}") + 1]
    return text.startswith(start) and all(re.search(rf'"{key}"\s*:', first) for key in ("image", "captions?"))


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    rows: Iterator[tuple[Any, Any]] = read_json_lines(path) if path.suffix.lower() == ".jsonl" else read_json(path)
    gathered = Gathered(path, notes)
    for key, row in rows:
        if isinstance(key, str):
            raise bad_shape(path, "its JSON is no list", _SHAPE)
        value = row.get("captions", row.get("caption")) if isinstance(row, dict) else None
        captions = captions_in(value)
        if captions is None or not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise bad_shape(path, f"an entry is {str(row)[:60]}", _SHAPE)
        image_id = row.get("image_id")
        gathered.add(row["image"], captions, None if image_id is None else str(image_id), row.get("split"))
    yield from gathered.records()
