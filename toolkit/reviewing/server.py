"""The server of the review page: Starlette behind a guard that refuses whatever is not the page itself.

    /TOKEN/                    the page
    /TOKEN/items               what is listed
    /TOKEN/rows/N              the actions from number N on, and near-duplicates once they are found
    /TOKEN/act                 POST: appends actions; answers when they are on the disk, with all rows from `seen` on
    /TOKEN/thumb/VERSION/N     image number N of the listing, as a JPEG made here: no file is passed on as it is
    /TOKEN/image/VERSION/N     the same, larger
    /TOKEN/heat/VERSION/N      the heat maps of its caption, as a PNG made anew

A request names no file. The token is random and new with each start; a request whose Host is not ours (a name that was
made to lead here), whose Origin is another page, or whose body is large is refused before anything reads it.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Semaphore
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from toolkit.data.reviews import Action, Review
from toolkit.errors import ImageError, ToolkitError
from toolkit.reports.html import thumbnail
from toolkit.reviewing.heat import Heat
from toolkit.reviewing.listing import Listing
from toolkit.reviewing.page import page_html, page_policy

LARGEST_BODY = 2**18  # bytes of a request: an action on some thousand near-duplicates
LONGEST_CAPTION = 5000  # characters
SIDES = {"thumb": 200, "image": 1400}  # pixels
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",  # the address holds the token
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
KEPT = {"cache-control": "private, max-age=86400, immutable"}  # an address with a version never shows another image


@dataclass
class Desk:
    """What the page works on.

    Attributes:
        near: groups of pictures that are nearly the same, by number; None until they are found.
        workers: images decoded at once.
    """

    listing: Listing
    review: Review
    heat: Heat
    near: list[list[int]] | None = None
    workers: int = 2
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def __post_init__(self) -> None:
        self.known = {item.key: number for number, item in enumerate(self.listing.items)}
        self.decoding = Semaphore(self.workers)

    def found(self, groups: list[list[int]]) -> None:
        """Takes the near-duplicates, once they are found."""
        self.near = groups

    # ---- answers ----------------------------------------------------------------------------------------------------

    def page(self, request: Request) -> Response:
        """The page, empty."""
        return HTMLResponse(page_html(self.listing.title))

    def items(self, request: Request) -> Response:
        items = [item.to_json() for item in self.listing.items]
        for values in items:
            if values["picture"] in self.heat.words:
                values["heat"] = self.heat.words[values["picture"]]
        return _json({"version": self.listing.version, "title": self.listing.title, "items": items})

    def rows(self, request: Request) -> Response:
        self.review.refresh()
        return _json(self._since(request.path_params["start"]))

    def _since(self, start: int) -> dict[str, Any]:
        """The rows from a number on, as the page needs them: of items that are not listed here only their number."""
        rows = [[self.known.get(row.key, -1), row.action, row.text, row.time] for row in list(self.review.rows[start:])]
        return {
            "version": self.listing.version,
            "reading": self.review.reading,
            "start": start,
            "rows": rows,
            "near": self.near,
        }

    def act(self, request: Request, body: bytes) -> Response:
        """{"version", "seen", "items": [numbers], "action", "text"}"""
        try:
            given = json.loads(body)
            numbers, seen = given["items"], given["seen"]
            if given["version"] != self.listing.version:
                return _refused(409, "The captions have changed; load the page again.")
            if not isinstance(seen, int) or not numbers or not all(type(n) is int for n in numbers):
                raise ValueError
            items = [self.listing.items[n] for n in numbers if 0 <= n < len(self.listing.items)]
            row = {"id": "", "action": given["action"], "text": one_line(given.get("text"))}
            if len(items) != len(numbers) or Action.from_row({**row, "time": ""}) is None or row["text"] == "":
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refused(400, "This is no action.")
        if len(row["text"] or "") > LONGEST_CAPTION:
            return _refused(400, f"A caption has at most {LONGEST_CAPTION} characters.")
        actions = [Action(item.key[0], row["action"], row["text"], item.key[1]) for item in items]
        try:
            done = self.review.append(actions, seen if row["action"] == "undo" else None)
        except ToolkitError as error:
            return _refused(507, str(error))
        return _json({**self._since(max(0, seen)), "done": done})

    def picture(self, request: Request) -> Response:
        kind, number = request.path_params["kind"], request.path_params["number"]
        if request.path_params["version"] != self.listing.version or number >= len(self.listing.pictures):
            return _refused(404, "There is no such image.")
        if kind == "heat":
            png = self.heat.png(number)
            return _refused(404, "There are no heat maps.") if png is None else Response(png, 200, KEPT, "image/png")
        try:
            with self.decoding:
                data = thumbnail(self.listing.pictures.read(number), SIDES[kind])
        except ImageError as error:
            return _refused(404, f"The image can't be read: {error}.")
        return Response(data, 200, KEPT, "image/jpeg")

    def app(self, host: str) -> Guard:
        async def act(request: Request) -> Response:
            body = await request.body()
            return await _in_thread(self.act, request, body)

        routes = [
            Route(f"/{self.token}/", self.page),
            Route(f"/{self.token}/items", self.items),
            Route(f"/{self.token}/rows/{{start:int}}", self.rows),
            Route(f"/{self.token}/act", act, methods=["POST"]),
            *(
                Route(f"/{self.token}/{kind}/{{version:str}}/{{number:int}}", _with(self.picture, kind))
                for kind in (*SIDES, "heat")
            ),
        ]
        return Guard(Starlette(routes=routes), self.token, host)


def _with(answer: Callable[[Request], Response], kind: str) -> Callable[[Request], Response]:
    def of_kind(request: Request) -> Response:
        request.path_params["kind"] = kind
        return answer(request)

    return of_kind


async def _in_thread(call: Callable[..., Response], *given: Any) -> Response:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(call, *given)


def one_line(text: Any) -> str | None:
    """A caption as it is kept: one line, white space as single spaces.

    Raises:
        ValueError: it is no text.
    """
    if text is not None and not isinstance(text, str):
        raise ValueError
    return None if text is None else " ".join(text.split())


def _json(value: Any) -> Response:
    """ASCII, so that halves of characters pass, too."""
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json")


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(why, status)


# ---- the guard ------------------------------------------------------------------------------------------------------


class Guard:
    """Refuses requests before the application sees them, and gives each answer its headers."""

    def __init__(self, app: Any, token: str, host: str) -> None:
        self.app, self.token = app, token
        self.names = {"localhost", host.lower()}
        with suppress(OSError):
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()} if not is_loopback(host) else set()
        self.addresses = not is_loopback(host)  # an address, unlike a name, can't be made to lead here
        self.headers = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
        self.headers.append((b"content-security-policy", page_policy().encode()))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in self.headers if pair[0] not in given)]
            await send(message)

        refused = self.refuses(scope)
        if refused is None and scope["method"] == "POST":
            body = await _body(receive)
            if body is None:
                refused = _refused(413, "The request is too large.")
            else:
                receive = _replay(body)
        await (refused or self.app)(scope, receive, sending)

    def refuses(self, scope: Any) -> Response | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self.is_ours(hosts[0].decode("latin-1")):
            return _refused(403, "This host is not served here.")
        host = hosts[0].decode("latin-1").lower()
        post = scope["method"] == "POST"
        origins = [value.decode("latin-1").lower() for value in headers.get(b"origin", [])]
        if any(origin != f"http://{host}" for origin in origins) or (post and len(origins) != 1):
            return _refused(403, "Requests of other pages are refused.")
        if headers.get(b"sec-fetch-site", [b"none"])[0] not in (b"same-origin", b"none"):
            return _refused(403, "Requests of other pages are refused.")
        given = scope["path"].removeprefix("/").partition("/")[0].encode("utf-8", "replace")
        if not secrets.compare_digest(given, self.token.encode()):
            return _refused(404, "Not found. The address with its token is what `toolkit review` printed.")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _refused(405, "Method not allowed.")
        if post and headers.get(b"content-type", [b""])[0].split(b";")[0].strip() != b"application/json":
            return _refused(415, "Only JSON is taken.")
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return _refused(413, "The request is too large.")
        return None

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server, on whatever port: a tunnel may have another one."""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        name = (name if name and (port.isdigit() or not port) else host).lower()
        bare = name.removeprefix("[").removesuffix("]")
        if name in self.names or bare in self.names:
            return True
        try:
            return ipaddress.ip_address(bare).is_loopback or self.addresses
        except ValueError:
            return False


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _body(receive: Any) -> bytes | None:
    """The body of a request; None if it is too large, whatever its header says."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        if not message.get("more_body"):
            return body


def _replay(body: bytes) -> Any:
    sent = False

    async def receive() -> Any:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
