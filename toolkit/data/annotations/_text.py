"""Text, read strictly: every mistake is one sentence with file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from toolkit.data.annotations._encodings import SAMPLE_BYTES, likely_encoding
from toolkit.errors import InputError

_LINE_END = re.compile(rb"\r\n|\n|\r")
HEAD_BYTES = 1 << 16
LARGEST_LOOK = 1 << 26  # of a file that is not UTF-8


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


def split_lines(text: str) -> list[str]:
    """Lines without their ends. `str.splitlines` would also end one at characters that a caption may hold."""
    lines = re.split(r"\r\n|\n|\r", text)
    return lines if lines[-1] else lines[:-1]


def first_lines(path: Path, count: int) -> list[str]:
    """The first lines that are not blank, for `detect`."""
    return list(islice((line for line in split_lines(head(path)) if line.strip()), count))


def first_line(path: Path) -> str:
    return "".join(first_lines(path, 1))


def files_below(path: Path, endings: tuple[str, ...], depth: int) -> list[Path]:
    """Files of a folder, and of `depth` levels of folders in it, whose lower-case names end so; sorted, hidden ones
    passed over. No `Path` is made for any other file: there may be a million images."""
    files = []
    for folder, folders, names in os.walk(path):
        level = 0 if Path(folder) == path else len(Path(folder).relative_to(path).parts)
        folders[:] = [name for name in folders if not name.startswith(".")] if level < depth else []
        files += [type(path)(folder, n) for n in names if n.lower().endswith(endings) and not n.startswith(".")]
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
        line += len(_LINE_END.findall(data, 0, error.start))
        wrong, others = _lines_apart(path, data)
        code = likely_encoding(wrong)
        what = f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})"
        if others:
            raise InputError(
                f"{what}, though other lines are; write that line again in UTF-8 (by itself it looks like {code})."
            ) from None
        raise InputError(
            f"{what}; convert the file with `iconv -f {code} -t utf-8 {path.name} > new-{path.name}`, if that is its "
            "encoding, and name the new one."
        ) from None


def _lines_apart(path: Path, data: bytes) -> tuple[bytes, bool]:
    """The lines that are not UTF-8, up to a sample of them, and whether others are and hold more than ASCII.

    Looked for in the whole file, for a line alone is little to tell an encoding by; in `data` if it is in a container.
    """
    if path.is_file():
        with open(path, "rb") as file:
            data = file.read(LARGEST_LOOK)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data[:SAMPLE_BYTES], False
    wrong, others, size = [], False, 0
    for line in data.splitlines(keepends=True):
        try:
            others |= not line.decode("utf-8").isascii()
        except UnicodeDecodeError:
            wrong.append(line)
            size += len(line)
            if size >= SAMPLE_BYTES:
                break
    return b"".join(wrong)[:SAMPLE_BYTES], others


def read_lines(path: Path) -> Iterator[str]:
    r"""Lines with their ends (\n, \r\n or \r), without a BOM."""
    with open_file(path) as file:
        lines = (line for piece in file for line in piece.splitlines(keepends=True))  # of bytes: no other ends
        for number, raw in enumerate(lines, 1):
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


def bad_shape(path: Path, what: str, shape: str) -> InputError:
    return InputError(f"{path}: {what}; expected {shape} (or name another --format).")
