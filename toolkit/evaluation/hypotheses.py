"""Captions to score, in any form that batch-caption writes, or as COCO results.

    jsonl         {"image": "a.jpg", "caption": "A dog runs .", "ended": true, "error": null}
    csv, parquet  the same as columns
    coco          [{"image_id": 391895, "caption": "a man riding a motorcycle"}, ...]
    imagefolder   metadata.jsonl, .csv or .parquet: {"file_name": "a.jpg", "text": "A dog runs ."}
    txt           a folder with a.txt for a.jpg

The form is detected from the file itself. In every form, a column may have any of the names above.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from toolkit.data.annotations._csv import read_csv, table_delimiter
from toolkit.data.annotations._json import json_shape, read_json, read_json_lines
from toolkit.data.annotations._text import files_below, open_file, read_text, split_lines
from toolkit.errors import InputError

ID_KEYS = ("image_id",)
NAME_KEYS = ("image", "file_name", "path", "filename")
CAPTION_KEYS = ("caption", "text", "captions")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SHAPE = '"image" or "image_id", and "caption"'


@dataclass(frozen=True)
class Hypothesis:
    """One row.

    Attributes:
        names: how the row names its image, id before path; composed Unicode, "/" between parts.
        caption: None if the row has none.
        captions: all of them, the best first, if the row has several.
        ended: whether generation ended with EOS; None if the row does not say.
        error: why there is no caption.
        values: what its row says in the column that was asked for; None if the row doesn't have it.
    """

    names: tuple[str, ...]
    caption: str | None
    ended: bool | None = None
    error: str | None = None
    captions: tuple[str, ...] = ()
    values: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Hypotheses:
    """A file of captions: its form, and its rows in order."""

    source: str
    format: str
    rows: list[Hypothesis]


def clean_name(name: str) -> str:
    """A name in the form in which names are compared: composed letters, "/" between parts, no leading "./"."""
    name = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def read_hypotheses(path: Path, option: str = "--hypotheses", column: str | None = None) -> Hypotheses:
    """All captions of a file or folder.

    Args:
        column: another one to keep the values of.

    Raises:
        InputError: no such file, not captions, broken, or empty.
    """
    if not path.exists():
        raise InputError(
            f"{option} {path}: no such file or folder (relative to the current directory); write captions with `toolkit batch-caption`, or name a file that has some."
        )
    format, rows = _folder(path, column) if path.is_dir() else _file(path, column)
    hypotheses = list(rows)
    if not hypotheses:
        raise InputError(f"{option} {path}: contains no captions; name a file with captions.")
    return Hypotheses(f"{path}", format, hypotheses)


def _folder(path: Path, column: str | None) -> tuple[str, Iterator[Hypothesis]]:
    if metadata := [file for file in files_below(path, METADATA, 8) if file.name.lower() in METADATA]:
        return "imagefolder", (row for file in metadata for row in _file(file, column, _prefix(file, path))[1])
    if texts := files_below(path, (".txt",), 64):
        return "txt", (_text(file, path) for file in texts)
    raise InputError(f"{path}: the folder has neither metadata.jsonl nor .txt files; name a file with captions.")


def _prefix(file: Path, root: Path) -> str:
    folder = file.parent.relative_to(root).as_posix()
    return "" if folder == "." else folder + "/"


def _text(file: Path, root: Path) -> Hypothesis:
    """`a.txt` names the image `a`, `a.jpg.txt` names `a.jpg`. Of several captions the first is the best."""
    lines = split_lines(read_text(file).strip())
    name = clean_name(file.relative_to(root).as_posix()[: -len(".txt")])
    return Hypothesis((name,), lines[0] if lines else "", captions=_several(lines))


def _file(path: Path, column: str | None, prefix: str = "") -> tuple[str, Iterator[Hypothesis]]:
    format = file_format(path)
    rows: Iterable[Any]
    if format == "parquet":
        rows = _parquet(path, column)
    elif format == "csv":
        rows = csv_rows(path)
    elif format == "jsonl":
        rows = (row for _, row in read_json_lines(path))
    else:
        rows = _best(row for _, _, row in read_json(path))
    if path.name.lower() in METADATA:
        format = "imagefolder"
    return format, (_row(path, row, prefix, column) for row in rows)


def file_format(path: Path) -> str:
    """What a file of captions is, told from its content: parquet, csv, jsonl (lines of JSON objects) or coco (a JSON list).

    Raises:
        InputError: it can't be read, is empty, or holds JSON of another shape.
    """
    with open_file(path) as file:
        start = file.read(4)
    if start == b"PAR1":
        return "parquet"
    if not start:
        raise InputError(f"{path}: the file is empty; name one with captions.")
    if (shape := json_shape(path)) is None:
        return "csv"
    if shape.kind == "object":
        raise InputError(f"{path}: not captions: expected a JSON list, or one JSON object per line, with {SHAPE}.")
    return "jsonl" if shape.kind == "lines" else "coco"


def _best(rows: Iterable[Any]) -> Iterator[Any]:
    """Several consecutive entries of one image as one, with the first, its best caption."""
    for image, same in groupby(rows, lambda row: row.get("image_id") if isinstance(row, dict) else None):
        if image is None:
            yield from same
        else:
            first, *others = same
            yield {**first, "captions": [row.get("caption") for row in (first, *others)]} if others else first


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table with a header that names images and captions.

    Raises:
        InputError: it has no such header, or a row has more or fewer fields.
    """
    delimiter, skip = table_delimiter(path)
    rows = read_csv(path, delimiter, skip)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not set(header) & {*ID_KEYS, *NAME_KEYS} or not set(header) & set(CAPTION_KEYS):
        raise bad_header(path, header)
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {line} has {len(row)} fields but the header has {len(header)}; quote captions that contain commas."
            )
        yield dict(zip(header, row, strict=True))


def _parquet(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    from toolkit.data.annotations.parquet import open_parquet

    file = open_parquet(path)
    # Skip columns that hold images themselves.
    simple = [field.name for field in file.schema_arrow if not pa.types.is_struct(field.type)]
    columns = [name for name in simple if name in (*ID_KEYS, *NAME_KEYS, *CAPTION_KEYS, "ended", "error", column)]
    if not set(columns) & {*ID_KEYS, *NAME_KEYS} or not set(columns) & set(CAPTION_KEYS):
        raise bad_header(path, file.schema_arrow.names)
    for batch in file.iter_batches(8192, columns=columns):
        yield from batch.to_pylist()


def bad_header(path: Path, columns: Iterable[str]) -> InputError:
    return InputError(
        f"{path}: has the columns {', '.join(columns)[:80]}, but captions need {SHAPE}; rename the columns."
    )


def _row(path: Path, row: Any, prefix: str, column: str | None) -> Hypothesis:
    if not isinstance(row, dict):
        raise bad_row(path, row)
    ids = [row[key] for key in ID_KEYS if row.get(key) not in (None, "")]
    names = [prefix + row[key] for key in NAME_KEYS if isinstance(row.get(key), str) and row[key]]
    said = [row[key] for key in CAPTION_KEYS if key in row]
    if not all(isinstance(i, (int, str)) and not isinstance(i, bool) for i in ids) or not ids + names or not said:
        raise bad_row(path, row)
    caption = said[0][0] if isinstance(said[0], list) and said[0] else said[0]
    several = _several(row.get("captions") if isinstance(row.get("captions"), (list, str)) else said[0])
    error = row.get("error") or None
    if not (caption is None or isinstance(caption, str)) or not (error is None or isinstance(error, str)):
        raise bad_row(path, row)
    if caption is None or (error and not caption):
        caption, error = None, error or "no caption"
    ended = {True: True, False: False, "true": True, "false": False}.get(_lower(row.get("ended")))
    names = list(dict.fromkeys(clean_name(str(name)) for name in [*ids, *names]))
    values = None if column is None or column not in row else _values(row[column])
    return Hypothesis(tuple(names), caption, ended, error, several, values)


def _values(value: Any) -> tuple[str, ...]:
    """What a cell says, as text; a list says several things, an empty cell nothing."""
    some = value if isinstance(value, list) else [value]
    texts = (str(one).lower() if isinstance(one, bool) else str(one).strip() for one in some if one is not None)
    return tuple(dict.fromkeys(text for text in texts if text))


def _several(value: Any) -> tuple[str, ...]:
    """All captions of a row: a list, also as JSON in the cell of a CSV file; () unless there are several."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    captions = tuple(c for c in value if isinstance(c, str)) if isinstance(value, list) else ()
    return captions if len(captions) > 1 else ()


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value if isinstance(value, bool) else None


def bad_row(path: Path, row: Any) -> InputError:
    return InputError(f"{path}: a row is {str(row)[:80]}, but each row needs {SHAPE}; correct the file.")
