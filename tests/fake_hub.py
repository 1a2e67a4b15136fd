"""As much of the Hugging Face hub as huggingface_hub and datasets ask for when something is pushed and read back: on this
machine, in memory. It checks tokens and rights as the hub does, keeps large files by content, and fails where it is told to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKENS = {"hf_writes": ("me", "write"), "hf_reads": ("me", "read"), "hf_fine": ("me", "fineGrained")}
LARGE = re.compile(r"\.(safetensors|arrow|bin|parquet)$")
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")


class Repo:
    def __init__(self, private: bool) -> None:
        self.private = private
        self.files: dict[str, bytes] = {".gitattributes": b"*.arrow filter=lfs\n"}
        self.large: set[str] = set()
        self.commits: list[list[str]] = []

    @property
    def head(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}{sorted(self.files)}".encode()).hexdigest()


class FakeHub:
    """Attributes:
    repos: by "models/owner/name" or "datasets/owner/name".
    stored: large files by their sha256, whether a commit has them or not.
    sent: sha256 of each large file that was sent, in order.
    fails: (pattern of "METHOD /path", status, how many times) that is answered with a failure.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.fails: list[list[Any]] = []
        self.asked: list[str] = []
        self.address = ""

    def fail(self, pattern: str, status: int, times: int = 1000) -> None:
        self.fails.append([re.compile(pattern), status, times])

    def failure(self, request: str) -> int | None:
        for entry in self.fails:
            if entry[2] > 0 and entry[0].search(request):
                entry[2] -= 1
                return int(entry[1])
        return None


class Answer(Exception):
    def __init__(self, status: int, value: Any = None, **headers: str) -> None:
        self.status, self.value, self.headers = status, value, headers


def handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = unquote(urlsplit(self.path).path)
            request = f"{self.command} {path}"
            hub.asked.append(request)
            try:
                if (status := hub.failure(request)) is not None:
                    if status == 0:  # the line goes dead
                        self.close_connection = True
                        self.connection.close()
                        return
                    raise Answer(status, {"error": "as told"})
                raise Answer(200, self.route(path, body))
            except Answer as found:
                self.reply(found)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def reply(self, found: Answer) -> None:
            value = found.value
            data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
            self.send_response(found.status)
            for name, text in found.headers.items():
                self.send_header(name.replace("_", "-"), text)
            start, stop, whole = 0, len(data), len(data)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD" and whole:
                self.wfile.write(data)

        def user(self) -> tuple[str, str]:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in TOKENS:
                raise Answer(401, {"error": "Invalid credentials in Authorization header"})
            return TOKENS[token]

        def repo(self, kind: str, name: str, writing: bool = False) -> Repo:
            found = hub.repos.get(f"{kind}/{name}")
            if found is None:
                raise Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if writing:
                user, role = self.user()
                if role == "read" or not name.startswith(f"{user}/"):
                    raise Answer(403, {"error": "Forbidden"})
            return found

        def route(self, path: str, body: bytes) -> Any:
            if path == "/api/whoami-v2":
                name, role = self.user()
                return {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": {"role": role}}}
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path == "/api/validate-yaml":
                return self.validate(json.loads(body)["content"])
            if match := re.fullmatch(r"/lfs/(\w+)", path):
                assert hashlib.sha256(body).hexdigest() == match[1]
                hub.stored[match[1]] = body
                hub.sent.append(match[1])
                return None
            if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
                self.repo("datasets" if match[1] else "models", match[2], writing=True)
                return self.batch(json.loads(body))
            if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/[\w%.-]+/(.+)", path):
                return self.resolve(self.repo("datasets" if match[1] else "models", match[2]), match[3])
            if match := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(.+))?", path):
                return self.api(match[1], match[2], match[3] or "", body)
            raise Answer(404, {"error": f"no {path}"}, X_Error_Code="EntryNotFound")

        def create(self, given: dict[str, Any]) -> Any:
            user, role = self.user()
            owner = given.get("organization") or user
            if role == "read" or owner != user:
                raise Answer(403, {"error": "You don't have the rights to create a repo there"})
            kind, name = f"{given.get('type') or 'model'}s", f"{owner}/{given['name']}"
            url = f"{hub.address}/{'datasets/' if kind == 'datasets' else ''}{name}"
            if f"{kind}/{name}" in hub.repos:
                raise Answer(409, {"error": "You already created this repo", "url": url})
            hub.repos[f"{kind}/{name}"] = Repo(given.get("visibility") == "private" or given.get("private") is True)
            return {"url": url}

        def validate(self, content: str) -> Any:
            licence = re.search(r"(?m)^license: (.+)$", content)
            if licence and licence[1] not in LICENSES:
                text = f'"license" must be one of {", ".join(LICENSES)}'
                raise Answer(400, {"errors": [{"message": text}]} if "json" in str(self.headers) else text.encode())
            return {"errors": [], "warnings": []}

        def batch(self, asked: dict[str, Any]) -> Any:
            objects = []
            for each in asked["objects"]:
                there = each["oid"] in hub.stored
                action = {"upload": {"href": f"{hub.address}/lfs/{each['oid']}", "header": {}}}
                objects.append({**each, **({} if there else {"actions": action})})
            return {"transfer": "basic", "objects": objects}

        def resolve(self, repo: Repo, name: str) -> Any:
            if name not in repo.files:
                raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            data = repo.files[name]
            raise Answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=repo.head)

        def api(self, kind: str, name: str, rest: str, body: bytes) -> Any:
            repo = self.repo(kind, name, writing=rest.startswith(("preupload", "commit")))
            if rest.startswith("preupload/"):
                return {"files": [self.mode(repo, file["path"]) for file in json.loads(body)["files"]]}
            if rest.startswith("commit/"):
                return self.commit(repo, name, [json.loads(line) for line in body.splitlines()])
            if rest.startswith("tree/"):
                below = rest.split("/", 2)[2] + "/" if rest.count("/") > 1 else ""
                recursive = "recursive=true" in self.path.lower()
                return entries(repo, below, recursive)
            if rest.startswith("paths-info/"):
                form = unquote(body.decode())
                wanted = json.loads(body)["paths"] if body[:1] == b"{" else re.findall(r"paths=([^&]*)", form)
                files = {each["path"]: each for each in entries(repo, "", True)}
                return [files[path] for path in wanted if path in files]
            files = [{"rfilename": path} for path in sorted(repo.files)]
            more = {
                "siblings": files,
                "sha": repo.head,
                "private": repo.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            return {"id": name, "_id": "0", **more}

        def mode(self, repo: Repo, path: str) -> Any:
            oid = git_hash(repo.files[path]) if path in repo.files and path not in repo.large else None
            return {
                "path": path,
                "uploadMode": "lfs" if LARGE.search(path) else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }

        def commit(self, repo: Repo, name: str, lines: list[dict[str, Any]]) -> Any:
            parent = lines[0]["value"].get("parentCommit")
            if parent is not None and parent != repo.head:
                raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo.files[value["path"]] = hub.stored[value["oid"]]  # which must have arrived
                    repo.large.add(value["path"])
                else:
                    del repo.files[value["path"]]
            repo.commits.append([line["value"]["path"] for line in lines[1:]])
            return {"success": True, "commitOid": repo.head, "commitUrl": f"{hub.address}/{name}/commit/{repo.head}"}

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entries(repo: Repo, below: str, recursive: bool) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, data in sorted(repo.files.items()):
        if not path.startswith(below):
            continue
        folders = path[len(below) :].split("/")[:-1]
        for depth in range(1, len(folders) + 1 if recursive else min(len(folders), 1) + 1):
            folder = below + "/".join(folders[:depth])
            found[folder] = {"type": "directory", "path": folder, "oid": git_hash(folder.encode()), "size": 0}
        if recursive or not folders:
            large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            found[path] = {"type": "file", "path": path, "oid": git_hash(data), "size": len(data)} | (
                {"lfs": large} if path in repo.large else {}
            )
    return list(found.values())


@contextmanager
def running(patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that everything in this process asks instead of the real one, with a token that may write."""
    from huggingface_hub import constants, hf_api

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"

    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(hf_api.api, "endpoint", hub.address)
    patch.setattr("huggingface_hub.utils._http._DEFAULT_RETRY_ON_STATUS_CODES", (), raising=False)
    patch.setenv("HF_TOKEN", "hf_writes")
    try:
        yield hub
    finally:
        server.shutdown()
