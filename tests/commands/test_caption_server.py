"""batch-caption --endpoint, against a server that fails in every way there is: no row is lost, and none is written twice."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_caption_kills import stored
from waiting import wait_for

from toolkit.captioning import server
from toolkit.commands.batch_caption import batch_caption
from toolkit.errors import InputError, RunError, ToolkitError
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary

PROMPT = "Say what {name} is."
FAILURES = ("busy", "error", "gateway", "hang", "close", "cut", "garbage", "empty")


class Fake:
    """What the server does, and what it has seen.

    Attributes:
        rates: how often each failure of FAILURES comes.
        answered: how often each prompt had a whole answer.
        bodies: the requests; `headers` those of the last one.
    """

    def __init__(self, rate: float = 0.0, seed: int = 1) -> None:
        self.rate, self.rng, self.lock = rate, random.Random(seed), threading.Lock()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: Any = None
        self.status: tuple[int, str] | None = None  # of every answer
        self.keep_bodies, self.delay, self.url = True, 0.0, ""
        self.choices: list[dict[str, Any]] | None = None


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
            at = fake.rng.random()
            how = FAILURES[int(at / fake.rate)] if fake.rate and at < fake.rate * len(FAILURES) else ""
            fake.failed[how] += 1
            fake.headers = self.headers
            fake.bodies += [body] if fake.keep_bodies else []
        try:
            self._answer(body, how)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was killed, or has not waited
        finally:
            with fake.lock:
                fake.at_once -= 1

    def _answer(self, body: dict[str, Any], how: str) -> None:
        fake, text = self.fake, body["messages"][-1]["content"][-1]["text"]
        time.sleep(fake.delay)
        if fake.status is not None:
            return self._send(fake.status[0], {"error": {"message": fake.status[1]}})
        if how in ("busy", "error", "gateway"):
            code = {"busy": 429, "error": 500, "gateway": 503}[how]
            return self._send(code, {"error": "not now"}, {"Retry-After": "0.02"} if how == "busy" else {})
        if how == "hang":
            time.sleep(0.8)
            return None
        if how == "close":
            self.close_connection = True
            return None
        if how == "garbage":
            return self._raw(200, b"<html>bad gateway</html>")
        if how == "empty":
            return self._send(200, {"choices": []})
        number = body.get("n", 1)
        choices = fake.choices or [
            {
                "index": i,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"Assistant: [{text}] {i}"},
            }
            for i in range(number)
        ]
        data = json.dumps({"choices": choices}).encode()
        if how == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        self._raw(200, data)
        with fake.lock:
            fake.answered[text] += 1
        return None

    def _send(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._raw(code, json.dumps(value).encode(), headers)

    def _raw(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Listening(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    served = Listening(("127.0.0.1", 0), type("Handler", (Handler,), {"fake": fake}))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    fake.url = f"http://127.0.0.1:{served.server_port}/v1"
    try:
        yield fake
    finally:
        served.shutdown()
        served.server_close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.05)
    monkeypatch.delenv("TOOLKIT_API_KEY", raising=False)


def draw(folder: Path, number: int, bad: bool = True) -> Path:
    """Images of one colour each, all different, and one that is none."""
    folder.mkdir()
    for i in range(number):
        Image.new("RGB", (12, 8), (i % 256, i // 256, 77)).save(folder / f"{i:05d}.png")
    if bad:
        (folder / "bad.png").write_text("no picture")
    return folder


def run(fake: Fake | str, folder: Path | str, output: Path, **more: Any) -> Summary:
    url = fake if isinstance(fake, str) else fake.url
    given = {"paths": (str(folder),), "model": "some/vlm:7b", "endpoint": url, "prompt": PROMPT, "output": output}
    return batch_caption(from_flat(BatchCaptionOptions, {**given, "requests": 4, "request_timeout": 0.5, **more}))


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    lines = output.read_text(encoding="utf-8").splitlines()
    rows = {(row := json.loads(line))["image"]: row for line in lines}
    assert len(rows) == len(lines)
    return rows


def test_what_is_asked_and_what_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw(tmp_path / "in", 3)
    large = Image.effect_mandelbrot((400, 200), (-3, -2.5, 2, 2.5), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    large.save(folder / "large.jpg", exif=exif)
    (folder / "copy.png").write_bytes((folder / "00001.png").read_bytes())
    monkeypatch.setenv("TOOLKIT_API_KEY", "sk-secret-9")
    with serving(Fake()) as fake:
        more = {"system_prompt": "Be short.", "max_new_tokens": 40, "max_image_size": 100, "prompt": "What is this?"}
        summary = run(fake, folder, tmp_path / "out.jsonl", **more)
        said = capsys.readouterr().err
        assert summary.exit_code == 3
        rows = rows_of(tmp_path / "out.jsonl")
        assert rows["bad.png"]["error"] == "not an image"
        assert rows["00001.png"] == {
            "image": "00001.png", "caption": "[What is this?] 0", "score": None, "ended": True, "error": None, "width": 12,
            "height": 8,
        }  # fmt: skip
        assert (rows["large.jpg"]["width"], rows["large.jpg"]["height"]) == (200, 400)
        assert len(fake.bodies) == 4  # a copy is asked about once, and what is no image never
        assert fake.headers["Authorization"] == "Bearer sk-secret-9"
        pictures = []
        for body in fake.bodies:
            assert {k: v for k, v in body.items() if k != "messages"} == {
                "model": "some/vlm:7b", "max_tokens": 40, "temperature": 0.0,
            }  # fmt: skip
            system, user = body["messages"]
            assert system == {"role": "system", "content": "Be short."}
            head, _, data = user["content"][0]["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        assert sorted(picture.size for picture in pictures) == [(12, 8)] * 3 + [(50, 100)]  # upright, and smaller
        assert f"6 images are sent to {fake.url} (on this machine), to the model some/vlm:7b" in said
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or b"secret" not in path.read_bytes()
        assert "secret" not in said + summary.text + json.dumps(summary.values)
        # what is known is not asked again, wherever the server is; other settings, sizes and models are
        assert run(fake, folder, tmp_path / "out.jsonl", **more).values["new"] == 0
        for other in ({"max_new_tokens": 41}, {"max_image_size": 99}, {"model": "other"}, {"prompt": "Who?"}):
            assert run(fake, folder, tmp_path / "out.jsonl", **{**more, **other}, dry_run=True).values["new"] == 6
        assert len(fake.bodies) == 4
    assert "they leave this machine" in server.Server("https://example.org/v1", "m").sentence(3)


def test_several_captions_raw_answers_and_length(tmp_path: Path) -> None:
    folder = draw(tmp_path / "in", 1, bad=False)
    with serving(Fake()) as fake:
        fake.choices = [
            {"index": 1, "finish_reason": "stop", "message": {"content": "B"}},
            {"index": 0, "finish_reason": "length", "message": {"content": "<think>hm</think> A dog"}},
        ]
        run(fake, folder, tmp_path / "out.jsonl", sample=True, num_captions=2, seed=3, top_p=0.9, keep_raw=True)
        (row,) = rows_of(tmp_path / "out.jsonl").values()
        assert (row["captions"], row["caption"], row["ended"]) == (["A dog", "B"], "A dog", False)
        (kept,) = stored(tmp_path / "out.jsonl.state").values()
        assert json.loads(kept)["raw"] == ["<think>hm</think> A dog", "B"]
        body = fake.bodies[0]
        assert [body[k] for k in ("n", "seed", "top_p", "temperature", "max_tokens")] == [2, 3, 0.9, 1.0, 256]


def fail_and_kill(tmp_path: Path, images: int, kills: int, requests: int) -> None:
    """A server with 5 % of each failure, runs that are killed, and in the end every image exactly once."""
    folder, output = draw(tmp_path / "in", images), tmp_path / "out.jsonl"
    code = (
        "import sys; from toolkit import cli; from toolkit.captioning import server\n"
        "server.FIRST_WAIT, server.LONGEST_WAIT = 0.01, 0.05; cli.main()"
    )
    with serving(Fake(rate=0.05)) as fake:
        fake.keep_bodies, fake.delay = False, 0.01
        command = [
            sys.executable,
            "-c",
            code,
            "batch-caption",
            str(folder),
            "--endpoint",
            fake.url,
            "--model",
            "some/vlm:7b",
        ]
        command += [
            "--prompt",
            PROMPT,
            "--output",
            str(output),
            "--requests",
            str(requests),
            "--request-timeout",
            "0.5",
        ]
        for number in range(kills):
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            moment = images * (number + 1) // (kills + 2)
            wait_for(lambda wanted=moment: len(stored(Path(f"{output}.state"))) >= wanted, process, seconds=240)
            process.kill()
            process.wait()
        before = len(stored(Path(f"{output}.state")))
        for _ in range(3):  # an image whose seven tries all failed is tried again by the next run
            summary = run(fake, folder, output, requests=requests)
            if summary.values["errors"] == 1:
                break
        assert before >= images * kills // (kills + 2)
    rows = rows_of(output)
    assert set(rows) == {*(f"{i:05d}.png" for i in range(images)), "bad.png"}
    for i in range(images):
        assert rows[f"{i:05d}.png"]["caption"] == f"[Say what {i:05d} is.] 0"
    assert summary.values["errors"] == 1
    # what is asked again is what was under way when a run was killed, and no more
    assert sum(fake.answered.values()) <= images + 2 * requests * kills
    assert set(fake.failed) == {*FAILURES, ""}
    assert fake.most_at_once > 1


def test_failures_and_a_kill(tmp_path: Path) -> None:
    fail_and_kill(tmp_path, images=60, kills=1, requests=16)


@pytest.mark.slow
def test_five_thousand_requests_and_five_kills(tmp_path: Path) -> None:
    fail_and_kill(tmp_path, images=5000, kills=5, requests=16)


def test_a_server_that_goes(tmp_path: Path) -> None:
    """One sentence, and what was captioned until then is kept."""
    folder, output = draw(tmp_path / "in", 20, bad=False), tmp_path / "out.jsonl"
    with serving(Fake()) as fake:
        run(fake, folder, output, limit=7)
    with pytest.raises(RunError) as error:
        run(fake, folder, output, retries=2)
    told = str(error.value)
    assert told.startswith(f"--endpoint {fake.url}: connection refused, after 3 tries; what was captioned is kept")
    assert len(stored(Path(f"{output}.state"))) == 7
    assert len(rows_of(output)) == 7
    with serving(Fake()) as fake:
        assert run(fake, folder, output).values["new"] == 13
    assert len(rows_of(output)) == 20


@pytest.mark.parametrize(
    ("status", "sentence", "most"),
    [
        ((401, "no such key sk-secret-9"), "status 401 (no such key ***); set TOOLKIT_API_KEY", 8),
        (
            (404, "no model"),
            "status 404 (no model); check the URL, which usually ends in /v1, and --model some/vlm:7b",
            8,
        ),
        ((302, ""), "status 302, another address", 8),
        ((400, "no images please"), "status 400 (no images please)", 16),
        ((503, "loading"), "status 503 (loading), after 2 tries", 32),
    ],
)
def test_a_server_that_refuses_everything(
    status: tuple[int, str], sentence: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_API_KEY", "sk-secret-9")
    with serving(Fake()) as fake:
        fake.status = status
        with pytest.raises(RunError) as error:
            run(fake, draw(tmp_path / "in", 40, bad=False), tmp_path / "out.jsonl", retries=1)
        assert sentence in str(error.value)
        assert "secret" not in str(error.value)
        assert len(fake.bodies) <= most
        assert not (tmp_path / "out.jsonl").exists()


def test_an_image_that_is_refused_is_a_row(tmp_path: Path) -> None:
    folder = draw(tmp_path / "in", 1, bad=False)
    with serving(Fake()) as fake:
        fake.status = (413, "too large")
        summary = run(fake, folder, tmp_path / "out.jsonl")
        assert (summary.exit_code, len(fake.bodies)) == (3, 1)
        assert rows_of(tmp_path / "out.jsonl")["00000.png"]["error"] == "the server answers with status 413 (too large)"
        fake.status = None
        assert run(fake, folder, tmp_path / "out.jsonl").values["errors"] == 0


def test_retry_after() -> None:
    now = time.time()
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 30))
    assert server._retry_after("7") == 7
    assert 25 < server._retry_after(soon) <= 30
    assert [server._retry_after(value) for value in (None, "", "soon", "-3", "nan")] == [0, 0, 0, 0, 0]
    assert server._retry_after("99999") == server.LONGEST_ASKED


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"prompt": None}, "--prompt: a server has to be told what to do"),
        ({"endpoint": "localhost:8000"}, "must be a URL such as http://localhost:8000/v1"),
        ({"endpoint": "http://me:sk-secret-9@host/v1"}, "put the key into TOOLKIT_API_KEY instead"),
        ({"model": "model"}, "--model model: name the model that the server is to use"),
        ({"num_beams": 4}, "--num-beams 4: is not in the interface that servers share"),
        ({"num_captions": 2}, "--num-captions 2: a server gives the likeliest caption each time; add --sample"),
        ({"precision": "bf16"}, "--precision bf16: has no effect with --endpoint"),
        ({"min_score": -1.0}, "--min-score -1.0: has no effect with --endpoint"),
        ({"requests": 0}, "--requests 0: must be at least 1"),
        ({"request_timeout": 0}, "--request-timeout 0"),
    ],
)
def test_mistakes(more: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = draw(tmp_path / "in", 1)
    with pytest.raises(ToolkitError) as error:
        run("http://127.0.0.1:9/v1", folder, tmp_path / "out.jsonl", **more)
    assert sentence in str(error.value)
    assert "secret" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_options_of_a_server_without_one() -> None:
    with pytest.raises(InputError, match=r"--requests 4: only applies with --endpoint"):
        BatchCaptionOptions(paths=("x",), requests=4)


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_API_KEY", "a\nb")
    with pytest.raises(InputError, match="TOOLKIT_API_KEY: the key has characters"):
        server.Server("http://x/v1", "m")
