"""WebDataset: tars of `key.jpg` with `key.txt` (captions, one a line) or `key.json` ("captions", "caption" or "text"), or
with `key.caption_0.txt`, `key.caption_1.txt`, ...

A file or a folder of `.tar`, `.tar.gz`, `.tgz`. Tars or folders whose names begin with train, val or test are splits if
train is among them. Nothing is ever unpacked to disk; members whose names lead outside, links and devices are passed
over and counted.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from toolkit.data.annotations._columns import Columns, caption_columns
from toolkit.data.annotations._gather import Notes, captions_in, clean_captions
from toolkit.data.annotations._text import decode, files_below, split_lines
from toolkit.data.annotations._unknown import no_text
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.errors import InputError, RunError
from toolkit.records import ImageRecord

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_SUFFIXES = (".json", ".txt", ".caption")  # as they are preferred: a JSON has captions apart, line breaks and all
JSON_KEYS = ("captions", "caption", "text")
LARGEST_MEMBER = 1 << 30
IN_MEMORY = 1 << 26  # of a tar that was compressed
_NUMBERED = re.compile(r"(?P<key>.+)\.captions?_?(?P<number>\d*)\.txt", re.DOTALL | re.IGNORECASE)
_COMPRESSED: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
)


def detect(path: Path) -> bool:
    try:
        return bool(_files(path)) if path.is_dir() else path.is_file() and path.name.lower().endswith(SUFFIXES)
    except OSError:
        return False


def images_root(path: Path, images: Path, columns: Columns) -> None:
    return None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return files_below(path, SUFFIXES, 1)


def read(path: Path, images: Path, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    for file, stem, split in tars(path, columns):
        yield from _read_tar(file, stem, split, notes, columns)


def tars(path: Path, columns: Columns) -> Iterator[tuple[Path, str, str | None]]:
    """Of each tar: the file, what the names of its images begin with, and its split."""
    if not (files := _files(path)):
        raise InputError(f"{path}: no .tar in it; name a tar or a folder of them.")
    names = [file.relative_to(path).as_posix() if path.is_dir() else "" for file in files]
    splits = columns.splits_of_names(names, files=True)
    for file, name in zip(files, names, strict=True):
        # Keys often begin at 0 in each tar: in a folder of tars the tar is part of the name.
        stem = name[: -len(next(s for s in SUFFIXES if name.lower().endswith(s)))] + "/" if name else ""
        yield file, stem, splits.get(name)


class Place(NamedTuple):
    """Where an image lies in a tar, or in what a compressed one unpacks to."""

    name: str
    split: str | None
    offset: int
    size: int


def list_tar(file: Path, prefix: str, split: str | None, notes: Notes, columns: Columns) -> Iterator[Place]:
    """Every image in a tar, whether it has a caption or not; the names are those that `read` gives."""
    with _opened(file) as tar:
        members = _members(tar, notes)
        for name, (offset, size) in members.items():
            key = _key(name, columns)
            columns.meet([name[len(key) + 1 :]])
            if _is_image(name, key, columns):
                own = _split_in_json(tar, members.get(f"{key}.json"), columns)
                yield Place(prefix + name, columns.split_name(file, own, prefix + name) or split, offset, size)


def _split_in_json(tar: tarfile.TarFile, place: tuple[int, int] | None, columns: Columns) -> Any:
    if place is None:
        return None
    try:
        values = json.loads(_bytes(tar, place))
    except (ValueError, RecursionError):
        return None
    return values.get(columns.split or "split") if isinstance(values, dict) else None


def _read_tar(file: Path, prefix: str, split: str | None, notes: Notes, columns: Columns) -> Iterator[ImageRecord]:
    with _opened(file) as tar:
        members = _members(tar, notes)
        keys: dict[str, list[str]] = {}
        for name in members:
            key = _key(name, columns)
            keys.setdefault(key, []).append(name)
            columns.meet([name[len(key) + 1 :]])
        texts = set()
        for name in members:
            key = _key(name, columns)
            if not _is_image(name, key, columns):
                continue
            ranks = {n: rank for n in keys[key] if (rank := _rank(n, key)) is not None}
            beside = sorted(ranks, key=ranks.__getitem__)
            texts.update(beside)
            found = _captions(tar, file, members, key, beside, notes, columns)
            if found is None:
                continue
            captions = clean_captions(found[0], prefix + name, notes)
            if not captions:
                notes.count("images without a caption left out", prefix + name)
                continue
            data = _bytes(tar, members[name])
            own_split = columns.split_name(file, found[1], prefix + name) or split
            yield ImageRecord(prefix + name, prefix + name, tuple(captions), own_split, data)
        for name in members:
            if name not in texts and os.path.splitext(name)[1].lower() in (".txt", ".caption"):
                notes.count("texts without an image", prefix + name)


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with plain_tar(file) as plain, tarfile.open(fileobj=plain, mode="r:") as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if (known := no_text(file)) is not None and "archive" not in known:
            raise InputError(f"{file}: {known}.") from None
        reason = str(error).split("\n")[0][:60]
        raise InputError(f"{file}: not a whole tar ({reason}); download or pack it again.") from None


def plain_tar(file: Path) -> IO[bytes]:
    """A tar that can be read in any order: the file, or what a compressed one unpacks to, in one pass over it.

    That goes to memory, or where it is large to a temporary file without a name, one tar at a time.
    """
    with open(file, "rb") as source:
        start = source.read(6)
    opened = next((open_ for magic, open_ in _COMPRESSED if start.startswith(magic)), None)
    if opened is None:
        return open(file, "rb")
    unpacked: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the caller's to close
    with opened(file, "rb") as packed:
        while chunk := packed.read(1 << 20):
            try:
                unpacked.write(chunk)
            except OSError as error:
                raise RunError(
                    f"{file}: can't be unpacked in {tempfile.gettempdir()} ({(error.strerror or '').lower()}); set "
                    "TMPDIR to a folder with more room."
                ) from None
    unpacked.seek(0)
    return unpacked


def _members(tar: tarfile.TarFile, notes: Notes) -> dict[str, tuple[int, int]]:
    """name -> (offset, size) of the plain files with safe names, in their order."""
    members: dict[str, tuple[int, int]] = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a tar of 10^5 files would hold 10^5 of these
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            notes.count("tar members whose names lead outside skipped", name)
        elif not member.isreg() or member.issparse():
            notes.count("links and special files in tars skipped", name)
        elif member.size > LARGEST_MEMBER:
            notes.count("tar members over 1 GiB skipped", name)
        elif name in members:
            notes.count("tar members with a name already taken skipped", name)
        else:
            members[name] = (member.offset_data, member.size)
    return members


def _bytes(tar: tarfile.TarFile, place: tuple[int, int]) -> bytes:
    file: Any = tar.fileobj
    file.seek(place[0])
    return file.read(place[1])


def _key(name: str, columns: Columns) -> str:
    """What the files of one image have in common: `a/0` of `a/0.jpg`, `a/0.json` and `a/0.caption_1.txt`."""
    for ending in (*columns.captions, *([columns.image] if columns.image else [])):
        if name.endswith("." + ending):
            return name[: -len(ending) - 1]
    numbered = _NUMBERED.fullmatch(name)
    return numbered["key"] if numbered else os.path.splitext(name)[0]


def _is_image(name: str, key: str, columns: Columns) -> bool:
    if columns.image:
        return name == f"{key}.{columns.image}"
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _rank(name: str, key: str) -> tuple[int, int] | None:
    """In which order an image's texts are asked for captions; None for what is no text."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered and numbered["key"] == key:
        return len(TEXT_SUFFIXES), int(numbered["number"] or 0)
    suffix = os.path.splitext(name)[1].lower()
    return (TEXT_SUFFIXES.index(suffix), 0) if suffix in TEXT_SUFFIXES else None


def _captions(
    tar: tarfile.TarFile,
    file: Path,
    members: dict[str, tuple[int, int]],
    key: str,
    names: list[str],
    notes: Notes,
    columns: Columns,
) -> tuple[list[str], Any] | None:
    """The captions of an image and the split that a JSON names; None if its JSON can't be used.

    They are in the first of the texts that has some, or in those that the user names.
    """
    split = None
    found: dict[str, list[str]] = {}  # ending or key of the JSON -> captions
    for name in names:
        where = Path(f"{file}:{name}")
        text = decode(where, _bytes(tar, members[name]).removeprefix(b"\xef\xbb\xbf"), 1)
        if not name.lower().endswith(".json"):
            found[name[len(key) + 1 :]] = split_lines(text)
            continue
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            notes.reject(None, f"broken JSON ({getattr(error, 'msg', error)})", where.name)
            return None
        if isinstance(values, dict):
            columns.meet(values)
            split = values.get(columns.split or "split")
            keys = list(columns.captions) or [k for k in JSON_KEYS if k in values] or caption_columns(values)
            found |= {k: captions_in(values.get(k)) or [] for k in keys if k in values}
    if columns.captions:
        return [caption for name in columns.captions for caption in found.get(name, [])], split
    numbered = [caption for name, said in found.items() if _NUMBERED.fullmatch(f"{key}.{name}") for caption in said]
    others = (said for name, said in found.items() if not _NUMBERED.fullmatch(f"{key}.{name}"))
    return next((said for said in others if any(map(str.strip, said))), numbered), split
