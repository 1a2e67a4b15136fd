"""The one rule for what a command may write, for every output of every command.

An output that is an input is refused. A file that the toolkit did not write is refused without `--overwrite`. Ours is a
page that carries our mark, or a file that the state file beside it lists by content hash; anything else is foreign, and
so is what a person has changed since. Nothing but a regular file is ever replaced, and no link.

Files: make an `Output` before any work is done, which checks; write in its `writing()`, which checks again.

    page = Output("--page", options.page, inputs=[options.references], overwrite=options.overwrite,
                  ours=is_page("evaluation"))
    ... the work ...
    with page.writing() as temporary:
        temporary.write_text(...)

A command with a journal of its own (batch-caption) gives `ours=`, a function that says whether the file at a path is
the one that it wrote last, by content hash, and records the new hash within `writing()`. Without `ours`, the state is
`<output>.state`, which `writing()` keeps.

Folders (a cache, a model, a sample): `check_folder` before any work is done; what in such a folder is ours is for its
command to tell.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import OutputError
from toolkit.runtime.files import beside, read_object, write_json

HEAD = 10_000  # characters of a page within which its mark stands
STATE_KEY = "toolkit output"  # of a state file: the hashes of what we wrote, the newest first


@dataclass(frozen=True)
class Output:
    """A file that a command is going to write; making one checks it.

    Attributes:
        option: as it is typed, for messages.
        inputs: files that the command reads, and folders all of whose files it may read; None and what does not exist
            (a name on the hub) are passed over. Files that the same command writes besides may stand here too.
        overwrite: a foreign file may be replaced; an input never.
        ours: whether the file at a path is ours; by default the state file beside it says.

    Raises:
        OutputError: it may not be written.
    """

    option: str
    path: Path
    inputs: Sequence[Path | str | None] = ()
    overwrite: bool = False
    ours: Callable[[Path], bool] | None = None

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Whether it may be written now; before the work and again at its end, as somebody may have put a file there."""
        try:
            self._check()
            if self.ours is None:
                self._check_state()
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise self.refused(f"can't be written ({error.strerror})") from None

    def refused(self, why: str, remedy: str = "name another file") -> OutputError:
        return OutputError(f"{self.option} {self.path}: {why}; {remedy}.")

    def _check(self) -> None:
        path, folder = self.path, self.path.parent
        if not folder.is_dir():
            raise self.refused(f"there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise self.refused(f"can't be written (no permission in the folder {folder})")
        inputs = [Path(given) for given in self.inputs if given is not None]
        if any(same_place(path, given) for given in inputs):
            raise self.refused("is an input of this command, or another output")
        mode = _mode(path)
        if mode is None:
            return
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise self.refused(f"is {kind}")
        if (self.ours or listed)(path):
            return
        if not self.overwrite:
            remedy = "name another file, or add --overwrite to replace it"
            raise self.refused("exists and is not what this command wrote", remedy)
        within = next((given for given in inputs if is_below(path, given)), None)
        if within is not None:
            raise self.refused(f"is a file of {within}, which this command reads")

    def _check_state(self) -> None:
        """The state file is an output too, which nobody has named: a foreign one is never replaced."""
        place = beside(self.path, ".state")
        if _mode(place) is not None and _state(place) is None:
            raise self.refused(f"needs {place.name} beside it, which toolkit did not write")

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A new file to write, which takes its place when the block ends, and leaves nothing if it fails.

        A file with the same bytes stays as it is, with its time.

        Raises:
            OutputError: it can't be written, or may not be any more.
        """
        temporary = self.path.parent / f".toolkit-{secrets.token_hex(8)}.tmp"
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield temporary
            self.check()
            if self.ours is None:
                _record(self.path, temporary)
            self._place(temporary)
        except OSError as error:
            raise self.refused(f"can't be written ({error.strerror or error})") from None
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _place(self, temporary: Path) -> None:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(temporary, self.path)  # takes a free name only, whatever happens at the same time
        except OSError:  # not free, or a file system without hard links
            self.check()
            if not (self.path.is_file() and filecmp.cmp(temporary, self.path, shallow=False)):
                os.replace(temporary, self.path)


# ---- what is ours ---------------------------------------------------------------------------------------------------


def page_mark(kind: str) -> str:
    """What stands in the head of each page; `kind` is gallery, evaluation, ..."""
    return f'<meta name="generator" content="toolkit {kind}">'


def is_page(kind: str) -> Callable[[Path], bool]:
    """For `ours`: whether a file is a page of this kind."""

    def marked(path: Path) -> bool:
        with open(path, encoding="utf-8", errors="replace") as file:
            head = file.read(HEAD)
        return head.startswith("<!doctype html>") and page_mark(kind) in head.partition("</head>")[0]

    return marked


def content_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(path: Path) -> bool:
    """Whether `<path>.state` lists the file as it is."""
    return content_hash(path) in (_state(beside(path, ".state")) or [])


def _state(place: Path) -> list[str] | None:
    """The hashes in a state file; None where there is none, or one that is not of this module."""
    hashes = None if place.is_symlink() else (read_object(place) or {}).get(STATE_KEY)
    return hashes if isinstance(hashes, list) else None


def _record(path: Path, temporary: Path) -> None:
    """Lists the new content before it takes its place, and keeps the old one listed: a kill in between loses neither."""
    place, hashes = beside(path, ".state"), [content_hash(temporary)]
    if path.is_file() and listed(path):
        hashes.append(content_hash(path))
    if (_state(place) or [])[:1] != hashes[:1]:
        write_json(place, {STATE_KEY: list(dict.fromkeys(hashes))}, beside(temporary, ".state"))


def _mode(path: Path) -> int | None:
    """What kind of file stands there, a link not followed; None where there is none."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


# ---- places ---------------------------------------------------------------------------------------------------------


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths are of one file: through links, hard links, "..", or letter case where that makes no difference."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist
        if os.path.exists(one) != os.path.exists(other):
            return False
        return os.path.realpath(one).casefold() == os.path.realpath(other).casefold()


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder or in one below it, through links too."""
    parents = [Path(os.path.realpath(path)), *Path(os.path.realpath(path)).parents]
    return any(os.path.lexists(parent) and folder.is_dir() and same_place(parent, folder) for parent in parents[1:])


def check_folder(option: str, path: Path, inputs: Iterable[Path | str | None] = ()) -> None:
    """Refuses a folder that no command may write as a whole; `path` may be a link to a folder, which is meant then.

    For a folder whose contents are replaced, `inputs` are all files and folders that the command reads.

    Raises:
        OutputError: a file; the working folder or one above it, a home folder, `/`; an input, or the home of one.
    """

    def refused(why: str) -> OutputError:
        return OutputError(f"{option} {path}: {why}; name another folder.")

    try:
        if os.path.lexists(path) and not path.is_dir():
            raise refused("is a link that leads nowhere" if path.is_symlink() else "is a file")
        home = Path(os.path.expanduser("~"))
        for place, name in ((Path.cwd(), "the working folder"), (home, "your home folder")):
            if same_place(path, place):
                raise refused(f"is {name}")
            if is_below(place, path):
                raise refused(f"holds {name}")
        partial = beside(Path(os.path.realpath(path)), ".partial")
        for given in (Path(given) for given in inputs if given is not None):
            if same_place(path, given):
                raise refused("is an input of this command")
            if is_below(given, path):
                raise refused(f"holds {given}, which this command reads")
            if same_place(given, partial) or is_below(given, partial):
                raise refused(f"would be made in {partial}, where this command reads {given}")
    except OSError as error:
        raise refused(f"can't be written ({error.strerror})") from None
