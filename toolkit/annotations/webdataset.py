"""WebDataset: tars of `key.jpg` with `key.txt` (captions, one a line) or `key.json` ("captions", "caption" or "text").

A file or a folder of `.tar`, `.tar.gz`, `.tgz`. Tars or folders whose names begin with train, val or test are splits if
train is among them. Nothing is ever unpacked to disk; members whose names lead outside, links and devices are passed
over and counted.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.annotations._gather import Notes, captions_in, clean_captions, split_name, splits_of_names
from toolkit.annotations._text import decode, files_below
from toolkit.errors import InputError
from toolkit.images import IMAGE_SUFFIXES
from toolkit.records import ImageRecord

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_SUFFIXES = (
    ".json",
    ".txt",
    ".caption",
)  # in order of preference: the JSON has captions apart, line breaks and all
LARGEST_MEMBER = 1 << 30


def detect(path: Path) -> bool:
    try:
        return bool(_files(path)) if path.is_dir() else path.is_file() and path.name.lower().endswith(SUFFIXES)
    except OSError:
        return False


def images_root(path: Path, images: Path) -> None:
    return None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return files_below(path, SUFFIXES, 1)


def read(path: Path, images: Path, notes: Notes) -> Iterator[ImageRecord]:
    if not (files := _files(path)):
        raise InputError(f"{path}: no .tar in it; name a tar or a folder of them.")
    names = [file.relative_to(path).as_posix() if path.is_dir() else "" for file in files]
    splits = splits_of_names(names, files=True)
    for file, name in zip(files, names, strict=True):
        # Keys often begin at 0 in each tar: in a folder of tars the tar is part of the name.
        stem = name[: -len(next(s for s in SUFFIXES if name.lower().endswith(s)))] + "/" if name else ""
        yield from _read_tar(file, stem, splits.get(name), notes)


def _read_tar(file: Path, prefix: str, split: str | None, notes: Notes) -> Iterator[ImageRecord]:
    try:
        with tarfile.open(file, "r:*") as tar:
            members = _members(tar, notes)
            stems: dict[str, list[str]] = {}
            for name in members:
                stems.setdefault(os.path.splitext(name)[0], []).append(name)
            texts = set()
            for name in members:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                beside = [n for n in stems[stem] if os.path.splitext(n)[1].lower() in TEXT_SUFFIXES]
                beside.sort(key=lambda n: TEXT_SUFFIXES.index(os.path.splitext(n)[1].lower()))
                texts.update(beside)
                captions, own_split = _captions(tar, file, members, beside)
                captions = clean_captions(captions, prefix + name, notes)
                if not captions:
                    notes.count("images without a caption left out", prefix + name)
                    continue
                data = _bytes(tar, members[name])
                own_split = split_name(file, own_split, prefix + name) or split
                yield ImageRecord(prefix + name, prefix + name, tuple(captions), own_split, data)
            for name in members:
                if name not in texts and os.path.splitext(name)[1].lower() in (".txt", ".caption"):
                    notes.count("texts without an image", prefix + name)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).split("\n")[0][:60]
        raise InputError(f"{file}: not a whole tar ({reason}); download or pack it again.") from None


def _members(tar: tarfile.TarFile, notes: Notes) -> dict[str, tuple[int, int]]:
    """name -> (offset, size) of the plain files with safe names, in their order."""
    members: dict[str, tuple[int, int]] = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a tar of 10^5 files would hold 10^5 of these
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            notes.count("tar members whose names lead outside passed over", name)
        elif not member.isreg() or member.issparse():
            notes.count("links and special files in tars passed over", name)
        elif member.size > LARGEST_MEMBER:
            notes.count("tar members over 1 GiB passed over", name)
        elif name in members:
            notes.count("tar members of a name already taken passed over", name)
        else:
            members[name] = (member.offset_data, member.size)
    return members


def _bytes(tar: tarfile.TarFile, place: tuple[int, int]) -> bytes:
    file: Any = tar.fileobj
    file.seek(place[0])
    return file.read(place[1])


def _captions(
    tar: tarfile.TarFile, file: Path, members: dict[str, tuple[int, int]], names: list[str]
) -> tuple[list[str], Any]:
    """The captions in the first of the files that has some, and the split that a JSON names."""
    split = None
    for name in names:
        where = Path(f"{file}:{name}")
        text = decode(where, _bytes(tar, members[name]).removeprefix(b"\xef\xbb\xbf"), 1)
        if not name.lower().endswith(".json"):
            return text.splitlines(), split
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(
                f"{where}: broken JSON ({getattr(error, 'msg', error)}); mend it and pack again."
            ) from None
        if isinstance(values, dict):
            split = values.get("split")
            for key in ("captions", "caption", "text"):
                if captions := captions_in(values.get(key)):
                    return captions, split
    return [], split
