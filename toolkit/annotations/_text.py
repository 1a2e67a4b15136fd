"""Text, CSV and JSON, read strictly: every mistake is one sentence with file and line."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from toolkit.errors import InputError

HEAD_BYTES = 1 << 16


def head(path: Path) -> str:
    """The first 64 KB of a file as text, for `detect`: never raises, "" for what is no file of text."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            data = file.read(HEAD_BYTES)
    except OSError:
        return ""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # recognised, so that the reader can say what to do
        return data.decode("utf-16", errors="replace").lstrip("\ufeff")
    return data.decode("utf-8", errors="replace").lstrip("\ufeff")


def first_line(path: Path) -> str:
    """The first line that is not blank, for `detect`."""
    return next((line for line in head(path).splitlines() if line.strip()), "")


def files_below(path: Path, endings: tuple[str, ...], depth: int) -> list[Path]:
    """Files of a folder, and of `depth` levels of folders in it, whose lower-case names end so; sorted, hidden ones
    passed over. No `Path` is made for any other file: there may be a million images."""
    files = []
    for folder, folders, names in os.walk(path):
        level = 0 if Path(folder) == path else len(Path(folder).relative_to(path).parts)
        folders[:] = [name for name in folders if not name.startswith(".")] if level < depth else []
        files += [Path(folder, n) for n in names if n.lower().endswith(endings) and not n.startswith(".")]
    return sorted(files)


def open_file(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({(error.strerror or '').lower()}); give an annotation file that can."
        ) from None


def decode(path: Path, data: bytes, line: int) -> str:
    """UTF-8 or an InputError with file, line and remedy: a guess would put mojibake into the captions."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data[: error.start].count(b"\n")
        code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        raise InputError(
            f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); convert the file with "
            f"`iconv -f {code} -t utf-8 {path.name} > new-{path.name}`, if that is its encoding, and name the new one."
        ) from None


def read_lines(path: Path) -> Iterator[str]:
    """Lines with their ends, without a BOM."""
    with open_file(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                if b"\0" in raw and raw[:2] not in (b"\xff\xfe", b"\xfe\xff"):
                    code = "utf-16le" if raw[:1] != b"\0" else "utf-16be"
                    raise InputError(
                        f"{path}: line 1 holds zero bytes, so this is not UTF-8; convert the file with "
                        f"`iconv -f {code} -t utf-8 {path.name} > new-{path.name}` and name the new one."
                    )
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            yield decode(path, raw, number)


def read_text(path: Path) -> str:
    with open_file(path) as file:
        data = file.read()
    return decode(path, data.removeprefix(b"\xef\xbb\xbf"), 1)


def read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every row that is not blank; quotes as in RFC 4180, broken ones are an error."""
    rows = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        for row in rows:
            if row:
                yield start, row
            start = rows.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}: the row at line {start} has a broken quotation ({error}); "
            'close the quote, or double every " inside of quotes.'
        ) from None


# ---- JSON -----------------------------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path) -> Iterator[tuple[str | None, Any]]:
    """The values of a JSON file one by one, so that only one of them is held beside the text.

    Yields (None, element) for each element of a list; of an object (key, element) for a value that is a list,
    (key, value) for any other.
    """
    text = read_text(path)
    decoder = json.JSONDecoder()
    position = 0

    def skip(at: int, expected: str = "") -> int:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if expected and text[at : at + 1] not in tuple(expected):
            raise json.JSONDecodeError(f"expecting {' or '.join(expected)}", text, at)
        return at

    def elements(at: int, key: str | None) -> Iterator[tuple[str | None, Any]]:
        nonlocal position
        at = skip(at + 1)
        while text[at : at + 1] != "]":
            value, at = decoder.raw_decode(text, at)
            yield key, value
            at = skip(at, ",]")
            if text[at] == ",":
                at = skip(at + 1)
        position = at + 1

    try:
        position = skip(0, "[{")
        if text[position] == "[":
            yield from elements(position, None)
        else:
            position = skip(position + 1)
            while text[position : position + 1] != "}":
                key, position = decoder.raw_decode(text, skip(position, '"'))
                position = skip(skip(position, ":") + 1)
                if text[position : position + 1] == "[":
                    yield from elements(position, key)
                else:
                    value, position = decoder.raw_decode(text, position)
                    yield key, value
                position = skip(position, ",}")
                if text[position] == ",":
                    position = skip(position + 1)
            position += 1
        if skip(position) != len(text):
            raise json.JSONDecodeError("extra data", text, position)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "somewhere"
        raise InputError(
            f"{path}: broken JSON at {where} ({getattr(error, 'msg', error)}); download or export it again.".replace(
                "  ", " "
            )
        ) from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSON Lines file."""
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(
                    f"{path}: line {number} is broken JSON ({getattr(error, 'msg', error)}); mend or remove it."
                ) from None
            if not isinstance(value, dict):
                raise InputError(f"{path}: line {number} is no JSON object; give one {{...}} a line.")
            yield number, value


def bad_shape(path: Path, what: str, shape: str) -> InputError:
    return InputError(f"{path}: {what}; expected {shape} (or name another --format).")
