"""Rows of captions as a file, streamed: jsonl, csv, parquet, coco, imagefolder; and txt, a file beside each image.

A name that is not UTF-8 is written with its odd bytes as `\\udcXX`, which JSON reads back as the same name.
"""

from __future__ import annotations

import csv
import filecmp
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


def replace_if_other(temporary: Path, path: Path) -> None:
    """The finished file takes its place; one with the same bytes stays, with its time."""
    if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
        temporary.unlink()
    else:
        os.replace(temporary, path)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_imagefolder(path: Path, rows: Iterable[Row]) -> None:
    """`metadata.jsonl`; images without a caption have no row, as every row's image gets loaded."""
    write_jsonl(path, ({"file_name": row["image"], "text": row["caption"]} for row in rows if row["error"] is None))


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = None
        for row in map(_flat, rows):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)


def _flat(row: Row) -> Row:
    """Values as one cell each; of several captions only the best."""
    flat = {k: v for k, v in row.items() if k != "captions"}
    for key in ("ended", "weak"):
        if isinstance(flat.get(key), bool):
            flat[key] = str(flat[key]).lower()
    return flat


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"image": pa.string(), "caption": pa.string(), "score": pa.float64(), "ended": pa.bool_(), "weak": pa.bool_(),
             "error": pa.string(), "width": pa.int32(), "height": pa.int32()}  # fmt: skip
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


def write_coco(path: Path, rows: Iterable[Row]) -> None:
    """COCO's results: the number in a name as COCO gives them (000000391895.jpg), any other name as it is."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        separator = "[\n"
        for row in rows:
            if row["error"] is None:
                number = COCO_NAME.fullmatch(row["image"].rsplit("/", 1)[-1])
                result = {"image_id": int(number[1]) if number else row["image"], "caption": row["caption"]}
                file.write(separator + json.dumps(result, ensure_ascii=False))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


WRITERS: dict[str, Callable[[Path, Iterable[Row]], None]] = {
    "jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet, "coco": write_coco, "imagefolder": write_imagefolder,
}  # fmt: skip


def sidecar_names(names: Sequence[str]) -> list[str]:
    """`a.txt` for `a.jpg`; `a.jpg.txt` and `a.png.txt` where both are there."""
    stems = Counter(os.path.splitext(name)[0] for name in names)
    return [(name if stems[stem] > 1 else stem) + ".txt" for name in names for stem in [os.path.splitext(name)[0]]]


def write_sidecars(root: Path, rows: Iterable[tuple[str, Row]]) -> None:
    """A text file below `root` for each row that has a caption; of several captions a line each."""
    for name, row in rows:
        if row["error"] is not None:
            continue
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / ".caption.tmp"  # short, for names that are as long as names can be
        temporary.write_text("\n".join(row.get("captions") or [row["caption"]]) + "\n", encoding="utf-8")
        replace_if_other(temporary, path)
