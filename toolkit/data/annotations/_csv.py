"""Tables as text: rows of fields, divided by commas, tabs, semicolons or bars; quoted as in RFC 4180.

sep=;                             Excel's own first line, where there is one
image;caption
a.jpg; "a dog; a cat"             a space before a quote is no part of the field
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.data.annotations._columns import IMAGE_KEYS, Columns
from toolkit.data.annotations._gather import Notes, captions_in
from toolkit.data.annotations._text import first_line, first_lines, read_lines
from toolkit.errors import InputError

LARGEST_FIELD = 2**31 - 1  # the csv module's own limit is 131,072 characters


class Row(NamedTuple):
    """A row of a table, with what it is read for."""

    line: int
    name: str
    captions: list[str]
    split: str | None


def table_header(path: Path) -> list[str]:
    """The names of a table's columns, for `detect`: never raises, [] for what is no table."""
    try:
        delimiter, skip = table_delimiter(path)
        line = "".join(first_lines(path, 2)[skip : skip + 1])
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return []


def _sep(line: str) -> str | None:
    """What Excel's first line `sep=;` says."""
    line = line.strip().strip('"')
    return line[4] if len(line) == 5 and line[:4].lower() == "sep=" else None


def table_delimiter(path: Path) -> tuple[str, int]:
    """The character between fields, and the number of lines (0 or 1) that are there only to name it."""
    line = first_line(path)
    said = _sep(line)
    return (said, 1) if said is not None else (max(",\t;|", key=line.count), 0)


def read_csv(path: Path, delimiter: str = ",", skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every row that is not blank, after the first `skip` of them.

    Raises:
        InputError: a quotation is broken, so that nobody can tell where its row ends.
    """
    csv.field_size_limit(LARGEST_FIELD)
    taken: list[str] = []  # lines of the row at hand

    def lines() -> Iterator[str]:
        for line in source:
            taken.append(line)
            yield line

    source = read_lines(path)
    start, width = 1, 0
    while True:
        # Anew for each row: after an error there is no going on. A space before a quote is passed over, unless ...
        try:
            row: list[str] | None = next(csv.reader(lines(), delimiter=delimiter, skipinitialspace=True, strict=True))
        except StopIteration:
            return
        except csv.Error:
            row = None
        rows = [(start, row)] if row is not None else []
        if row is None or any(delimiter + " " in line for line in taken):
            # ... the quote is part of an unquoted field: `a.jpg, "sit" he says`; then the field is left as it is.
            try:
                as_written = list(_rows(taken, delimiter, start))
            except csv.Error as error:
                if row is None:
                    raise InputError(
                        f"{path}: the row at line {start} has a broken quotation ({error}); "
                        'close the quote, or double every " inside of quotes.'
                    ) from None
                as_written = []
            spaced = any(field.lstrip().startswith('"') for _, fields in as_written for field in fields)
            if row is None or (len(as_written) == 1 and not (spaced and len(row) == width)):
                rows = as_written
        start += len(taken)
        taken.clear()
        for line, fields in rows:
            if not fields:
                continue
            if skip:
                skip -= 1
                continue
            width = width or len(fields)
            yield line, fields


def _rows(lines: list[str], delimiter: str, start: int) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    before = 0
    for row in rows:
        yield start + before, row
        before = rows.line_num


def read_table(path: Path, notes: Notes, columns: Columns, known: Sequence[str] = IMAGE_KEYS) -> Iterator[Row]:
    """The rows of a table with a header; those that can't be used go to the notes.

    Args:
        known: the usual names of a column of images.

    Raises:
        InputError: it has no column of images or of captions, or a quotation is broken.
    """
    delimiter, skip = table_delimiter(path)
    rows = read_csv(path, delimiter, skip)
    _, header = next(rows, (0, []))
    columns.meet(header)
    image, captions = columns.find_image(header, path, known), columns.find_captions(header, path)
    if image is None or not captions:
        found = ", ".join(name.strip() for name in header)[:80]
        raise InputError(
            f"{path}: its first line has no columns {'image' if known is IMAGE_KEYS else known[0]} and caption (but "
            f"{found or 'nothing'}); write them above the rows, or name those it has with --image-column and "
            "--caption-column."
        )
    split = columns.find_split(header, path)
    name_at, captions_at = header.index(image), [header.index(name) for name in captions]
    split_at = header.index(split) if split is not None else None
    # Fields at the end of a row may be left out if the row can be used without them.
    needed = max(name_at, min(captions_at), split_at or 0) + 1
    for line, row in rows:
        if not any(map(str.strip, row)):  # as spreadsheets write them below a table
            continue
        if len(row) > len(header) and not any(row[len(header) :]):
            del row[len(header) :]
        if len(row) > len(header) and captions_at == [len(header) - 1]:
            # A caption with commas that somebody forgot to quote; the last column, so nothing else can be meant.
            row[len(header) - 1 :] = [delimiter.join(row[len(header) - 1 :])]
            notes.count("rows with unquoted commas repaired", f"line {line}")
        if not needed <= len(row) <= len(header):
            fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
            notes.reject(line, f"{fields} for {len(header)} columns", row[name_at] if name_at < len(row) else None)
            continue
        row += [""] * (len(header) - len(row))
        said_of_it = captions_in([row[at] for at in captions_at]) or []
        yield Row(line, row[name_at], said_of_it, row[split_at] if split_at is not None else None)
