"""The server of the review page: what it answers, and what it refuses."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from toolkit.data.reviews import Review
from toolkit.options import ReviewOptions
from toolkit.reviewing.heat import Heat
from toolkit.reviewing.listing import list_captions
from toolkit.reviewing.server import LARGEST_BODY, Desk, Guard

EVIL = "\"><script>document.title=1</script>\u2028'<img src=x onerror=document.title=2>.jpg"
EVIL_CAPTION = "</script><script>document.title=3</script><img src=x onerror=document.title=4> \udcff"


@pytest.fixture(scope="module")
def desk(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A server in this process, of three images and one that is missing."""
    from serving import write_captions

    folder = tmp_path_factory.mktemp("review")
    names = [EVIL, "b.jpg", "gone.jpg", "../secret.jpg"]
    (folder / "images").mkdir()
    for name, path in zip(names[:2], sorted((sample_dir / "Images").glob("*.jpg")), strict=False):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "images" / name)
    shutil.copy(folder / "images" / "b.jpg", folder / "secret.jpg")
    write_captions(
        folder / "captions.jsonl", names, **{"0": {"caption": EVIL_CAPTION, "captions": [EVIL_CAPTION, "b"]}}
    )
    listing = list_captions(ReviewOptions(path=folder / "captions.jsonl", images=folder / "images"))
    desk = Desk(listing, Review(folder / "captions.jsonl.review"), Heat(None, {}), near=[])
    listener = socket.create_server(("127.0.0.1", 0))
    desk.port = listener.getsockname()[1]  # type: ignore[attr-defined]
    server = uvicorn.Server(uvicorn.Config(desk.app("127.0.0.1"), log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield desk
    server.should_exit = True
    thread.join(10)


def ask(
    desk: Desk, path: str, body: Any = None, token: str | None = None, method: str | None = None, **headers: str | None
) -> tuple[int, bytes, dict[str, str]]:
    port = desk.port  # type: ignore[attr-defined]
    given: dict[str, str | None] = {"host": f"127.0.0.1:{port}", "origin": None, "content-type": None}
    if body is not None:
        given |= {"origin": f"http://127.0.0.1:{port}", "content-type": "application/json"}
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method or ("GET" if body is None else "POST"), f"/{token or desk.token}{path}", True, True)
    for name, value in {"content-length": str(len(body or b"")), **given}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    with suppress(OSError):  # refused already
        connection.send(body or b"")
    answer = connection.getresponse()
    found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    return found


def action(desk: Desk, **given: Any) -> dict[str, Any]:
    row = {"version": desk.listing.version, "seen": 0, "items": [1], "action": "edit", "text": "a thing"}
    return {**row, **given}


def test_answers(desk: Desk) -> None:
    status, page, headers = ask(desk, "/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'; img-src 'self' data:; connect-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert b"http" not in page.replace(b"http-equiv", b"")  # nothing from elsewhere
    listing = json.loads(ask(desk, "/items")[1])
    assert [item["id"] for item in listing["items"]] == [item.id for item in desk.listing.items]
    assert listing["items"][0]["captions"] == [EVIL_CAPTION, "b"]
    before = len(desk.review.rows)
    status, answer, _ = ask(desk, "/act", action(desk, text="  a \n brown\tdog ", seen=before))
    assert status == 200
    ((number, what, text, _),) = json.loads(answer)["rows"]
    assert (number, what, text) == (1, "edit", "a brown dog")
    assert Review(desk.review.path).rows[-1].text == "a brown dog"
    assert json.loads(ask(desk, f"/rows/{before}")[1])["rows"] == json.loads(answer)["rows"]


def test_images_are_made_anew(desk: Desk) -> None:
    for kind, side in (("thumb", 200), ("image", 1400)):
        status, data, headers = ask(desk, f"/{kind}/{desk.listing.version}/0")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert max(Image.open(io.BytesIO(data)).size) <= side
    assert ask(desk, f"/image/{desk.listing.version}/2")[0] == 404  # missing
    assert ask(desk, f"/image/{desk.listing.version}/3")[:2] == (
        404, b"The image can't be read: leads outside the images folder."
    )  # fmt: skip
    assert ask(desk, f"/heat/{desk.listing.version}/0")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:1"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "10.0.0.7"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:7"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "none"}, 200),
    ],
)
def test_hosts_and_origins(desk: Desk, headers: dict[str, str], status: int) -> None:
    assert ask(desk, "/items", **headers)[0] == status
    if status == 403:
        rows = len(desk.review.rows)
        assert ask(desk, "/act", action(desk), **headers)[0] == 403
        assert len(desk.review.rows) == rows


def test_without_the_token(desk: Desk) -> None:
    for token in ("x", desk.token[:-1], desk.token + "x", desk.token.swapcase(), "%00", "%C3%A9", "."):
        for path in ("/", "/items", f"/image/{desk.listing.version}/0"):
            assert ask(desk, path, token=token)[0] == 404, token
        assert ask(desk, "/act", action(desk), token=token)[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", desk.port)  # type: ignore[attr-defined]
    for path in ("/", "/items", "//", f"//{desk.token}/", "*"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, desk.token.encode() in answer.read()) == (404, False), path


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.jpg", "/image/../../secret.jpg", "/image/{v}/../secret.jpg", "/image/{v}/..%2fsecret.jpg",
        "/image/{v}/%2e%2e%2fsecret.jpg", "/image/{v}/%2e%2e/%2e%2e/etc/passwd", "/image/{v}/..%5csecret.jpg",
        "/image/{v}//etc/passwd", "/image/{v}/0/../../x", "/image/{v}/-1", "/image/{v}/0%00", "/image/{v}/4",
        "/image/{v}/99999999999999999999999", "/image/{v}/b.jpg", "/image/x/0", "/file/{v}/0", "/rows/-1", "/act", "/static/x",
    ],
)  # fmt: skip
def test_no_path_opens_a_file(desk: Desk, path: str) -> None:
    status, body, _ = ask(desk, path.replace("{v}", desk.listing.version))
    assert status in (404, 405)
    assert not body.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    "given",
    [
        {"items": []}, {"items": [4]}, {"items": [-1]}, {"items": ["1"]}, {"items": [True]}, {"items": "1"}, {"items": None},
        {"action": "delete"}, {"action": None}, {"text": None}, {"text": " \n"}, {"text": 7}, {"text": ["x"]}, {"seen": "0"},
        {"action": "reject"}, {"text": "x" * 5001},
    ],
)  # fmt: skip
def test_what_is_no_action(desk: Desk, given: dict[str, Any]) -> None:
    before = desk.review.path.read_bytes() if desk.review.path.exists() else b""
    assert ask(desk, "/act", action(desk, **given))[0] == 400
    assert (desk.review.path.read_bytes() if desk.review.path.exists() else b"") == before


def test_other_requests_are_refused(desk: Desk) -> None:
    assert ask(desk, "/act", b"{" * 100_000)[0] == 400
    assert ask(desk, "/act", b"\xff")[0] == 400
    assert ask(desk, "/act", action(desk, version="x"))[0] == 409
    assert ask(desk, "/act", action(desk), content_type="text/plain")[0] == 415  # a form of another page may send that
    assert ask(desk, "/act", action(desk), origin=None)[0] == 403
    assert ask(desk, "/act", b"x" * (LARGEST_BODY + 1))[0] == 413
    assert ask(desk, "/act", b"x", content_length=str(10**15))[0] == 413
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(desk, "/items", method=method)[0] == 405


def test_a_huge_body_without_a_length(desk: Desk) -> None:
    """Sent in pieces, it is refused once it is too large, and not held."""
    connection = http.client.HTTPConnection("127.0.0.1", desk.port, timeout=20)  # type: ignore[attr-defined]
    host = f"127.0.0.1:{desk.port}"  # type: ignore[attr-defined]
    connection.putrequest("POST", f"/{desk.token}/act", True, True)
    for name, value in (("host", host), ("origin", f"http://{host}"), ("content-type", "application/json")):
        connection.putheader(name, value)
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    with suppress(OSError):
        for _ in range(200):
            connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    with suppress(ConnectionError, http.client.HTTPException):  # it had stopped listening
        assert connection.getresponse().status == 413
    assert ask(desk, "/items")[0] == 200


def test_another_host_by_name() -> None:
    guard = Guard(None, "t", "box.example")
    assert [guard.is_ours(host) for host in ("box.example:80", "BOX.example", "192.168.0.7:9", "evil.example")] == [
        True, True, True, False,
    ]  # fmt: skip
