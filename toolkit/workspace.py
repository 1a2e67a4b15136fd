"""Where a cache is built: `<out>.partial`, beside the finished one, by one process at a time.

    <out>.lock      held while a run is on
    <out>.partial   the unfinished cache; a rerun goes on from it
    <out>.stale     an unfinished cache of other options, whose pixels still serve
    <out>.old       for a moment, the finished cache that is being replaced

A finished run leaves none of them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.errors import OutputError, RunError
from toolkit.files import beside, finishing, lock_file


def leftovers(place: Path) -> list[Path]:
    """What a run that was killed in its very last moments leaves behind."""
    stale = [] if beside(place, ".partial").exists() else [beside(place, ".stale")]
    return [beside(place, ".old"), *stale]


def tidy(place: Path) -> bool:
    """Undoes a swap that was cut in two; returns whether there was one. Only under the lock, or it may be going on."""
    old = beside(place, ".old")
    cut = old.exists() and not place.exists()
    if cut:
        os.rename(old, place)
    if place.exists():
        for path in leftovers(place):
            shutil.rmtree(path, ignore_errors=True)
    return cut


@contextmanager
def building(out: Path, place: Path) -> Iterator[Path]:
    """Holds the folder `<out>.partial`, which may be there already or not, for this process alone.

    Args:
        out: as the user names it, for messages.
        place: where it really is.

    Raises:
        OutputError: another run is building there, or it can't be written.
        RunError: for an OSError or Ctrl-C inside the block: how to go on.
    """
    made = [p for p in (place.parent, *place.parent.parents) if not p.exists()]
    lock = beside(place, ".lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = lock_file(lock)
    except BlockingIOError:
        raise OutputError(f"--out {out}: another run is building there; wait for it, or name another folder.") from None
    except OSError as error:
        raise OutputError(f"--out {out}: can't be written ({_reason(error)}); name another folder.") from None
    try:
        yield beside(place, ".partial")
    except OSError as error:
        raise RunError(
            f"--out {out}: the build could not go on ({_reason(error)}); mend that and run the same command again, finished "
            "pieces are kept."
        ) from None
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the finished pieces.") from None
    finally:
        with suppress(OSError):
            os.remove(lock)
        handle.close()
        for folder in made:  # nothing came of it: leave no empty folder behind
            with suppress(OSError):
                folder.rmdir()


def _reason(error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "a file stands in its way"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def swap(partial: Path, place: Path) -> None:
    """The finished cache takes its place; two renames, and `tidy` mends a crash between them."""
    if place.exists():
        # Encoder states are found by the pictures that they are of, and hours of work; finetune keeps them there.
        with suppress(OSError):
            os.rename(place / "features", partial / "features")
        os.rename(place, beside(place, ".old"))
    os.rename(partial, place)
    tidy(place)


def link(source: Path, target: Path) -> None:
    """A finished file under a second name; a copy where the file system knows no links."""
    with suppress(FileNotFoundError):
        os.remove(target)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise
        with finishing(target) as temporary:
            shutil.copyfile(source, temporary)
