"""Where a cache is built: `<out>.partial`, beside the finished one, by one process at a time (runtime/swap.py).

`<out>.stale` is an unfinished cache of other options, whose pixels still serve. Nothing is removed or replaced but files that `preprocess` has written: in a cache
those that its manifest lists, in a folder beside it those with the names that a build gives. Whatever else lies in a
cache (a model that was trained into it, encoder features, notes) stays where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.cache.schema import MANIFEST, is_cache_file, listed_files
from toolkit.cache.staging import DECODED
from toolkit.errors import OutputError, RunError
from toolkit.records import SPLITS
from toolkit.runtime.files import beside
from toolkit.runtime.swap import REPLACED, Files, Kind, clear, held, reason, remove_empty, take_place

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
    name = _UNFINISHED.sub("", name).removeprefix(f"{DECODED}/")
    return is_cache_file(name) or _BUILD_FILES.fullmatch(name) is not None


def foreign(folder: Path) -> str | None:
    """What in a folder beside the cache is none of a build's files; None if there is no such thing, or no such folder."""
    if not folder.is_dir() or folder.is_symlink():
        return str(folder) if os.path.lexists(folder) else None
    for name in _files(folder):
        if (folder / name).is_symlink() or not (_is_built(name) or _NOBODYS.fullmatch(name.rpartition("/")[2])):
            return str(folder / name)
    return None


def _written(folder: Path) -> list[Path]:
    """What a build has written into a folder, by name; nothing in one that is a link."""
    return [] if folder.is_symlink() else [folder / name for name in _files(folder) if _is_built(name)]


def _listed(manifest: Path, folder: Path) -> Files:
    """The files that a manifest lists, or if it is damaged, those with a cache's names."""
    listed = listed_files(manifest.read_bytes())
    return dict.fromkeys(sorted(filter(is_cache_file, _files(folder)) if listed is None else listed))


# Without the heads `datasets` opens neither the whole nor a split.
CACHE = Kind(MANIFEST, _listed, _written, heads=(*(f"{split}/state.json" for split in SPLITS), "dataset_dict.json"))


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
    with held(f"--out {out}", place, "building there"):
        partial = beside(place, ".partial")
        try:
            _check_ours(out, partial)
            yield partial
        except OSError as error:
            raise RunError(
                f"--out {out}: the build failed ({reason(error)}); fix that and run the same command again, "
                "finished shards are kept."
            ) from None
        except KeyboardInterrupt:
            raise RunError("stopped; run the same command again to go on from the finished shards.") from None


def _check_ours(out: Path, folder: Path) -> None:
    found = foreign(folder)
    if found is not None:
        raise OutputError(
            f"--out {out}: {found} is in the way of the build, and no earlier build wrote it; move it elsewhere, or "
            "name another --out."
        )


def set_aside(out: Path, place: Path) -> Path:
    """Makes `<out>.partial`, whose pixels may still serve, `<out>.stale`, in place of an earlier one."""
    stale = beside(place, ".stale")
    _check_ours(out, stale)
    clear(stale, CACHE)
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

    Raises:
        OutputError: a file that is not the earlier cache's stands in the way.
    """
    if not place.exists() or not any(place.iterdir()):
        os.rename(partial, place)
    else:
        take_place(f"--out {out}", partial, place, CACHE)
    tidy(place)


def mend(place: Path, out: Path) -> bool:
    """Ends a swap that was cut short; returns whether there was one. Only under the lock, or it may be going on."""
    if interrupted(place):
        take_place(f"--out {out}", beside(place, ".partial"), place, CACHE)
        return True
    remove_empty([beside(place, ".partial")])
    return False


def tidy(place: Path) -> None:
    """Removes what else a killed run has left beside a finished cache."""
    if _is_left(beside(place, ".stale")) and not beside(place, ".partial").exists():
        clear(beside(place, ".stale"), CACHE)
