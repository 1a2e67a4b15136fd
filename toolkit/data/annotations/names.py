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
import pickle
import re
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from toolkit.data.annotations._gather import Notes
from toolkit.data.annotations._listing import IN_MEMORY, Files, There, Way, hash_name
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.data.sources import ImageSource, image_names
from toolkit.errors import ImageError
from toolkit.records import ImageRecord
from toolkit.runtime.shelf import Shelf

SPARE = 20  # one name in so many may stay lost
LARGEST_LISTING = 1_000_000  # files in a folder, or ten for each lost name: what holds more is not these images' folder
NEAR = 5_000  # names that one is compared with


def find_names(records: Iterable[ImageRecord], root: Path, notes: Notes) -> Iterator[ImageRecord]:
    """The records, with the names of files for names that are written otherwise. Ids stay as they are.

    From the first lost name on the records wait, on the disk, until all have been seen. `notes` counts what was found;
    `notes.nearest` has, for the first that were not, the nearest name there is.
    """
    there = There()
    lost = Shelf()  # name -> the same in plain form, or None
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as waiting:
        for record in records:
            if record.data is not None or not is_lost(root, record.path):
                there.add(_plain(record.path) or record.path)
                if not len(lost):
                    yield record
                    continue
            else:
                lost.setdefault(record.path, _plain(record.path))
            pickle.dump(record, waiting)
        find = _find(lost, there, root, notes) if len(lost) and root.is_dir() else None
        waiting.seek(0)
        while True:
            try:
                record = pickle.load(waiting)
            except EOFError:
                break
            plain = lost.get(record.path) if find is not None else None
            file = find(plain) if find is not None and plain is not None else None
            yield record if file is None else replace(record, path=file)


def is_lost(root: Path, name: str) -> bool:
    """Whether a name leads to nothing in the folder."""
    try:
        ImageSource.of(root).find(name)
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


Find = Callable[[str], str | None]  # the plain form of a lost name -> its file


def _find(lost: Shelf, there: There, root: Path, notes: Notes) -> Find | None:
    """How lost names are read; None if there is no way for them."""
    most = max(LARGEST_LISTING, 10 * len(lost))
    files = Files(islice(image_names(root), most + 1))
    if len(files) > most:
        return None
    prefix, deeper, nameless = _common_folders(lost)
    spare = len(lost) // SPARE - nameless
    found: _Found | None = None
    for way in _ways(prefix, deeper) if len(files) and spare >= 0 else ():
        found = _along(way, lost, spare, there, files)
        if found is not None:
            how = f"image names found {way.sentence(prefix, found.added)}"
            for name, file in found.first.items():
                notes.count(how, f"{name} is {file}", 0)
            notes.count(how, number=found.count)
            break
    missing = found.missing if found is not None else dict(islice(lost.items(), 3))
    for name, plain in missing.items():
        near = _nearest(plain or name, files)
        if near is not None:
            notes.nearest[name] = near
    return found.find if found is not None else None


def _common_folders(lost: Shelf) -> tuple[list[str], bool, int]:
    """The folders that all names begin with, whether a name has more, and how many names have no plain form."""
    common: list[str] | None = None
    deepest = nameless = 0
    for _, name in lost.items():
        if name is None:
            nameless += 1
            continue
        common = name.split("/")[:-1] if common is None else common
        while common and not name.startswith("/".join(common) + "/"):
            common.pop()
        deepest = max(deepest, name.count("/"))
    return common or [], deepest > len(common or []), nameless


def _ways(prefix: list[str], deeper: bool) -> Iterator[Way]:
    strips: list[int | None] = list(range(len(prefix) + 1))
    if deeper:
        strips.append(None)
    for any_case, suffix in ((False, False), (True, False), (False, True), (True, True)):
        for strip in strips:
            for below in (False, True):
                yield Way(strip, below, any_case, suffix)


@dataclass
class _Found:
    """What a way leads to.

    Attributes:
        first, missing: name -> file of the first three that are found, name -> plain form of those that are not.
        added: the folders in which files were found that the names lack; two are as good as many.
    """

    find: Find
    count: int = 0
    first: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str | None] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)


def _along(way: Way, lost: Shelf, spare: int, there: There, files: Files) -> _Found | None:
    """What is found along a way; None if it is not the way for all but `spare` of the names."""
    found = _Found(partial(_file_along, way, there, files))
    taken = array("Q")
    for name, plain in lost.items():
        try:
            file = found.find(plain) if plain is not None else None
        except LookupError:  # several files: which one is meant?
            return None
        if file is None:
            spare -= plain is not None  # those without a plain form have been counted
            if spare < 0:
                return None
            if len(found.missing) < 3:
                found.missing[name] = plain
            continue
        if file in there:  # another image's
            return None
        taken.append(hash_name(file))
        found.count += 1
        if len(found.first) < 3:
            found.first[name] = file
        if len(found.added) < 2:
            found.added.add("/".join(file.split("/")[: file.count("/") - way.left(plain).count("/")]))
    hashes = np.frombuffer(taken, dtype=np.uint64)
    return found if found.count and len(np.unique(hashes)) == len(hashes) else None  # else two names have one file


def _file_along(way: Way, there: There, files: Files, name: str) -> str | None:
    """
    Raises:
        LookupError: several files are found.
    """
    left = way.left(name)
    # In a folder where other names are as they should be, this one is just not there. And what has a suffix lacks none.
    in_place = way.strip == 0 and not way.below
    if (not in_place and there.has_folder(name.rpartition("/")[0])) or (way.suffix and _has_suffix(left)):
        return None
    found = files.find(way.key(left), left.count("/") + 1 if way.below else 0, way)
    if len(found) > 1:
        raise LookupError(name)
    return found[0] if found else None


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


# ---- near names -----------------------------------------------------------------------------------------------------


def _nearest(name: str, files: Iterable[str]) -> str | None:
    """The most similar of the names there are, in any folder; None if none is similar. Another number is another image."""
    numbers = _numbers(name)
    last: dict[str, str] = {}
    for file in files:
        key = file.rsplit("/", 1)[-1].casefold()
        if (len(last) < NEAR or key in last) and _numbers(file) == numbers:
            last[key] = file
    near = difflib.get_close_matches(name.rsplit("/", 1)[-1].casefold(), list(last), n=1)
    return last[near[0]] if near else None


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]{1,20}", name.rsplit("/", 1)[-1])]
