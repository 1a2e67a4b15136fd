"""What is kept on this machine of what is at URLs: one folder, `cache/stores`.

    <hash>.store/NAME/...           annotations or a model at a URL, copied
    <hash>.store/listing.sqlite     every object there, with its size and version, images too, which are not copied
    <hash>.in/<manifest>/NAME/...   a finished cache, copied                  (cache/uploads.py)
    <hash>.out/NAME                 an output that goes to a URL              (cache/uploads.py)

Copies that were not used for longest are removed when all of them are larger than `TOOLKIT_STORES_GB`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any, TypeVar

from filelock import Timeout

from toolkit.errors import InputError
from toolkit.runtime.files import beside, new_lock
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.progress import say
from toolkit.runtime.remote import (
    STORES,
    Found,
    fetch,
    found_of,
    lies_below,
    list_objects,
    open_store,
    store_errors,
    url_of,
)
from toolkit.runtime.variables import STORES_GB

LISTING = "listing.sqlite"
GIGABYTES = 100.0  # without the variable

T = TypeVar("T")
_in_use: dict[tuple[str, int], int] = {}  # folder, inode -> what holds it until this process ends


class Copy(PosixPath):
    """The path of a copy here, or of the folder that stands for one, which messages write as its URL: `f"{path}"` is the
    URL, `str(path)` and `open(path)` are the file. What is made of it (`path / name`, `path.parent`) is such a path too.
    """

    top: str
    top_url: str

    @classmethod
    def of(cls, url: str, place: Path) -> Copy:
        return type("Copy", (cls,), {"top": os.path.abspath(place), "top_url": url})(place)

    @property
    def url(self) -> str:
        return f"{self}"

    def __format__(self, spec: str) -> str:
        path = os.path.abspath(self)
        return format(self.top_url + path[len(self.top) :] if path.startswith(self.top) else str(self), spec)

    def __reduce__(self) -> Any:  # to other processes it is a path like any other
        return (Path, (str(self),))


def as_path(given: str | Path) -> Path:
    """`Path(given)`, but a `Copy` stays one."""
    return given if isinstance(given, Path) else Path(given)


def with_copies(options: T, **fetchers: Callable[[str], Path]) -> T:
    """Options in which a local copy stands for each URL, made by the option's fetcher; a value may be a tuple of them."""

    def here(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(here(name, each) for each in value)
        url = None if value is None else url_of(value)
        return fetchers[name](url) if url else value

    return replace(options, **{name: here(name, getattr(options, name)) for name in fetchers})  # type: ignore[type-var]


def fetch_model(url: str) -> Copy:
    """A model folder at a URL, but for what a run would go on from."""
    return fetch_tree(url, without="checkpoints")


def fetch_tree(url: str, skip: frozenset[str] | None = frozenset(), without: str | None = None) -> Copy:
    """Lists what is at a URL, a folder or a file, and brings its copy up to date.

    Args:
        skip: suffixes of files that are listed only; None for all files.
        without: a folder in it that is left out.

    Raises:
        InputError: there is nothing at the URL, or the store fails.
    """
    with store_errors(url):
        fs, root = open_store(url)
        fs.invalidate_cache()
        parent, _, name = root.rstrip("/").rpartition("/")
        base = STORES / f"{hash_hex(url, repr(skip if skip is None else sorted(skip)))[:12]}.store"
        file = base / (name or "root")
        if single := fs.isfile(root):
            objects = {name: found_of(url, fs.info(root))}
            # Lists of splits that lie beside annotations are part of them; who may not look there may not read them.
            with suppress(PermissionError):
                for info in fs.ls(parent, detail=True) if skip is not None and parent else ():
                    path = str(info["name"])
                    if info["type"] == "file" and path.endswith("Images.txt"):
                        objects[path.rpartition("/")[2]] = found_of(url, info)
        else:
            below = list_objects(fs, url, root).items()
            objects = {f"{file.name}/{n}": found for n, found in below if not n.startswith(f"{without}/")}
            if not objects:
                raise FileNotFoundError(url)
        with using(base):
            named = {n: found for n, found in objects.items() if lies_below(n)}
            write_listing(base, named)
            copied = {n: found for n, found in named.items() if skip is not None and _suffix(n) not in skip}
            _remove_others(base, copied)
            for folder in {os.path.dirname(n) for n in named}:
                with suppress(FileExistsError, NotADirectoryError):  # stores may hold both "a" and "a/b"
                    (base / folder).mkdir(parents=True, exist_ok=True)
            files = {
                base / n: found for n, found in copied.items() if (base / n).parent.is_dir() and not (base / n).is_dir()
            }
            if odd := len(objects) - len(named) + len(copied) - len(files):
                say(f"{url}: {odd} objects have names that no file here can have; they are passed over")
            if fetch(fs, url, files):
                make_room()
    return Copy.of(url.rpartition("/")[0], base) / name if single else Copy.of(url, file)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _remove_others(base: Path, objects: Mapping[str, Found]) -> None:
    """Removes what has no object any more, and what earlier versions of toolkit had here in place of images."""
    for folder, _, files in os.walk(base):
        inside = os.path.relpath(folder, base)
        for name in files:
            if os.path.normpath(f"{inside}/{name}") not in objects and not name.startswith(LISTING):
                os.unlink(f"{folder}/{name}")


# ---- listings -------------------------------------------------------------------------------------------------------


def write_listing(base: Path, objects: Mapping[str, Found]) -> None:
    with closing(sqlite3.connect(base / LISTING, timeout=60)) as listing, listing:
        listing.execute("CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY, size, mtime_ns) WITHOUT ROWID")
        listing.execute("DELETE FROM objects")
        rows = ((name, found.size, found.mtime_ns) for name, found in objects.items())
        listing.executemany("INSERT INTO objects VALUES (?, ?, ?)", rows)


@lru_cache(maxsize=64)
def _opened(path: str, inode: int, process: int) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=60, check_same_thread=False)


def _listing(base: str) -> sqlite3.Connection:
    path = os.path.abspath(f"{base}/{LISTING}")
    return _opened(path, os.stat(path).st_ino, os.getpid())


@lru_cache(maxsize=256)
def _split(folder: Path) -> tuple[str, str]:
    """A folder below `cache/stores` as the one that has the listing, and what its objects' names begin with."""
    depth = len(STORES.parts) + 1
    return "/".join(folder.parts[:depth]), "".join(f"{part}/" for part in folder.parts[depth:])


def look_up(folder: Path, name: str) -> tuple[int, int] | None:
    """(size, mtime_ns) of an object below a folder in `cache/stores`; None if there is none."""
    base, start = _split(folder)
    query = "SELECT size, mtime_ns FROM objects WHERE name = ?"
    return _listing(base).execute(query, (os.path.normpath(start + name),)).fetchone()


def list_names(folder: Path) -> Iterator[str]:
    """The objects below a folder in `cache/stores`, by their names relative to it, in order."""
    base, start = _split(folder)
    query = "SELECT name FROM objects WHERE name >= ? AND name < ? ORDER BY name"
    return (name[len(start) :] for (name,) in _listing(base).execute(query, (start, start + "\U0010ffff")))


# ---- room -----------------------------------------------------------------------------------------------------------


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """A folder of copies for this process to write, in which others wait; until its end nobody removes it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_lock(beside(folder, ".lock")):
        folder.mkdir(exist_ok=True)
        os.utime(folder)  # it was used now
        if (key := (os.path.abspath(folder), folder.stat().st_ino)) not in _in_use:
            _in_use[key] = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system that can't: nothing is removed there
                fcntl.flock(_in_use[key], fcntl.LOCK_SH)
        yield


def make_room() -> None:
    """Removes the copies that were not used for longest, as long as all of them are larger than the limit."""
    try:
        limit = float(os.environ.get(STORES_GB, GIGABYTES)) * 1e9
    except ValueError:
        raise InputError(f"{STORES_GB} {os.environ[STORES_GB]}: must be a number of gigabytes, such as 100.") from None
    copies = [path for path in (*STORES.glob("*.store"), *STORES.glob("*.in/*")) if path.is_dir()]
    sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in copies}
    for path in sorted(copies, key=lambda path: path.stat().st_mtime_ns):
        if sum(sizes.values()) <= limit:
            break
        with suppress(OSError, Timeout), new_lock(beside(path, ".lock"), timeout=0):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where a run uses it
                shutil.rmtree(path)
            finally:
                os.close(handle)
            say(f"{path}: removed, {sizes.pop(path) / 1e9:.3g} GB; {STORES_GB} says how much is kept")
