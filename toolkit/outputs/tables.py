"""Captions and metrics of each image as a pandas DataFrame: the same one from jsonl, csv and parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.annotations._json import read_json, read_json_lines
from toolkit.data.annotations.parquet import open_parquet
from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import CAPTION_KEYS, ID_KEYS, NAME_KEYS, bad_header, bad_row, csv_rows, file_format
from toolkit.evaluation.shown import NAMES as METRICS

if TYPE_CHECKING:
    import pandas as pd

DTYPES = {
    **dict.fromkeys((*ID_KEYS, *NAME_KEYS, "caption", "error", "signature", "source"), "string"),
    **dict.fromkeys(("score", *METRICS), "float64"),
    **dict.fromkeys(("ended", "weak", "rejected"), "boolean"),
    **dict.fromkeys(("width", "height"), "Int64"),
    **dict.fromkeys(("captions", "clip_scores"), "object"),
}
OTHER = re.compile(r"^against_(?:[0-9]+_)?")  # a column of another system, by evaluate --against
# In which columns stand; others follow as they come.
ORDER = ("image_id", "image", "caption", "captions", "score", "clip_score", "clip_scores", "ended", "weak", "error", "width",
         "height")  # fmt: skip


def read_captions(path: str | Path) -> pd.DataFrame:
    """A file of captions as a table: what batch-caption writes, or `--per-image` of evaluate.

    One row for each of the file's, in its order, and the same table from jsonl, csv and parquet. Names, captions and errors
    have the dtype string; `score` and metrics float64, as fractions; `ended` and `weak` boolean; `width` and `height` Int64.
    `captions`, where an image has several, is a list. What a row does not have is missing (`isna()`); columns unknown to
    toolkit are left as they are, in a csv as text. pandas' own `read_csv` would take a caption "null" for a missing one, and
    an image "007" for a number.

    Raises:
        InputError: no such file, not captions, or broken.
    """
    import pandas as pd

    columns = read_columns(Path(path))
    return pd.DataFrame({name: pd.Series(values, dtype=DTYPES.get(_plain(name))) for name, values in columns.items()})


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns of `read_captions` as lists of plain values, None for what a row does not have; no pandas.

    Raises:
        InputError: as `read_captions`.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file of captions, for example the metadata.jsonl in it.")
    columns = _columns(path)
    if not {*ID_KEYS, *NAME_KEYS} & {*columns} or not {*CAPTION_KEYS} & {*columns}:
        raise bad_header(path, columns)
    if not any(value is not None for value in columns.get("weak", [])):  # every parquet file has the column
        columns.pop("weak", None)
    names = [name for name in ORDER if name in columns]
    names += [name for name in columns if name not in names]
    return {name: _converted(path, name, columns[name]) for name in names}


def _plain(name: str) -> str:
    """`cider` of `cider`, `against_cider` and `against_2_cider`: the name of a column without whose it is."""
    return OTHER.sub("", name)


def _columns(path: Path) -> dict[str, list[Any]]:
    """The values of the file by column, None for those that a row does not have."""
    format = file_format(path)
    if format == "parquet":
        table = open_parquet(path).read()
        return {name: table[name].to_pylist() for name in table.column_names}
    rows: Iterable[dict[str, Any]]
    if format == "csv":
        rows = map(_cells, csv_rows(path))
    elif format == "jsonl":
        rows = (row for _, row in read_json_lines(path))
    else:
        rows = _entries(path)
    columns: dict[str, list[Any]] = {}
    for count, row in enumerate(rows):
        for name in row:
            if name not in columns:
                columns[name] = [None] * count
        for name, values in columns.items():
            values.append(row.get(name))
    return columns


def _cells(row: dict[str, str]) -> dict[str, str | None]:
    """An empty cell is no value, but an empty caption where there is no error."""
    cells: dict[str, str | None] = {
        name: value if value or _plain(name) not in DTYPES else None for name, value in row.items()
    }
    empty = {name: "" for name in row if _plain(name) == "caption" and not row[name] and not row.get("error")}
    return cells | empty


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for _, _, row in read_json(path):
        if not isinstance(row, dict):
            raise bad_row(path, row)
        yield row


def _converted(path: Path, name: str, values: list[Any]) -> list[Any]:
    """
    Raises:
        InputError: a value is not of the column's kind.
    """
    dtype = DTYPES.get(_plain(name))
    if dtype is None:
        return values
    kind, convert = KINDS[dtype]
    converted = []
    for value in values:
        try:
            converted.append(None if value is None else convert(value))
        except (ValueError, TypeError, KeyError):
            what = str(value)[:40]
            raise InputError(f"{path}: {name} is {what!r} in a row, but must be {kind}; correct the file.") from None
    return converted


def _text(value: Any) -> str:
    if isinstance(value, (list, dict)):
        raise TypeError
    return str(value)  # COCO's ids are numbers


def _boolean(value: Any) -> bool:
    return {"true": True, "false": False}[value.lower()] if isinstance(value, str) else bool(value)


def _whole(value: Any) -> int:
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _list(value: Any) -> list[Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise TypeError
    return found


KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "string": ("text", _text),
    "float64": ("a number", float),
    "boolean": ("true or false", _boolean),
    "Int64": ("a whole number", _whole),
    "object": ("a list of captions", _list),
}
