"""Inputs and outputs at URLs that fsspec knows: s3://, gs://, hf://, memory://, file://.

A command's other files see local paths alone. What stands for a URL lies below `cache/stores`:

    <hash>.store/store.json   the URL, and which files are placeholders
    <hash>.store/NAME/...     one file for each object. Images are placeholders: of the object's size, with a time made
                              from its version (ETag, checksum or time), but without data on the disk; `read` fetches
                              the bytes when they are decoded. All else (captions, parquet, shards) is copied.

So a rerun asks the store for one listing, and sees what changed by size and time, as with local files.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import PROGRAMMING, ImageError, InputError, RunError, ToolkitError
from toolkit.runtime.files import beside, finishing, new_lock, unfinished, write_json
from toolkit.runtime.hashing import hash_hex, hash_int
from toolkit.runtime.progress import Progress, say

STORES = Path("cache/stores")
MARK = "store.json"
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
# What tells one version of an object from the next, the surest first.
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "oid", "mtime", "LastModified", "last_modified", "updated", "created")
CONNECTIONS = 8  # copies at a time


class Found(NamedTuple):
    """An object below a URL: its path in the store, its size in bytes and a hash of its version."""

    path: str
    size: int
    version: int

    @property
    def mtime_ns(self) -> int:
        """A time between 2001 and 2033 made from the version; whole seconds, which every file system keeps."""
        return (10**9 + self.version % 10**9) * 10**9

    def stands_at(self, file: Path) -> bool:
        try:
            state = os.stat(file)
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns)


def url_of(given: str | Path) -> str | None:
    """The URL in an option's value, or None if it is a local path. A `Path` has lost one of the slashes after "s3:"."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.*)", str(given), re.DOTALL)
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2].rstrip('/')}"


# ---- failing --------------------------------------------------------------------------------------------------------


@contextmanager
def store_errors(url: str, error_class: type[ToolkitError] = InputError) -> Iterator[None]:
    """Whatever a store raises, as one sentence that names the URL. Each store's library has errors of its own."""
    try:
        yield
    except (ToolkitError, KeyboardInterrupt):
        raise
    except ImportError as error:
        package = PACKAGES.get(url.partition(":")[0])
        remedy = f"pip install {package}" if package else str(error).strip().rstrip(".")
        raise error_class(f"{url}: the package for this store is missing; {remedy}.") from None
    except FileNotFoundError:
        raise error_class(f"{url}: no such object, folder or bucket; name one that is there.") from None
    except PermissionError as error:
        if _is_here(error):
            raise error_class(
                f"{url}: {error.filename}, where a copy goes, can't be written; give permission."
            ) from None
        raise error_class(f"{url}: the store denies access; check your credentials and the bucket's policy.") from None
    except PROGRAMMING:  # nothing of the user's: our mistake, or that of the store's library
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            place = Path(str(error.filename)).parent if error.filename else STORES.absolute()
            raise error_class(
                f"{url}: {os.strerror(error.errno).lower()}, at {place}; make room there and run the same command again, "
                "finished copies are kept."
            ) from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "rotocol not known" in reason:
            raise error_class(f"{url}: no such kind of store; s3://, gs://, hf:// and file:// are some.") from None
        remedy = (
            "check your credentials" if "redential" in reason else "check the URL and the connection, and try again"
        )
        raise error_class(f"{url}: the store can't be used ({reason}); {remedy}.") from None


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of this machine, not of a store


def _is_here(error: OSError) -> bool:
    """Whether an error is of a local file that stands for a store's."""
    return error.filename is not None and Path(os.path.abspath(os.fspath(error.filename))).is_relative_to(
        STORES.absolute()
    )


def open_store(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def found_of(url: str, info: Mapping[str, Any]) -> Found:
    """What a store's `info` says of one object."""
    size = info.get("size")
    if size is None:
        raise InputError(f"{url}: the store does not tell the sizes of its files; copy them here first.")
    version = next((info[key] for key in VERSIONS if info.get(key) is not None), "")
    version = version.timestamp() if hasattr(version, "timestamp") else version  # the same time in a list and alone
    return Found(str(info["name"]), int(size), hash_int(str(version)))


# ---- coming in ------------------------------------------------------------------------------------------------------


def local_tree(url: str, placeholders: frozenset[str] | None = None, without: str | None = None) -> Path:
    """A local folder, or file, that stands for what is at `url`, brought up to date.

    Args:
        placeholders: suffixes of the files that are not copied, for `read` fetches them; None for all, empty for none.
        without: a folder in it that is left out.

    Raises:
        InputError: there is nothing at the URL, or the store fails.
    """
    with store_errors(url):
        fs, root = open_store(url)
        fs.invalidate_cache()
        single = fs.isfile(root)
        parent, _, name = root.rstrip("/").rpartition("/")
        suffixes = None if placeholders is None else sorted(placeholders)
        base = STORES / _folder(url, suffixes)
        if not single:
            objects = listing(fs, url, root)
            if without is not None:
                objects = {name: found for name, found in objects.items() if not name.startswith(f"{without}/")}
            if not objects:
                raise FileNotFoundError(url)
        else:
            objects = {name: found_of(url, fs.info(root))}
            # Lists of splits that lie beside annotations are part of them; who may not look there may not read them.
            with suppress(PermissionError):
                for info in fs.ls(parent, detail=True) if placeholders is not None and parent else ():
                    path = str(info["name"])
                    if info["type"] == "file" and path.endswith("Images.txt"):
                        objects[path.rpartition("/")[2]] = found_of(url, info)
        with alone(base):
            mark = {"url": url, "single": single, "stand_ins": suffixes}
            write_json(base / MARK, mark, unfinished(base / MARK))
            _bring(fs, url, base if single else base / (name or "root"), objects, placeholders)
        return base / (name or "root")


def _folder(url: str, placeholders: list[str] | None) -> str:
    return f"{hash_hex(str(url), repr(placeholders))[:12]}.store"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A folder for this process; others of this machine (the ranks of a training run, say) wait for their turn."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_lock(beside(folder, ".lock")):
        folder.mkdir(exist_ok=True)
        yield


def listing(fs: Any, url: str, root: str) -> dict[str, Found]:
    """The objects below a path by their names relative to it."""
    objects = {}
    for path, info in fs.find(root, detail=True).items():
        name = path.lstrip("/")[len(f"{root.strip('/')}/".lstrip("/")) :]  # "b//x" is "/x" below "b"
        if name and info.get("type", "file") == "file" and not path.endswith("/"):
            objects[name] = found_of(url, info)
    return objects


def lies_below(name: str) -> bool:
    """Whether an object's name can be that of a file in a folder; names such as "../x" and "/x" lead elsewhere."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _bring(fs: Any, url: str, target: Path, objects: Mapping[str, Found], placeholders: frozenset[str] | None) -> None:
    """Makes `target` hold one file for each object and no other."""
    odd = 0
    missing: list[tuple[Path, Found]] = []
    kept = {MARK}
    for name, found in objects.items():
        if not lies_below(name):
            odd += 1
            continue
        kept.add(name)
        file = target / name
        if found.stands_at(file):
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if _is_placeholder(name, placeholders):
                with _replacing(file, found) as temporary, open(temporary, "wb") as handle:
                    handle.truncate(found.size)  # a hole: no space on the disk
            else:
                missing.append((file, found))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            odd += 1  # stores may hold both "a" and "a/b"
    for folder, _, files in os.walk(target):
        for file_name in files:
            file = Path(folder, file_name)
            if file.relative_to(target).as_posix() not in kept:
                file.unlink()
    if odd:
        say(f"{url}: {odd} objects have names that no file here can have; they are passed over")
    if missing:
        fetch(fs, url, missing)


def fetch(fs: Any, url: str, missing: list[tuple[Path, Found]]) -> None:
    """Copies objects to files, each finished by rename."""
    total = sum(found.size for _, found in missing)
    say(f"{url}: fetching {len(missing)} files, {total / 1e6:.1f} MB")

    def one(pair: tuple[Path, Found]) -> int:
        file, found = pair
        with _replacing(file, found) as temporary:
            fs.get_file(found.path, str(temporary))
            if temporary.stat().st_size != found.size:
                raise OSError(f"{found.path} changed while it was read")
        return found.size

    with Progress("fetch", total, "bytes") as progress, ThreadPoolExecutor(CONNECTIONS) as pool:
        for size in pool.map(one, missing):
            progress.update(size)


@contextmanager
def _replacing(file: Path, found: Found) -> Iterator[Path]:
    # Short, for names that are as long as names can be.
    with finishing(file, file.with_name(f".{os.getpid()}-{hash_hex(file.name)[:12]}.tmp")) as temporary:
        yield temporary
        os.utime(temporary, ns=(found.mtime_ns, found.mtime_ns))


def _is_placeholder(name: str, placeholders: frozenset[str] | list[str] | None) -> bool:
    return placeholders is None or os.path.splitext(name)[1].lower() in placeholders


# ---- reading --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _mark(base: str) -> dict[str, Any] | None:
    try:
        mark = json.loads(Path(base, MARK).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(mark, dict) or not {"url", "single", "stand_ins"} <= set(mark):
        return None
    return mark if Path(base).name == _folder(mark["url"], mark["stand_ins"]) else None


def url_behind(file: Path) -> str | None:
    """The URL that a placeholder stands for; None for a file like any other."""
    text = os.path.abspath(file)
    at = text.rfind(".store/")
    mark = _mark(text[: at + 6]) if at >= 0 else None
    if mark is None:
        return None
    below = text[at + 7 :].partition("/")[2]
    return str(mark["url"]) if mark["single"] else f"{mark['url']}/{below}"


def read(file: Path) -> bytes | None:
    """The bytes that a placeholder stands for; None if `file` is a file like any other.

    Raises:
        ImageError: 'missing', 'permission denied', 'changed in the store' since it was listed.
        RunError: the store fails; its own library has tried more than once.
    """
    text, stores = os.path.abspath(file), os.path.abspath(STORES) + os.sep
    base, _, inside = text.removeprefix(stores).partition("/")
    if not text.startswith(stores) or not base.endswith(".store"):  # data may come with folders of such names
        return None
    mark = _mark(stores + base)
    if mark is None or not _is_placeholder(text, mark["stand_ins"]):
        return None
    with store_errors(mark["url"], RunError):
        fs, root = open_store(mark["url"])
        path = root if mark["single"] else f"{root.rstrip('/')}/{inside.partition('/')[2]}"
        try:
            data: bytes = fs.cat_file(path)
        except FileNotFoundError:
            raise ImageError("missing") from None
        except PermissionError:
            raise ImageError("permission denied") from None
        if len(data) != os.stat(file).st_size:
            raise ImageError("changed in the store")
        return data
