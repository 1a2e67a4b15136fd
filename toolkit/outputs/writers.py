"""Rows of captions as a file, streamed: jsonl, csv, parquet, coco, imagefolder; and txt, a file beside each image.

A name that is not UTF-8 is written with its odd bytes as `\\udcXX`, which JSON reads back as the same name.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "coco"}
COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.\w+")


def format_of(format: str, output: Path | None) -> str:
    """The form named, or that of the output's suffix, or jsonl."""
    return SUFFIXES.get(output.suffix.lower() if output else "", "jsonl") if format == "auto" else format


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def metadata_of(row: Row) -> Row:
    """A row of imagefolder's `metadata.jsonl`; `text` is a list where there are several captions."""
    return {"file_name": row["image"], "text": row.get("captions") or row["caption"]}


def write_csv(path: Path, rows: Iterable[Row], several: bool = False) -> None:
    """Of several captions the best is in `caption`, and all are in `captions`, a JSON list in one cell."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = None
        for row in rows:
            flat = _flat(row, several)
            if writer is None:
                writer = csv.DictWriter(file, list(flat), lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)


def _flat(row: Row, several: bool) -> Row:
    """Values as one cell each."""
    flat = {}
    for key, value in row.items():
        if key in ("ended", "weak") and isinstance(value, bool):
            value = str(value).lower()
        if key != "captions":
            flat[key] = value
        if key == "caption" and several:
            flat["captions"] = json.dumps(row["captions"], ensure_ascii=False) if row.get("captions") else None
    return flat


def write_parquet(path: Path, rows: Iterable[Row], several: bool = False) -> None:
    """Of several captions the best is in `caption`, and all are in `captions`, a list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"image": pa.string(), "caption": pa.string(), "captions": pa.list_(pa.string()), "score": pa.float64(),
             "ended": pa.bool_(), "weak": pa.bool_(), "error": pa.string(), "width": pa.int32(),
             "height": pa.int32()}  # fmt: skip
    if not several:
        del types["captions"]
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(path, schema) as writer:
        for some in _chunks(rows, 8192):
            plain = [{k: _utf8(row.get(k)) for k in types} for row in some]
            writer.write_table(pa.Table.from_pylist(plain, schema))


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    some: list[Row] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _utf8(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_coco(path: Path, rows: Iterable[Row], several: bool = False) -> None:
    """COCO's results: the number in a name as COCO gives them (000000391895.jpg), any other name as it is. Of several
    captions an entry each, the best first."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        separator = "[\n"
        for row in rows:
            if row["error"] is not None:
                continue
            number = COCO_NAME.fullmatch(row["image"].rsplit("/", 1)[-1])
            for caption in row.get("captions") or [row["caption"]]:
                result = {"image_id": int(number[1]) if number else row["image"], "caption": caption}
                file.write(separator + json.dumps(result, ensure_ascii=False))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


# Forms that are written as a whole; the lines of jsonl and imagefolder are put together in toolkit/outputs/exports.py.
WRITERS: dict[str, Callable[[Path, Iterable[Row], bool], None]] = {
    "csv": write_csv, "parquet": write_parquet, "coco": write_coco,
}  # fmt: skip


def sidecar_names(names: Sequence[str]) -> list[str]:
    """`a.txt` for `a.jpg`; `a.jpg.txt` and `a.png.txt` where both are there."""
    stems = Counter(os.path.splitext(name)[0] for name in names)
    return [(name if stems[stem] > 1 else stem) + ".txt" for name in names for stem in [os.path.splitext(name)[0]]]


def sidecar_text(row: Row) -> bytes:
    """Of several captions a line each, the best first."""
    return ("\n".join(row.get("captions") or [row["caption"]]) + "\n").encode("utf-8", "backslashreplace")
