"""Image names that lead to no file, and the one way of reading them in which they do.

    names in the annotations     files in the folder     found
    Images/1.jpg                 1.jpg                   without the folder Images/
    C:\\data\\train\\1.jpg          train/1.jpg             without the folder C:/data/
    1.jpg                        train/1.jpg             in the folder train/
    a/1.jpg, b/2.jpg             1.jpg, 2.jpg            by their last part
    IMG_1.JPG                    img_1.jpg               in other upper and lower case
    1                            1.jpg                   with a suffix

A way is taken if it leads every lost name to one file that no other name has (of twenty names one may stay lost), before
any image is decoded; else the names stay as they are. The ways are tried in order: what is nearest to the names as
they are written comes first. Only when a name is lost is the folder listed.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from toolkit.data.annotations._gather import Notes
from toolkit.data.images import IMAGE_SUFFIXES, image_names, resolve_image
from toolkit.errors import ImageError
from toolkit.records import ImageRecord

SPARE = 20  # one name in so many may stay lost
LARGEST_LISTING = 1_000_000  # files in a folder, or ten for each lost name: what holds more is not these images' folder
NEAR = 5_000  # names that one is compared with


def find_names(records: Iterable[ImageRecord], root: Path, notes: Notes) -> Iterator[ImageRecord]:
    """The records, with the names of files for names that are written otherwise. Ids stay as they are.

    From the first lost name on the records wait until all have been seen. `notes` counts what was found; `notes.nearest`
    has, for the first that were not, the nearest name there is.
    """
    there: set[str] = set()
    lost: dict[str, str | None] = {}
    waiting: list[ImageRecord] = []
    for record in records:
        if record.data is not None or not is_lost(root, record.path):
            there.add(_plain(record.path) or record.path)
            if not lost:
                yield record
                continue
        else:
            lost[record.path] = _plain(record.path)
        waiting.append(record)
    found = _find(lost, there, root, notes) if lost and root.is_dir() else {}
    for record in waiting:
        yield replace(record, path=found[record.path]) if record.path in found else record


def is_lost(root: Path, name: str) -> bool:
    """Whether a name leads to nothing in the folder."""
    try:
        resolve_image(root, name)
    except ImageError as error:
        return str(error) in ("missing", "leads outside the images folder")
    return False


def _plain(name: str) -> str | None:
    """A name as a listing would have it: composed letters, "/" between parts, neither drive nor "./" nor a leading "../";
    None where that can't be."""
    parts = [part for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/") if part not in ("", ".")]
    while parts and parts[0] == "..":
        del parts[0]
    return "/".join(parts) if parts and ".." not in parts else None


# ---- ways -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """How names are read.

    Attributes:
        strip: how many leading folders are left out; None: all of them.
        below: what is left is the end of a file's path, else all of it.
        any_case, suffix: it may differ in upper and lower case; it lacks its suffix.
    """

    strip: int | None
    below: bool
    any_case: bool
    suffix: bool

    def left(self, name: str) -> str:
        if self.strip is None:
            return name.rsplit("/", 1)[-1]
        return name.split("/", self.strip)[-1]

    def key(self, name: str) -> str:
        return name.casefold() if self.any_case else name

    def sentence(self, prefix: list[str], names: dict[str, str]) -> str:
        words = []
        if self.strip is None:
            words.append("by their last part")
        elif self.strip:
            words.append(f"without the folder {'/'.join(prefix[: self.strip])}/")
        if self.below:
            added = {
                "/".join(file.split("/")[: file.count("/") - self.left(name).count("/")])
                for name, file in names.items()
            }
            words.append(f"in the folder {added.pop()}/" if len(added) == 1 else "in the folders there")
        words += ["in other upper and lower case"] if self.any_case else []
        words += ["with a suffix"] if self.suffix else []
        return ", ".join(words or ["without ../"])


class _Files:
    """The files of a folder by their paths, or by the last parts of these."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.tables: dict[tuple[int, bool, bool], dict[str, str | None]] = {}

    def table(self, parts: int, way: _Way) -> dict[str, str | None]:
        """The last `parts` of a path (0: all of it) -> the file that has them; None if several do."""
        known = self.tables.get((parts, way.any_case, way.suffix))
        if known is not None:
            return known
        table: dict[str, str | None] = {}
        for file in self.names:
            name = file if file.isascii() else unicodedata.normalize("NFC", file)
            if parts:
                pieces = name.rsplit("/", parts)
                if len(pieces) < parts:
                    continue
                name = "/".join(pieces[-parts:])
            if way.suffix:
                name = os.path.splitext(name)[0]
            key = way.key(name)
            table[key] = None if key in table else file
        self.tables[parts, way.any_case, way.suffix] = table
        return table


def _find(lost: dict[str, str | None], there: set[str], root: Path, notes: Notes) -> dict[str, str]:
    """Lost name -> file."""
    most = max(LARGEST_LISTING, 10 * len(lost))
    files = _Files(list(islice(image_names(root), most + 1)))
    if len(files.names) > most:
        return {}
    names = {name: plain for name, plain in lost.items() if plain is not None}
    prefix = _common_folders(list(names.values()))
    folders = {name.rpartition("/")[0] for name in there}
    spare = len(lost) // SPARE - (len(lost) - len(names))
    for way in _ways(list(names.values()), prefix) if files.names and spare >= 0 else ():
        found = _along(way, names, spare, there, folders, files)
        if found:
            how = way.sentence(prefix, {names[name]: file for name, file in found.items()})
            for name, file in islice(found.items(), 3):
                notes.count(f"image names found {how}", f"{name} is {file}", 0)
            notes.count(f"image names found {how}", number=len(found))
            break
    else:
        found = {}
    for name in islice((name for name in lost if name not in found), 3):
        near = _nearest(lost[name] or name, files.names)
        if near is not None:
            notes.nearest[name] = near
    return found


def _common_folders(names: list[str]) -> list[str]:
    common = names[0].split("/")[:-1] if names else []
    for name in names:
        while common and not name.startswith("/".join(common) + "/"):
            common.pop()
    return common


def _ways(names: list[str], prefix: list[str]) -> Iterator[_Way]:
    strips: list[int | None] = list(range(len(prefix) + 1))
    if any(name.count("/") > len(prefix) for name in names):
        strips.append(None)
    for any_case, suffix in ((False, False), (True, False), (False, True), (True, True)):
        for strip in strips:
            for below in (False, True):
                yield _Way(strip, below, any_case, suffix)


def _along(
    way: _Way, names: dict[str, str], spare: int, there: set[str], folders: set[str], files: _Files
) -> dict[str, str]:
    """Name -> file along one way; nothing if it is not the way for all but `spare` of them."""
    found: dict[str, str] = {}
    in_place = way.strip == 0 and not way.below
    taken: set[str] = set()
    for name, plain in names.items():
        left = way.left(plain)
        table = files.table(left.count("/") + 1 if way.below else 0, way)
        key = way.key(left)
        file: str | None = None
        # In a folder where other names are as they should be, this one is just not there. And what has a suffix
        # lacks none.
        if (in_place or plain.rpartition("/")[0] not in folders) and not (way.suffix and _has_suffix(left)):
            file = table.get(key)
            if file is None and key in table:
                return {}  # several files: which one is meant?
        if file is None:
            spare -= 1
            if spare < 0:
                return {}
            continue
        if file in there or file in taken:  # another image's
            return {}
        taken.add(file)
        found[name] = file
    return found


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


# ---- near names -----------------------------------------------------------------------------------------------------


def _nearest(name: str, files: list[str]) -> str | None:
    """The most similar of the names there are, in any folder; None if none is similar. Another number is another image."""
    numbers = _numbers(name)
    last = {file.rsplit("/", 1)[-1].casefold(): file for file in files if _numbers(file) == numbers}
    near = difflib.get_close_matches(name.rsplit("/", 1)[-1].casefold(), list(islice(last, NEAR)), n=1)
    return last[near[0]] if near else None


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]{1,20}", name.rsplit("/", 1)[-1])]
