"""Stores: places at URLs that fsspec knows, such as s3://, gs://, hf://, memory://, file://.

How they are opened, listed and read, and what goes wrong with them as one sentence. What is kept here of what is there:
`copies.py`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import PROGRAMMING, InputError, OutputError, ToolkitError
from toolkit.runtime.files import file_state, finishing
from toolkit.runtime.hashing import hash_hex, hash_int
from toolkit.runtime.progress import Progress, say

STORES = Path("cache/stores")  # below the working folder: what is kept here of what is there
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
        return file_state(file) == (self.size, self.mtime_ns)


def url_of(given: str | Path) -> str | None:
    """The URL in an option's value, or None if it is a local path. A `Path` has lost one of the slashes after "s3:"."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.*)", str(given), re.DOTALL)
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2].rstrip('/')}"


def local_only(options: Any, *names: str) -> None:
    """
    Raises:
        OutputError: one of these options is a URL, where a folder of that name would be made here.
    """
    for name in names:
        given = getattr(options, name)
        if given is not None and (url := url_of(given)):
            raise OutputError(
                f"--{name.replace('_', '-')} {url}: must be local; name a path here, and copy it there afterwards."
            )


def check_dry_run(options: Any, *names: str) -> None:
    """
    Raises:
        InputError: with --dry-run, one of these options is a URL, and what is there would be copied to be looked at.
    """
    for name in names if options.dry_run else ():
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and (url := url_of(value)):
                raise InputError(
                    f"--dry-run: writes nothing, and what is at {url} would be copied here first; leave --dry-run out, or "
                    "name something local."
                )


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


# ---- listing and fetching -------------------------------------------------------------------------------------------


def list_objects(fs: Any, url: str, root: str) -> dict[str, Found]:
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


def fetch(fs: Any, url: str, files: Mapping[Path, Found]) -> int:
    """Copies the objects that do not stand here as they are in the store, each finished by rename; returns how many."""
    missing = {file: found for file, found in files.items() if not found.stands_at(file)}
    if not missing:
        return 0
    total = sum(found.size for found in missing.values())
    say(f"{url}: fetching {len(missing)} files, {total / 1e6:.1f} MB")

    def one(file: Path) -> int:
        found = missing[file]
        file.parent.mkdir(parents=True, exist_ok=True)
        # A short name, for names that are as long as names can be.
        with finishing(file, file.with_name(f".{os.getpid()}-{hash_hex(file.name)[:12]}.tmp")) as temporary:
            fs.get_file(found.path, str(temporary))
            if temporary.stat().st_size != found.size:
                raise OSError(f"{found.path} changed while it was read")
            os.utime(temporary, ns=(found.mtime_ns, found.mtime_ns))
        return found.size

    with Progress("fetch", total, "bytes") as progress, ThreadPoolExecutor(CONNECTIONS) as pool:
        for size in pool.map(one, missing):
            progress.update(size)
    return len(missing)
