"""Where a cache is built: `<out>.partial`, beside the finished one, by one process at a time.

    <out>.lock      held while a run is on
    <out>.partial   the unfinished cache; a rerun goes on from it
    <out>.stale     an unfinished cache of other options, whose pixels still serve

A finished run leaves none of them. Nothing is removed or replaced but files that `preprocess` has written: in a cache
those that its manifest lists, in a folder beside it those with the names that a build gives. Whatever else lies in a
cache (a model that was trained into it, encoder features, notes) stays where it is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.cache.schema import MANIFEST, is_cache_file, listed_files
from toolkit.errors import OutputError, RunError
from toolkit.records import SPLITS
from toolkit.runtime.files import beside, finishing, lock_file

REPLACED = "replaced.json"  # in `<out>.partial`: the manifest of the cache that is being replaced
# Without these `datasets` opens neither the whole nor a split: they go first and come last.
HEADS = (*(f"{split}/state.json" for split in SPLITS), "dataset_dict.json")
_BUILD_FILES = re.compile(rf"records/\d{{6,}}\.(arrow|decoded)|{re.escape(MANIFEST)}|{re.escape(REPLACED)}")
_UNFINISHED = re.compile(r"(\.[0-9a-f]{8})?\.tmp$")
_NOBODYS = re.compile(r"\.nfs\w+|\.DS_Store")  # what file systems and file managers put anywhere


# ---- whose files ------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> Iterator[str]:
    """The names of all files below a folder, relative to it; links are files."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*files, *links):
            yield os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")


def _is_built(name: str) -> bool:
    name = _UNFINISHED.sub("", name)
    return is_cache_file(name) or _BUILD_FILES.fullmatch(name) is not None


def foreign(folder: Path) -> str | None:
    """What in a folder beside the cache is none of a build's files; None if there is no such thing, or no such folder."""
    if not folder.is_dir() or folder.is_symlink():
        return str(folder) if os.path.lexists(folder) else None
    for name in _files(folder):
        if (folder / name).is_symlink() or not (_is_built(name) or _NOBODYS.fullmatch(name.rpartition("/")[2])):
            return str(folder / name)
    return None


def clear(folder: Path) -> None:
    """Removes a build's files from a folder, and the folder if nothing else is in it."""
    if foreign(folder) == str(folder):
        return
    for name in sorted(_files(folder), key=lambda name: name == REPLACED):  # last, so that a kill here is seen
        if name == REPLACED:
            _remove_empty(folder)
        if _is_built(name):
            _remove(folder / name)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(parent)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.remove(path)


# ---- one run at a time ------------------------------------------------------------------------------------------------


@contextmanager
def building(out: Path, place: Path) -> Iterator[Path]:
    """Holds the folder `<out>.partial`, which may be there already or not, for this process alone.

    Args:
        out: as the user names it, for messages.
        place: where it really is.

    Raises:
        OutputError: another run is building there, it can't be written, or the folder is somebody else's.
        RunError: for an OSError or Ctrl-C inside the block: how to go on.
    """
    made = [p for p in (place.parent, *place.parent.parents) if not p.exists()]
    lock = beside(place, ".lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = lock_file(lock)
    except BlockingIOError:
        raise OutputError(f"--out {out}: another run is building there; wait for it, or name another folder.") from None
    except OSError as error:
        raise OutputError(f"--out {out}: can't be written ({_reason(error)}); name another folder.") from None
    partial = beside(place, ".partial")
    try:
        _check_ours(out, partial)
        yield partial
    except OSError as error:
        raise RunError(
            f"--out {out}: the build could not go on ({_reason(error)}); mend that and run the same command again, finished "
            "shards are kept."
        ) from None
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the finished shards.") from None
    finally:
        with suppress(OSError):
            os.remove(lock)
        held.release()
        for folder in made:  # nothing came of it: leave no empty folder behind
            with suppress(OSError):
                folder.rmdir()


def _check_ours(out: Path, folder: Path) -> None:
    found = foreign(folder)
    if found is not None:
        raise OutputError(
            f"--out {out}: {found} stands where the cache is built, and is not of an earlier build; move it elsewhere, or "
            "name another --out."
        )


def _reason(error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "a file stands in its way"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def set_aside(out: Path, place: Path) -> Path:
    """Makes `<out>.partial`, whose pixels may still serve, `<out>.stale`, in place of an earlier one."""
    stale = beside(place, ".stale")
    _check_ours(out, stale)
    clear(stale)
    os.rename(beside(place, ".partial"), stale)
    return stale


# ---- the swap ---------------------------------------------------------------------------------------------------------


def interrupted(place: Path) -> bool:
    """Whether a run was killed while it put its cache in the place of an earlier one (or is at it)."""
    return (beside(place, ".partial") / REPLACED).exists()


def leftovers(place: Path) -> bool:
    """Whether a run that was killed in its very last moments has left something behind beside a finished cache."""
    partial = beside(place, ".partial")
    if not partial.exists():
        return _is_left(beside(place, ".stale"))
    return interrupted(place) or (partial.is_dir() and not any(partial.iterdir()))


def _is_left(stale: Path) -> bool:
    return stale.exists() and foreign(stale) is None


def swap(partial: Path, place: Path, out: Path) -> None:
    """The finished cache takes its place: by one rename where there is nothing, else file by file.

    The earlier cache's manifest is taken away first and the new one's put last, so that between them there is no cache,
    rather than a mixture of two; `mend` goes on where a kill cut this short. Whoever has the earlier files open keeps
    them.

    Raises:
        OutputError: a file that is not the earlier cache's stands in the way.
    """
    if not place.exists() or not any(place.iterdir()):
        os.rename(partial, place)
    else:
        _check_way(partial, place, out)
        os.rename(place / MANIFEST, partial / REPLACED)
        _replace(partial, place)
    tidy(place)


def mend(place: Path) -> bool:
    """Ends a swap that was cut short; returns whether there was one. Only under the lock, or it may be going on."""
    partial = beside(place, ".partial")
    if not interrupted(place):
        with suppress(OSError):
            os.rmdir(partial)
        return False
    if (partial / MANIFEST).exists():
        _replace(partial, place)
    clear(partial)
    return True


def tidy(place: Path) -> None:
    """Removes what else a killed run has left beside a finished cache."""
    if _is_left(beside(place, ".stale")) and not beside(place, ".partial").exists():
        clear(beside(place, ".stale"))


def _owned(manifest: Path, place: Path) -> set[str]:
    """The files of the cache that is being replaced: those its manifest lists, or if that is damaged, those with a
    cache's names."""
    listed = listed_files(manifest.read_bytes())
    return {name for name in _files(place) if is_cache_file(name)} if listed is None else listed


def _check_way(partial: Path, place: Path, out: Path) -> None:
    owned = _owned(place / MANIFEST, place)
    for name in listed_files((partial / MANIFEST).read_bytes()) or ():
        target = place / name
        if (os.path.lexists(target) and name not in owned) or target.is_dir() or target.parent.is_file():
            raise OutputError(
                f"--out {out}: {target} stands in the new cache's way, and is not of the earlier one; move it elsewhere and "
                "run the same command again."
            )


def _replace(partial: Path, place: Path) -> None:
    """Each step may have been done already, by a run that was killed."""
    place.mkdir(exist_ok=True)
    owned = _owned(partial / REPLACED, place)
    new = listed_files((partial / MANIFEST).read_bytes()) or set()
    for name in HEADS:
        if name in owned and (partial / name).exists():
            _remove(place / name)
    for name in sorted(owned - new):
        _remove(place / name)
    for name in (*sorted(new - set(HEADS)), *HEADS, MANIFEST):
        _move(partial / name, place / name)
    clear(partial)


def _move(source: Path, target: Path) -> None:
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)  # nothing happens if both are names of one file, that of a shard taken over
    except OSError as error:
        if error.errno != errno.EXDEV:  # a folder of the cache that is a link to another disk
            raise
        with finishing(target) as temporary:
            shutil.copyfile(source, temporary)
        os.remove(source)


def link(source: Path, target: Path) -> None:
    """A finished file under a second name; a copy where the file system knows no links."""
    _remove(target)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise
        with finishing(target) as temporary:
            shutil.copyfile(source, temporary)
