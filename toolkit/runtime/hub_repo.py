"""A repository on the Hugging Face hub that a command fills: claimed before the work, filled when it is done.

Nothing of a push shows before all of it has arrived: files are sent first, large ones one by one, then one commit makes them the
repository's. The hub knows what has arrived by its content, so a push that failed goes on where it stopped. (Beyond
`COMMIT` files there are several commits, the card and the manifest in the last.)

The token is read by huggingface_hub (`hf auth login`, HF_TOKEN) and stays there.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toolkit.errors import OutputError, ToolkitError, is_bug
from toolkit.runtime import progress
from toolkit.runtime.hub import LOG_IN, chain, no_connection, out_of_reach
from toolkit.runtime.progress import Progress

COMMIT = 500  # files in one commit; the hub takes more, but slowly
BATCH = 16  # files that are sent between two steps of progress
AGAIN = "run the same command again; what has arrived is not sent again"

Source = Path | bytes  # of a file: where it lies, or what is in it


@dataclass(frozen=True)
class Pushed:
    """What a push did: files of the repository, those of them that were new or different, and where to look at it."""

    name: str
    url: str
    files: int
    sent: int


@dataclass(frozen=True)
class HubRepo:
    """A repository that this machine's token may write.

    Attributes:
        told: how messages begin: the option and the name as they were typed.
        name: with its owner.
        kind: model or dataset.
        head: its last commit.
    """

    told: str
    name: str
    kind: str
    head: str | None

    def refused(self, why: str) -> OutputError:
        return OutputError(f"{self.told}: {why}.")

    def files(self) -> dict[str, Any]:
        """What is there, by name: a `RepoFile` each; without what the hub itself puts there."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with hub_errors(self.told):
            found = HfApi().list_repo_tree(self.name, recursive=True, repo_type=self.kind, revision=self.head)
            return {file.path: file for file in found if isinstance(file, RepoFile) and file.path != ".gitattributes"}

    def text(self, name: str) -> str | None:
        """A small file that is there; None where there is none."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with hub_errors(self.told), _quietly(), TemporaryDirectory() as folder:
            try:
                path = HfApi().hf_hub_download(
                    self.name, name, repo_type=self.kind, revision=self.head, local_dir=folder
                )
            except RemoteEntryNotFoundError:
                return None
            return Path(path).read_text(encoding="utf-8", errors="replace")

    def put(
        self,
        files: Mapping[str, Source],
        last: Sequence[str] = (),
        overwrite: bool = False,
        stale: Callable[[str], bool] = lambda name: False,
    ) -> Pushed:
        """Makes these files the repository's, those of `last` last.

        Args:
            overwrite: a file there with other content may be replaced; its commits stay in the repository.
            stale: with `overwrite`, whether a file there that is none of these is removed.

        Raises:
            OutputError: it holds other files of these names, the hub refuses them, or the connection broke.
        """
        there = self.files()
        other = [name for name in files if name in there and not _same(there[name], files[name])]
        if other and not overwrite:
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise self.refused(
                f"already has another {other[0]}{more}; name another repository, or replace what is there with `toolkit push "
                "... --overwrite` (earlier versions stay in its history)"
            )
        new = [name for name in files if name not in there or name in other]
        gone = [name for name in there if name not in files and stale(name)] if overwrite else []
        order = [name for name in new if name not in last] + [name for name in new if name in last]
        if order or gone:
            with hub_errors(self.told), _quietly():
                self._send({name: files[name] for name in order}, gone)
        return Pushed(self.name, self.url, len(files), len(new))

    @property
    def url(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def _send(self, files: Mapping[str, Source], gone: Sequence[str]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api, head = HfApi(), self.head
        operations: list[Any] = [CommitOperationAdd(name, _given(source)) for name, source in files.items()]
        with Progress("push", len(operations), "files") as sending:
            for start in range(0, len(operations), BATCH):
                batch = operations[start : start + BATCH]
                api.preupload_lfs_files(self.name, batch, repo_type=self.kind)
                sending.update(len(batch))
        operations = [*(CommitOperationDelete(name) for name in gone), *operations]
        for start in range(0, len(operations), COMMIT):
            head = api.create_commit(
                self.name, operations[start : start + COMMIT], repo_type=self.kind, commit_message="toolkit push",
                parent_commit=head,
            ).oid  # fmt: skip


def _given(source: Source) -> str | bytes:
    return source if isinstance(source, bytes) else str(source)


def _same(there: Any, source: Source) -> bool:
    """Whether a file there has the content of ours, by the hash that the hub keeps of it."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size != there.size:
        return False
    if there.lfs is not None:
        digest, expected = hashlib.sha256(), there.lfs.sha256
    else:
        digest, expected = hashlib.sha1(b"blob %d\0" % size), there.blob_id  # as git names a file
    if isinstance(source, bytes):
        digest.update(source)
    else:
        with open(source, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return bool(digest.hexdigest() == expected)


@contextmanager
def _quietly() -> Iterator[None]:
    """huggingface_hub's own progress of each large file on a terminal only, and none of its lines about attempts, which have
    addresses in them that a file may be put to."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = (progress.quiet or not sys.stderr.isatty()) and not are_progress_bars_disabled()
    log = logging.getLogger("huggingface_hub.utils._http")
    level = log.level
    log.setLevel(logging.ERROR)
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if hidden:
            enable_progress_bars()


# ---- claiming -------------------------------------------------------------------------------------------------------


def claim_repo(option: str, name: str, kind: str, private: bool, card: str = "---\n---\n") -> HubRepo:
    """Makes the repository, if it isn't there, and finds out whether this machine may write it; in a second or two.

    Args:
        option: as it was typed before the name; "" for an argument.
        name: with its owner before a "/", or without: then it is the user's.
        kind: model or dataset.
        card: with the metadata that the hub is to find right.

    Raises:
        OutputError: no possible name, no token, no right to write, no connection, or with `private` a public one.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    told = f"{option} {name}".strip()
    _check_here(told, name)
    api = HfApi()
    with hub_errors(told):
        me = api.whoami()
        if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise OutputError(f"{told}: your token may only read; {LOG_IN} with one that may write.")
        full = name if "/" in name else f"{me['name']}/{name}"
        # None: as the owner's settings have it, which is public but for some organisations.
        api.create_repo(full, private=private or None, repo_type=kind, exist_ok=True)
        info = api.repo_info(full, repo_type=kind)
        if private and not info.private:
            raise OutputError(
                f"{told}: --private, but the {kind} is there and public; make it private in its settings on the hub, or name another."
            )
        # Answers only who may write, and sends nothing: a file so small is sent with its commit.
        api.preupload_lfs_files(full, [CommitOperationAdd("README.md", card.encode())], repo_type=kind)
        _check_card(told, card, kind)
    return HubRepo(told, full, kind, info.sha)


def _check_card(told: str, card: str, kind: str) -> None:
    from huggingface_hub import RepoCard

    try:
        RepoCard(card, ignore_metadata_errors=True).validate(repo_type=kind)
    except ValueError as error:
        raise OutputError(f"{told}: {_refused_card(str(error))}.") from None


def _refused_card(why: str) -> str:
    why = " ".join(why.split())[:300].rstrip(".")
    return f"the hub refuses the card's metadata ({why}); correct --license, --language or --dataset, or the README.md of the model"


def _check_here(told: str, name: str) -> None:
    """What can be found wrong without asking the hub."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise OutputError(
            f"{told}: not a possible name on the hub; use letters, digits, -, _ and ., with an owner before a slash or without."
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise OutputError(f"{told}: HF_HUB_OFFLINE is set; unset it to push to the hub.")
    if get_token() is None:
        raise OutputError(f"{told}: there is no token for the hub on this machine; {LOG_IN}.")
    if out_of_reach(name):
        raise OutputError(f"{told}: {no_connection()}; try again where there is a network.")


@contextmanager
def hub_errors(told: str) -> Iterator[None]:
    """Whatever the hub's client raises, as one sentence."""
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:  # httpx's or requests', ours of a file, hf_xet's own
        if is_bug(error):
            raise
        raise OutputError(f"{told}: {_why(error)}.") from None


REMEDIES = {
    401: f"the hub does not accept your token (401); {LOG_IN} again",
    402: "the hub asks for a paid plan there (402); make room, or name another",
    403: f"your token may not write there (403); {LOG_IN} with one that may, or name a repository of yours",
    404: "no such user, organisation or repository on the hub, or your token may not see it (404); check the spelling",
    409: f"it was changed by somebody else at the same time (409); {AGAIN}",
    412: f"it was changed by somebody else at the same time (412); {AGAIN}",
    429: "the hub has had too many requests from here (429); wait a few minutes, and run the same command again",
}


def _why(error: BaseException) -> str:
    from huggingface_hub import get_token

    causes = list(chain(error))
    reason = " ".join(str(causes[-1]).split())[:200].rstrip(".") or type(causes[-1]).__name__
    reason = reason.replace(get_token() or "\0", "<token>")
    status = next((found for each in causes if (found := _status(each))), None)
    card = next((each for each in causes if isinstance(each, ValueError) and "README.md" in str(each)), None)
    if card is not None:
        return _refused_card(str(card).partition("\n")[2])
    if status is not None:
        return REMEDIES.get(status) or f"the hub answers with status {status}; {AGAIN}"
    local = next((each for each in causes if isinstance(each, OSError) and each.filename), None)
    if local is not None:
        return f"{local.filename} can't be read ({local.strerror}); give permission, or put it back"
    return f"the connection to the hub broke ({reason}); {AGAIN}"


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
