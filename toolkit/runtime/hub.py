"""The Hugging Face hub: names that it can't have, told before anything heavy is loaded; and why a name can't be had."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from toolkit.errors import ModelError

# The small files of a model, of which a model that was used here before has some in the hub's cache.
MODEL_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "spiece.model",
)  # fmt: skip
WAYS_OUT = (
    "give a local folder, or fill the hub's cache where there is a network and set HF_HUB_OFFLINE=1, "
    "or use --preset tiny, which downloads nothing"
)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_name(option: str, name: str) -> None:
    """Whether a model's name may lead to one, as far as that is known without asking the hub; in milliseconds.

    Raises:
        ModelError: no such folder, not a name of the hub's, or not on this machine where the hub is not to be asked.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name)
    if path.is_dir():
        return
    if path.exists():
        raise ModelError(f"{option} {name}: is a file, not a folder or a name on the hub; {WAYS_OUT}.")
    parent = path.parent.name and path.parent.is_dir()
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.endswith("/") or parent:
        raise ModelError(f"{option} {name}: no such folder (relative to the current directory); {WAYS_OUT}.")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelError(f"{option} {name}: no such folder, and not a possible name on the hub; {WAYS_OUT}.") from None
    if not any(cached(name, file) for file in MODEL_FILES):
        if constants.HF_HUB_OFFLINE:
            raise ModelError(f"{option} {name}: {NOT_HERE}, and HF_HUB_OFFLINE is set; {WAYS_OUT}.")
        if out_of_reach(name):
            raise ModelError(f"{option} {name}: {NOT_HERE}, and {no_connection()}; {WAYS_OUT}.")


NOT_HERE = "could not be loaded from the Hugging Face hub: it is not in the hub's cache on this machine"


def cached(name: str, file: str) -> Path | None:
    """A file of a model in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def positions_of(name: str) -> int | None:
    """How many tokens a decoder has positions for, by its config where that is on this machine; None if it does not say."""
    file = Path(name, "config.json") if Path(name).is_dir() else cached(name, "config.json")
    try:
        config = json.loads(file.read_bytes()) if file is not None else {}
        config = config.get("decoder", config)  # of a captioner
        count = next(config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key) is not None)
        # These count on from their padding id.
        first = config.get("pad_token_id", 1) + 1 if config.get("model_type") in ROBERTAS else 0
        return int(count) - first
    except (OSError, ValueError, AttributeError, TypeError, StopIteration):
        return None


ROBERTAS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text")


def out_of_reach(name: str) -> bool:
    """Whether asking the hub for `name` would only wait: its client tries for two minutes before it gives up."""
    from huggingface_hub import constants

    if Path(name).is_dir() or any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError:
        return True
    return False


def no_connection() -> str:
    from huggingface_hub import constants

    return f"there is no connection to {urlsplit(constants.ENDPOINT).hostname}"


def why_not(name: str, error: BaseException, hint: str, kind: str = "model") -> str:
    """Why a name could not be loaded from the hub, and what to do: "no such name ...; check the spelling, or ...".

    Libraries pass over some of the hub's answers and fail later for want of a file, so it is asked once more.

    Args:
        error: what loading raised.
        hint: what to do where the hub has no better advice.
        kind: model or dataset.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    own = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    full = next((e for e in chain(error) if isinstance(e, OSError) and e.errno in FULL), None)
    if full is not None:
        return f"{os.strerror(full.errno or 0).lower()} on this machine, where a copy of it goes; make room for it"
    if constants.HF_HUB_OFFLINE:
        here = kind == "model" and any(cached(name, file) for file in MODEL_FILES)
        return (
            f"{own}; {hint}"
            if here
            else f"it is not in the hub's cache on this machine, and HF_HUB_OFFLINE is set; {hint}"
        )
    if out_of_reach(name):
        return f"{no_connection()}; {hint}"
    try:
        validate_repo_id(name)
        HfApi().auth_check(name, repo_type=kind)
    except HFValidationError:
        return f"that is not a possible name on the hub; {hint}"
    except HfHubHTTPError as answer:
        return _answer(name, answer, kind)
    except (OSError, OfflineModeIsEnabled) as failure:
        return f"{no_connection()} ({' '.join(str(failure).split())[:100].rstrip('.')}); {hint}"
    except Exception as failure:  # of the HTTP library, which is not always the same
        if not type(failure).__module__.startswith(("httpx", "requests", "urllib3")):
            raise
        return f"{no_connection()} ({' '.join(str(failure).split())[:100].rstrip('.')}); {hint}"
    return f"{own}; {hint}"


def _answer(name: str, answer: BaseException, kind: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError

    status = getattr(getattr(answer, "response", None), "status_code", None)
    if isinstance(answer, GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return f"it is gated, for those who asked for access; ask at {page} and {LOG_IN}"
    if isinstance(answer, DisabledRepoError):
        return "access to it was disabled there; name another"
    if isinstance(answer, RepositoryNotFoundError):
        return f"no such {kind} there, or a private one; check the spelling, or {LOG_IN} for one of yours"
    remedies = {
        401: f"the hub does not accept your token (401); {LOG_IN} again, or unset HF_TOKEN",
        403: f"the hub forbids it to your token (403); {LOG_IN} with one that has the permission",
        429: "the hub has had too many requests from here (429); wait a few minutes and try again",
    }
    return remedies.get(status or 0) or f"the hub answers with status {status}; try again later"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
