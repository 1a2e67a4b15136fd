"""Caches and models: folders that are made beside their place and take it, file by file, when they are whole.

    <place>.lock      held while a run is on
    <place>.partial   the folder until it is whole; a rerun goes on from it
    <place>           the finished folder, which stays until the new one is whole

A finished folder has a mark, a JSON file that is written last and lists the others. Only what the replaced folder's mark
lists is moved, replaced or deleted; a file that has changed since its hash was listed is a person's, and is kept as
NAME.old. A kill at any moment leaves the new mark or `REPLACED` in `<place>.partial`: `take_place` called again ends it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from toolkit.errors import OutputError
from toolkit.runtime.files import beside, finishing, flush, new_lock, write_json
from toolkit.runtime.hashing import file_hash

REPLACED = "replaced.json"  # within a swap: lists the files of the folder that is being replaced

Files = dict[str, str | None]  # name -> content hash; None where it is not known


@dataclass(frozen=True)
class Kind:
    """What is in a folder.

    Attributes:
        mark: the file that is written last.
        listed: (mark, folder) -> the files that a mark lists, or without a readable one those of ours by name.
        written: the files in a folder that are of such a run by their names, in the order to delete them in.
        last: what says whose an unfinished folder is: deleted last.
        heads: without these nothing opens the folder: they go first and come last.
    """

    mark: str
    listed: Callable[[Path, Path], Files]
    written: Callable[[Path], Iterable[Path]]
    last: tuple[str, ...] = (REPLACED,)
    heads: tuple[str, ...] = ()


@contextmanager
def held(output: str, place: Path, use: str, kind: str = "folder") -> Iterator[None]:
    """An output for this run alone; folders above it are made, and removed again if nothing came into them.

    Args:
        output: option and value, for messages.
        use: what another run that holds it is doing.
        kind: of output to name instead.

    Raises:
        OutputError: another run holds it, or it can't be written.
    """
    lock = beside(place, ".lock")
    made = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if lock.is_symlink() or (lock.exists() and (not lock.is_file() or lock.stat().st_size > 0)):
                raise OutputError(
                    f"{output}: needs {lock.name} beside it, which toolkit did not write; move that, or name another {kind}."
                )
            handle = new_lock(lock, timeout=1.0)  # the workers of a run that was killed a moment ago may still be dying
            handle.acquire()
        except Timeout:
            raise OutputError(f"{output}: another run is {use}; wait for it, or name another {kind}.") from None
        except OSError as error:
            raise OutputError(f"{output}: can't be written ({reason(error)}); name another {kind}.") from None
        try:
            yield
        finally:
            with suppress(OSError):
                os.remove(lock)
            handle.release()
    finally:
        remove_empty(made)


def take_place(output: str, partial: Path, place: Path, kind: Kind) -> list[str]:
    """The whole folder `partial` becomes the one at `place`, and is gone; cut short, it is called again.

    Between the two marks there is no finished folder, rather than a mixture of two. Whoever has the earlier files open
    keeps them.

    Returns:
        What was changed since it was listed, and is kept under these names.

    Raises:
        OutputError: a file that is not of the earlier folder is in the way, or something can't be moved.
    """
    kept: list[str] = []
    try:
        if (partial / kind.mark).exists():
            new = kind.listed(partial / kind.mark, partial)
            record = partial / REPLACED
            old = kind.listed(record if record.exists() else place / kind.mark, place)
            if not record.exists():
                _check_way(output, partial, place, new, old)
                write_json(record, {"files": old})
            kept = _swap(partial, place, kind, new, old)
        clear(partial, kind)
    except OSError as error:
        raise OutputError(
            f"{output}: the result is complete in {partial}, but can't be moved ({reason(error)}); fix that, and run the same "
            "command again."
        ) from None
    return kept


def _check_way(output: str, partial: Path, place: Path, new: Files, old: Files) -> None:
    for name in new:
        target = place / name
        foreign = os.path.lexists(target) and name not in old
        if foreign or (target.is_dir() and old[name] is None) or target.parent.is_file():
            raise OutputError(
                f"{output}: the result is complete in {partial}, but {target}, which the earlier run did not write, is in the way; "
                "move that, and run the same command again."
            )


def _swap(partial: Path, place: Path, kind: Kind, new: Files, old: Files) -> list[str]:
    """Each step may have been done already, by a run that was killed."""
    kept = []
    place.mkdir(parents=True, exist_ok=True)
    (place / kind.mark).unlink(missing_ok=True)
    for name in kind.heads:
        if name in old and (partial / name).exists():
            (place / name).unlink(missing_ok=True)
    gone = [place / n for n in old if n not in new and n != kind.mark and not _differs(place / n, old[n])]
    for path in gone:
        path.unlink(missing_ok=True)
    names = [*(name for name in new if name not in kind.heads), *kind.heads]
    for name in names:
        if (partial / name).exists():
            target = place / name
            if old.get(name) and _differs(target, old[name]) and _differs(target, new[name]):
                kept.append(_set_aside(target).relative_to(place).as_posix())
            move(partial / name, target)
    remove_empty(above(gone, place))
    for folder in above((place / name for name in new), place):
        if folder.is_dir():
            flush(folder)
    move(partial / kind.mark, place / kind.mark)
    flush(place)
    return kept


def _differs(path: Path, digest: str | None) -> bool:
    """Whether something else stands there than what has this hash (None: whatever it has); nothing does not."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file():
        return True
    return digest is not None and file_hash(path) != digest


def _set_aside(path: Path) -> Path:
    """Renames a file to the first free name of those that end in .old, .old2, ..."""
    number = 1
    while os.path.lexists(target := beside(path, ".old" if number == 1 else f".old{number}")):
        number += 1
    os.rename(path, target)
    return target


# ---- files of ours ----------------------------------------------------------------------------------------------------


def clear(folder: Path, kind: Kind) -> None:
    """Deletes what a run wrote into a folder, and the folder if nothing else is in it."""
    paths = list(kind.written(folder))
    last = [folder / name for name in kind.last]
    for path in paths:
        if path not in last:
            path.unlink(missing_ok=True)
    remove_empty(Path(parent) for parent, _, _ in os.walk(folder) if parent != str(folder))
    for path in last:
        if path in paths:
            path.unlink(missing_ok=True)
    remove_empty([folder])


def above(paths: Iterable[Path], folder: Path) -> set[Path]:
    """The folders below `folder` that paths are in."""
    return {parent for path in paths for parent in path.parents if folder in parent.parents}


def remove_empty(folders: Iterable[Path]) -> None:
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with suppress(OSError):  # something is in it that is not ours
            folder.rmdir()


def move(source: Path, target: Path) -> None:
    """By rename; where the target is on another file system, by a copy that is renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with finishing(target) as temporary:
            shutil.copy2(source, temporary)
    source.unlink(missing_ok=True)  # copied, or a second name of the same file, which a rename leaves alone


def link(source: Path, target: Path) -> None:
    """A finished file under a second name; a copy where the file system knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise
        with finishing(target) as temporary:
            shutil.copyfile(source, temporary)


def reason(error: OSError) -> str:
    """Why something can't be written, within a sentence."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "a file is in the way"
    return os.strerror(error.errno).lower() if error.errno else str(error)
