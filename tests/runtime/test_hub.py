"""Why a name can't be had from the hub: what the hub answers, what the machine says, and never the wrong one."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest

from toolkit.errors import InputError, ModelError, is_bug
from toolkit.models import loading as modeling
from toolkit.runtime import hub
from toolkit.runtime.hub import positions_of, why_not

# What huggingface.co answers: status, X-Error-Code, X-Error-Message.
ANSWERS = {
    "gated": (403, "GatedRepo", "Access to model owner/gated is restricted"),
    "none": (404, "RepoNotFound", "Repository not found"),
    "private": (401, "RepoNotFound", "Invalid username or password."),
    "token": (401, None, "Invalid credentials in Authorization header"),
    "forbidden": (403, None, "Forbidden"),
    "busy": (429, None, "Too many requests"),
    "broken": (503, None, "Service unavailable"),
    "disabled": (403, None, "Access to this resource is disabled."),
}
REASONS = {
    "gated": "it is gated, for those who asked for access; ask at {endpoint}/owner/gated and log in with `hf auth login`",
    "none": "no such model there, or a private one; check the spelling, or log in with `hf auth login`",
    "private": "no such model there, or a private one; check the spelling, or log in with `hf auth login`",
    "token": "the hub does not accept your token (401); log in with `hf auth login`, or set HF_TOKEN again, or unset HF_TOKEN",
    "forbidden": "the hub forbids it to your token (403); log in",
    "busy": "the hub has had too many requests from here (429); wait a few minutes and try again",
    "broken": "the hub answers with status 503; try again later",
    "disabled": "access to it was disabled there; name another",
}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A hub on this machine."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = next((name for name in ANSWERS if f"owner/{name}" in self.path), None)
            status, code, message = ANSWERS[name] if name else (200, None, None)
            if "owner/there" in self.path and "/resolve/" in self.path:
                status, code, message = 404, "EntryNotFound", "Entry not found"
            self.send_response(status)
            for header, value in (("X-Error-Code", code), ("X-Error-Message", message), ("Content-Length", "0")):
                if value is not None:
                    self.send_header(header, value)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for module in (huggingface_hub.constants, huggingface_hub.hf_api.constants):
        monkeypatch.setattr(module, "ENDPOINT", address)
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    monkeypatch.setattr("huggingface_hub.utils._http._DEFAULT_RETRY_ON_STATUS_CODES", (), raising=False)
    yield address
    server.shutdown()


@pytest.mark.parametrize("name", ANSWERS)
def test_the_hubs_answer_is_the_reason(endpoint: str, name: str) -> None:
    text = why_not(f"owner/{name}", OSError("whatever a library makes of it"), "HINT")
    assert text.startswith(REASONS[name].format(endpoint=endpoint)), text
    assert "connection" not in text


def test_what_is_there_fails_for_the_librarys_own_reason(endpoint: str) -> None:
    assert why_not("owner/there", ValueError("no tokenizer of this kind."), "HINT") == "no tokenizer of this kind; HINT"
    assert why_not("a b/c d", ValueError("x"), "HINT") == "that is not a possible name on the hub; HINT"


def test_what_this_machine_says(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError("could not save")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert why_not("owner/there", full, "HINT").startswith(
        "no space left on device on this machine, where a copy of it"
    )
    assert why_not("o/data", OSError(), "HINT", "dataset") == "OSError; HINT"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert why_not("owner/there", OSError(), "HINT") == "there is no connection to 127.0.0.1; HINT"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert why_not("owner/there", OSError(), "HINT").startswith(
        "it is not in the hub's cache on this machine, and HF_HUB"
    )


@pytest.mark.parametrize("name", ["gated", "none", "token"])
def test_loading_says_it(endpoint: str, name: str) -> None:
    with pytest.raises(ModelError) as error:
        modeling.load_tokenizer(f"owner/{name}")
    reason = REASONS[name].format(endpoint=endpoint)
    start = f"--decoder owner/{name}: the tokenizer could not be loaded from the Hugging Face hub: "
    assert str(error.value).startswith(start + reason), error.value
    assert "no connection" not in str(error.value)


def test_a_data_set_says_it(endpoint: str, tmp_path: Path) -> None:
    from toolkit.data.annotations import read_annotations

    with pytest.raises(
        InputError, match=r"^owner/none: neither a local data set nor one that the hub has: no such dataset"
    ):
        list(read_annotations("owner/none", tmp_path, "hub").records)


def test_our_own_mistakes_are_no_ones_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise TypeError("a mistake in our call")

    monkeypatch.setattr(modeling.AutoTokenizer, "from_pretrained", wrong)
    for name in ("owner/name", str(tmp_path)):
        with pytest.raises(TypeError, match="a mistake in our call"):
            modeling.load_tokenizer(name)
    monkeypatch.undo()
    (tmp_path / "config.json").write_text("[]")  # which transformers meets with an AttributeError or a TypeError
    with pytest.raises(ModelError, match=r"no tokenizer can be loaded from this folder"):
        modeling.load_tokenizer(str(tmp_path))


def test_whose_mistake_it_is() -> None:
    for run, expected in (
        (lambda: json.loads(None), False),  # type: ignore[arg-type]  # within a library
        (lambda: None.x, True),  # type: ignore[attr-defined]
        (lambda: int("x"), False),
    ):
        with pytest.raises((TypeError, AttributeError, ValueError)) as error:
            run()
        assert is_bug(error.value) == expected


def test_positions_of_what_is_not_here() -> None:
    assert positions_of("owner/none") is None
    assert hub.cached("not a name", "config.json") is None
