"""Captions as a file, streamed: jsonl, csv, parquet, coco, imagefolder; and txt, a file beside each image.

A name that is not UTF-8 is written with its odd bytes as `\\udcXX`, which JSON reads back as the same name.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from toolkit.data.sources import FoundImages
from toolkit.records import CaptionResult
from toolkit.runtime.shelf import Shelf

Row = dict[str, Any]  # of a file
SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "coco"}
COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.\w+")


def format_of(format: str, output: Path | None) -> str:
    """The format named, or that of the output's suffix, or jsonl."""
    return SUFFIXES.get(output.suffix.lower() if output else "", "jsonl") if format == "auto" else format


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def metadata_of(result: CaptionResult) -> Row:
    """A row of imagefolder's `metadata.jsonl`; `text` is a list if there are several captions, and so is `clip_score`."""
    several = len(result.captions) > 1
    row: Row = {"file_name": result.image, "text": list(result.captions) if several else result.caption}
    if result.clip_scores is not None:
        scores = list(result.clip_scores)
        row["clip_score"] = scores if several else scores[0] if scores else None
    return row


def write_csv(path: Path, results: Iterable[CaptionResult], several: bool = False, clip: bool = False) -> None:
    """Of several captions the best is in `caption`, and all are in `captions`, a JSON list in one cell; so `clip_scores`."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = None
        for result in results:
            flat = _flat(result.to_row(), several)
            if writer is None:
                writer = csv.DictWriter(file, list(flat), lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)


def _flat(row: Row, several: bool) -> Row:
    """Values as one cell each."""
    flat = {}
    for key, value in row.items():
        if key in ("ended", "weak", "rejected") and isinstance(value, bool):
            value = str(value).lower()
        if key not in ("captions", "clip_scores"):
            flat[key] = value
        if key == "caption" and several:
            flat["captions"] = json.dumps(row["captions"], ensure_ascii=False) if row.get("captions") else None
        if key == "clip_score" and several:
            flat["clip_scores"] = json.dumps(row["clip_scores"]) if row.get("clip_scores") else None
    return flat


def write_parquet(path: Path, results: Iterable[CaptionResult], several: bool = False, clip: bool = False) -> None:
    """Of several captions the best is in `caption`, and all are in `captions`, a list; so `clip_scores`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"image": pa.string(), "caption": pa.string(), "captions": pa.list_(pa.string()), "score": pa.float64(),
             "ended": pa.bool_(), "weak": pa.bool_(), "error": pa.string(), "width": pa.int32(),
             "height": pa.int32(), "clip_score": pa.float64(), "clip_scores": pa.list_(pa.float64())}  # fmt: skip
    for name, there in (("captions", several), ("clip_score", clip), ("clip_scores", clip and several)):
        if not there:
            del types[name]
    rest = iter(results)
    first = next(rest, None)
    if first is not None and first.source is not None:  # of a review
        types |= {"source": pa.string(), "rejected": pa.bool_()}
    rest = chain([] if first is None else [first], rest)
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(path, schema) as writer:
        while some := [result.to_row() for result in islice(rest, 8192)]:
            plain = [{k: _utf8(row.get(k)) for k in types} for row in some]
            writer.write_table(pa.Table.from_pylist(plain, schema))


def _utf8(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_coco(path: Path, results: Iterable[CaptionResult], several: bool = False, clip: bool = False) -> None:
    """COCO's results format: the id is the number in a name like 000000391895.jpg, or else the name. One entry per
    caption, the best first, each with its own `clip_score`."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        separator = "[\n"
        for result in results:
            number = COCO_NAME.fullmatch(result.image.rsplit("/", 1)[-1])
            for k, caption in enumerate(result.captions):
                entry: Row = {"image_id": int(number[1]) if number else result.image, "caption": caption}
                if result.clip_scores is not None:
                    entry["clip_score"] = result.clip_scores[k] if result.clip_scores else None
                if result.source is not None:
                    entry |= {"source": result.source, "rejected": result.rejected}
                file.write(separator + json.dumps(entry, ensure_ascii=False))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


# Formats that are written as a whole; the lines of jsonl and imagefolder are made in toolkit/outputs/exports.py.
WRITERS: dict[str, Callable[[Path, Iterable[CaptionResult], bool, bool], None]] = {
    "csv": write_csv, "parquet": write_parquet, "coco": write_coco,
}  # fmt: skip


def sidecar_names(images: FoundImages) -> Shelf:
    """`a.txt` for `a.jpg`; `a.jpg.txt` and `a.png.txt` if there are both. In the order of the images; fewer than these if
    two images would have the same."""
    stems, names = Shelf(), Shelf()  # stem -> number of images
    for image in images:
        stems.setdefault(os.path.splitext(image.name)[0], [0])[0] += 1
    for image in images:
        stem = os.path.splitext(image.name)[0]
        names.setdefault((image.name if stems.get(stem)[0] > 1 else stem) + ".txt", None)
    return names


def sidecar_text(result: CaptionResult) -> bytes:
    """One line per caption, the best first."""
    return ("\n".join(result.captions) + "\n").encode("utf-8", "backslashreplace")
