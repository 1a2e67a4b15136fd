"""Where images come from: folders, URLs of stores, and data sets (data/sets.py). Which files there are images, and how one
is found and read.

A folder at a URL is listed once, when a command starts (runtime/copies.py). The listing gives each image a size and a
time, as a local file has them; an image's bytes are fetched when it is read, and not kept.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from toolkit.data.images import (
    IMAGE_SUFFIXES,
    LARGEST_FILE,
    ImageFile,
    name_forms,
    read_file,
    read_image,
    resolve_image,
)
from toolkit.errors import ImageError, InputError, RunError
from toolkit.runtime.copies import Copy, fetch_tree, list_names, look_up
from toolkit.runtime.files import file_state
from toolkit.runtime.remote import open_store, store_errors, url_of
from toolkit.runtime.shelf import Shelf

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class _Listed(NamedTuple):
    name: str
    state: tuple[int, int]


@dataclass(frozen=True)
class ImageSource:
    """The images below a folder or a URL; picklable.

    Attributes:
        root: the folder; of a URL the folder that stands for it in listings, caches and manifests.
        url: None for a folder.
    """

    root: Path
    url: str | None = None

    @staticmethod
    @lru_cache(maxsize=64, typed=True)  # a copy's path is of a type of its own
    def of(root: Path) -> ImageSource:
        return ImageSource(root, root.url if isinstance(root, Copy) else None)

    def find(self, name: str) -> Path | _Listed:
        """
        Raises:
            ImageError: as `resolve_image`.
        """
        if self.url is None:
            return resolve_image(self.root, name)
        for form in name_forms(name):
            if (state := look_up(self.root, form)) is not None:
                return _Listed(form, state)
        raise ImageError("missing")

    def state(self, name: str) -> tuple[int, int]:
        """(size, mtime_ns) of the image that annotations call `name`; (-1, -1) if it is missing or leads outside."""
        try:
            found = self.find(name)
            return file_state(found) if isinstance(found, Path) else found.state
        except ImageError:
            return (-1, -1)

    def read(self, name: str) -> ImageFile:
        """Its bytes.

        Raises:
            ImageError: as `resolve_image` and `read_file`; 'changed in the store' since it was listed.
            RunError: the store fails; its own library has tried more than once.
        """
        found = self.find(name)
        if isinstance(found, Path):
            return read_file(found)
        name, state = found
        if state[0] > LARGEST_FILE:
            raise ImageError(f"too large: a file of {state[0]} bytes")
        with store_errors(str(self.url), RunError):
            fs, path = open_store(str(self.url))
            try:
                data: bytes = fs.cat_file(f"{path.rstrip('/')}/{name}")
            except FileNotFoundError:
                raise ImageError("missing") from None
            except PermissionError:
                raise ImageError("permission denied") from None
        if len(data) != state[0]:
            raise ImageError("changed in the store")
        return ImageFile(data, state)

    def exists(self, name: str) -> bool:
        """Whether there is a file of exactly this name."""
        return os.path.exists(os.path.join(self.root, name)) if self.url is None else bool(look_up(self.root, name))


class Collection(Protocol):
    """Images that lie inside other files (data/sets.py); the root of each of them."""

    @property
    def path(self) -> Path: ...
    @property
    def place(self) -> str: ...
    @property
    def state(self) -> tuple[int, int]: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def read(self, row: int) -> ImageFile: ...
    def pixels(self, row: int) -> np.ndarray | None: ...


class FoundImage(NamedTuple):
    """An image that `find_images` found.

    Attributes:
        root: the folder it was given under (for a file its folder, for a glob the part before the first wildcard), or the
            data set that it lies in.
        name: its path relative to `root`, "/" between parts, or its id in the data set: what its caption is reported under.
        row: its number in the data set; -1 of a file.
    """

    root: Path | Collection
    name: str
    row: int = -1

    @property
    def path(self) -> Path:
        """The file, or what the data set is in."""
        return self.root / self.name if isinstance(self.root, Path) else self.root.path

    @property
    def place(self) -> str:
        """What it is known by: its URL, or the real folder and the name below it."""
        if not isinstance(self.root, Path):
            return f"{self.root.place}/{self.name}"
        return f"{ImageSource.of(self.root).url or _real(self.root)}/{self.name}"

    def state(self) -> tuple[int, int]:
        if not isinstance(self.root, Path):
            return self.root.state
        return ImageSource.of(self.root).state(self.name) if isinstance(self.root, Copy) else file_state(self.path)

    def read(self) -> ImageFile:
        if not isinstance(self.root, Path):
            return self.root.read(self.row)
        return ImageSource.of(self.root).read(self.name) if isinstance(self.root, Copy) else read_file(self.path)

    def picture(self) -> tuple[Image.Image, tuple[int, int]]:
        """The image to show, and the state of what it was read from.

        Raises:
            ImageError: it can't be read.
        """
        if (stored := self.pixels()) is None:
            data, state = self.read()
            return read_image(data), state
        from PIL import Image

        return Image.fromarray(stored.transpose(1, 2, 0).copy()), self.state()

    def pixels(self) -> np.ndarray | None:
        """uint8 (C, H, W) as the model takes them, where such are stored in place of an encoded image."""
        return None if isinstance(self.root, Path) else self.root.pixels(self.row)


@lru_cache(maxsize=64)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)


class FoundImages:
    """Images sorted by name and root; a long list is on the disk, and memory stays flat.

    Attributes:
        sets: the data sets that some of them lie in.
    """

    def __init__(self, images: Iterable[FoundImage] = ()) -> None:
        self.sets: list[Collection] = []
        self._roots: dict[str, Path | Collection] = {}
        self._keys = Shelf()  # name, root and row, between them a character that none can have
        for image in images:
            self.add(image)

    def add(self, image: FoundImage) -> None:
        if isinstance(image.root, Path):
            root = str(image.root)
        else:
            root = image.root.place
            if root not in self._roots:
                self.sets.append(image.root)
        self._roots.setdefault(root, image.root)
        self._keys.setdefault(f"{image.name}\0{root}\0{image.row}", None)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[FoundImage]:
        return map(self._image, self._keys.in_order())

    def __contains__(self, image: FoundImage) -> bool:
        root = str(image.root) if isinstance(image.root, Path) else image.root.place
        return f"{image.name}\0{root}\0{image.row}" in self._keys

    def to_read(self) -> Iterator[FoundImage]:
        """In the order in which they are read fastest: in a data set they were added in that of its rows."""
        return map(self._image, self._keys) if self.sets else iter(self)

    def first(self, count: int) -> FoundImages:
        """The first by name."""
        some = FoundImages(islice(self, count))
        return FoundImages(image for image in self.to_read() if image in some) if self.sets else some

    def _image(self, key: str) -> FoundImage:
        name, root, row = key.rsplit("\0", 2)
        return FoundImage(self._roots[root], name, int(row))


def fetch_annotations(url: str) -> Copy:
    """Annotations at a URL: images beside them are listed, the rest is copied."""
    return fetch_tree(url, IMAGE_SUFFIXES)


def fetch_images(url: str) -> Copy:
    """A folder of images at a URL, listed."""
    return fetch_tree(url, None)


# ---- finding --------------------------------------------------------------------------------------------------------


def find_images(paths: Sequence[str | Path], recursive: bool = True) -> FoundImages:
    """The image files under `paths`, sorted by name, each file once.

    A path, here or at a URL, is a file (taken whatever its suffix), a folder (files with one of `IMAGE_SUFFIXES` in any case; hidden ones
    passed over; below it too if `recursive`) or a glob with `*`, `**`, `?` or `[...]`. Links to folders are followed,
    each real folder is visited once. Dangling links, sockets, fifos and folders that can't be listed are in the
    answer, so that `read_image` can say why they have no pixels.

    Raises:
        InputError: a path does not exist, or no image is found under it.
    """
    found, places = FoundImages(), Shelf()
    repeats = len(paths) > 1 or any(glob.has_magic(str(given)) for given in paths)  # known by its absolute path
    for given in paths:
        empty = True
        for image in _find(given, recursive):
            empty, before = False, len(places)
            if repeats:
                places.setdefault(os.path.abspath(image.path), None)
            if not repeats or len(places) > before:
                found.add(image)
        if empty:
            raise InputError(
                f"{given}: no image here{'' if recursive else ' itself (its folders are left out)'}; name image files, "
                f"or folders that hold some ({', '.join(sorted(IMAGE_SUFFIXES)[:3])}, ...)."
                if url_of(given) or os.path.lexists(given)
                else f"{given}: no such file or folder; name images, folders or a glob in quotes."
            )
    return found


def has_images(folder: Path, recursive: bool = True) -> bool:
    """Whether `find_images` finds any in it."""
    return next(_walk(folder, "", recursive), None) is not None


def image_names(root: Path) -> Iterator[str]:
    """The names of the image files below a folder, as annotations should have them; in no order, and none is held."""
    names = list_names(root) if isinstance(root, Copy) else (image.name for image in _walk(root, "", True))
    return (name for name in names if _is_image_name(name) and not is_hidden(name))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _find(given: str | Path, recursive: bool) -> Iterator[FoundImage]:
    if (url := url_of(given)) is not None:
        yield from _find_at_url(url, recursive)
    elif isinstance(given, Copy):
        yield from (FoundImage(given, name) for name in image_names(given))
    elif os.path.isdir(given):
        yield from _walk(Path(given), "", recursive)
    elif os.path.lexists(given):
        yield FoundImage(Path(given).parent, os.path.basename(given))
    elif glob.has_magic(str(given)):
        parts = Path(given).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:fixed])
        for name in glob.iglob(str(Path(*parts[fixed:])), root_dir=root, recursive=True):
            if os.path.isdir(root / name):
                # "a/**" lists the folders below itself, files and all
                if "**" not in parts:
                    yield from _walk(root, name + "/", recursive)
            elif _is_image_name(name):
                yield FoundImage(root, name.replace(os.sep, "/"))


def _find_at_url(url: str, recursive: bool) -> Iterator[FoundImage]:
    parts = url.split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    top, pattern = fetch_images("/".join(parts[:fixed])), parts[fixed:]
    if not top.is_dir():
        yield FoundImage(top.parent, top.name)
        return
    for name in image_names(top):
        if _matches(name.split("/"), pattern, recursive):
            yield FoundImage(top, name)


def _matches(parts: list[str], pattern: list[str], recursive: bool) -> bool:
    """Whether a glob means a file, by its name or by that of a folder that it lies in."""
    if not pattern:
        return recursive or len(parts) <= 1
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:], True) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:], recursive)


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _walk(root: Path, prefix: str, recursive: bool) -> Iterator[FoundImage]:
    """In no order. Real folders first, then links to folders not yet seen, so that a link never takes a real folder's
    name, and of several links to one folder always the same is followed."""
    visited: set[tuple[int, int]] = set()
    folders, links = [prefix], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)
        below: list[tuple[str, bool]] = []
        try:
            state = os.stat(root / prefix)
            if (state.st_dev, state.st_ino) in visited:
                continue
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        below.append((entry.name, entry.is_symlink()))
                    elif _is_image_name(entry.name):
                        yield FoundImage(root, prefix + entry.name)
        except OSError:
            yield FoundImage(root, prefix.rstrip("/") or ".")
        for name, is_link in sorted(below) if recursive else ():
            (links if is_link else folders).append(f"{prefix}{name}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
