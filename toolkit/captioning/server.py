"""A server that captions: the OpenAI-compatible chat interface, as vLLM, llama.cpp and Ollama serve it.

    image -> smaller JPEG -> POST {endpoint}/chat/completions, with retries -> caption

In: images and what is asked about them. Out: the rows of `caption_images`. Start with `ask_images`. HTTP is the standard
library's, a request a thread.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import http.client
import io
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from transformers import GenerationConfig

from toolkit.captioning.journal import Fingerprint, Journal
from toolkit.captioning.pipeline import Captioned, key_of
from toolkit.captioning.prompts import Asked, Earlier, Prompts, caption_of
from toolkit.captioning.settings import Setting, Settings
from toolkit.data.images import PASSING, read_image
from toolkit.data.sources import FoundImage
from toolkit.errors import ImageError, InputError, RunError, UnusedOption
from toolkit.options import BatchCaptionOptions, GenerationOptions, PromptOptions
from toolkit.options.batch_caption import API_KEY
from toolkit.records import CaptionResult
from toolkit.runtime.ahead import in_threads
from toolkit.runtime.hashing import hash_hex

VERSION = "server-1"  # of how images are sent and answers are read
QUALITY = 95  # of the JPEG that is sent
MAX_TOKENS = 256  # where --max-new-tokens says nothing: a caption, and some thinking before it
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the first retry, which double
LONGEST_ASKED = 600.0  # seconds that a server's Retry-After may ask for
SENT = ("max_new_tokens", "sample", "temperature", "top_p", "num_captions", "seed")  # options that a server understands


class Refused(Exception):
    """The server won't answer about this image; `final` where no other image would fare better."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address is not where the user has sent the images and the key to."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class Server:
    """A model behind an endpoint; threads may share it.

    Attributes:
        endpoint: the URL that /chat/completions is below.
        failed: images in a row that no answer was had for, since the last answer.
        gone: why the run has to end, once that is known.
    """

    endpoint: str
    model: str
    timeout: float = 120.0
    retries: int = 6
    max_image_size: int = 1024
    requests: int = 8
    failed: int = 0
    gone: str | None = None
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._key = os.environ.get(API_KEY, "").strip()
        if not self._key.isascii() or any(not 32 < ord(c) < 127 for c in self._key):
            raise InputError(f"{API_KEY}: the key has characters that no key has; set it again.")
        self._opener = urllib.request.build_opener(_NoRedirect)

    @classmethod
    def of(cls, options: BatchCaptionOptions) -> Server:
        """
        Raises:
            InputError: a setting of decoding that a server does not take.
        """
        check_sent(options.generation)
        return cls(
            (options.endpoint or "").rstrip("/"), options.model, options.request_timeout, options.retries,
            options.max_image_size, options.requests,
        )  # fmt: skip

    # ---- as a captioner -------------------------------------------------------------------------------------------------

    def prompts(self, options: PromptOptions, seed: int, earlier: Earlier | None = None) -> Prompts:
        """
        Raises:
            InputError: there is no prompt; or as `Prompts.of`.
        """
        prompts = Prompts.of(options, seed, earlier)
        if prompts is None:
            raise InputError(
                "--prompt: a server has to be told what to do; add --prompt 'Describe the image in one sentence.', say."
            )
        return prompts

    def settings(self, options: GenerationOptions) -> Settings:
        """What is asked for with each image."""
        sent = self._sent(options)
        config = GenerationConfig(do_sample=bool(options.sample), num_return_sequences=sent.get("n", 1))
        given = {
            "max_tokens": options.max_new_tokens, "temperature": options.temperature if options.sample else None,
            "top_p": options.top_p, "n": options.num_captions, "seed": options.sample,
        }  # fmt: skip
        told = {k: Setting(v, "default" if given.get(k) is None else "option") for k, v in sent.items()}
        return Settings(config, (), told)

    def fingerprint(self, options: GenerationOptions) -> Fingerprint:
        """All that decides a caption besides image and prompt, as far as it can be known; not where the server is."""
        parts = [self.model, self._sent(options), self.max_image_size, QUALITY]
        return Fingerprint(f"{VERSION}:{hash_hex(json.dumps(parts, sort_keys=True))}", "")

    def sentence(self, images: int) -> str:
        """What is said before the first request."""
        host = urlsplit(self.endpoint).hostname or ""
        here = host == "localhost" or host.startswith("127.") or host == "::1"
        leave = "on this machine" if here else "they leave this machine"
        return f"{images} images are sent to {self.endpoint} ({leave}), to the model {self.model}"

    def _sent(self, options: GenerationOptions) -> dict[str, Any]:
        """The settings of a request; without --sample the likeliest tokens."""
        sent: dict[str, Any] = {"max_tokens": options.max_new_tokens or MAX_TOKENS}
        if options.sample:
            sent |= {"temperature": 1.0 if options.temperature is None else options.temperature, "seed": options.seed}
            sent |= {} if options.top_p is None else {"top_p": options.top_p}
        else:
            sent["temperature"] = 0.0
        return sent | ({"n": options.num_captions} if (options.num_captions or 1) > 1 else {})

    # ---- requests -------------------------------------------------------------------------------------------------------

    def body(self, image: Image.Image, asked: Asked, options: GenerationOptions) -> bytes:
        """The request about an RGB image."""
        small = image
        if max(image.size) > self.max_image_size:
            small = image.copy()
            small.thumbnail((self.max_image_size, self.max_image_size), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": asked.text}]
        system = [] if asked.system is None else [{"role": "system", "content": asked.system}]
        messages = [*system, {"role": "user", "content": content}]
        return json.dumps({"model": self.model, "messages": messages, **self._sent(options)}).encode()

    def ask(self, body: bytes) -> tuple[list[str], bool]:
        """(the answers, whether the first came to its end), after as many tries as it takes.

        Raises:
            Refused: there is no answer, and why.
        """
        reason, connected = "", True
        for attempt in range(self.retries + 1):
            if self.gone is not None:
                raise Refused(self.gone, final=True)
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                found = self._answers(self._post(body))
                with self._lock:
                    self.failed = 0
                return found
            except urllib.error.HTTPError as error:
                connected, told = True, self._told(error)
                reason = f"the server answers with status {error.code}{told}"
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise self._refused(error.code, reason) from None
                wait = max(wait, _retry_after(error.headers.get("Retry-After")))
            except (TimeoutError, http.client.HTTPException, ValueError) as error:
                connected = True
                reason = (
                    f"no answer within {self.timeout:g} seconds"
                    if isinstance(error, TimeoutError)
                    else "a broken answer"
                )
            except OSError as error:
                cause = getattr(error, "reason", error)
                connected = isinstance(cause, (ConnectionResetError, BrokenPipeError))
                reason = " ".join(str(getattr(cause, "strerror", None) or cause).lower().split())[:100]
            if attempt < self.retries:
                time.sleep(wait)
        raise self._given_up(f"{reason}, after {self.retries + 1} tries" if self.retries else reason, connected)

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "captioning-toolkit"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.endpoint}/chat/completions", body, headers, method="POST")
        with self._opener.open(request, timeout=self.timeout) as answer:
            return json.loads(answer.read())

    @staticmethod
    def _answers(found: Any) -> tuple[list[str], bool]:
        """
        Raises:
            ValueError: it is no answer of a chat.
        """
        try:
            choices = sorted(found["choices"], key=lambda choice: choice.get("index", 0))
            answers = [choice["message"]["content"] for choice in choices]
            ended = choices[0].get("finish_reason") in ("stop", None)
        except (KeyError, TypeError, IndexError, AttributeError):
            raise ValueError("no choices in it") from None
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("no text in it")
        return answers, ended

    def _told(self, error: urllib.error.HTTPError) -> str:
        """What the server says of it, as far as it fits into a sentence; never the key, which some repeat."""
        try:
            text = error.read(4096).decode("utf-8", "replace")
            found = json.loads(text)
            said = found.get("error", found) if isinstance(found, dict) else found
            text = said.get("message", "") if isinstance(said, dict) else str(said)
        except (OSError, ValueError, http.client.HTTPException):
            text = ""
        text = " ".join(str(text).split())[:120].rstrip(".")
        text = text.replace(self._key, "***") if self._key else text
        return f" ({text})" if text else ""

    def _refused(self, code: int, reason: str) -> Refused:
        if code in (401, 403):
            return self._end(f"{reason}; set {API_KEY} to a key that it accepts")
        if code == 404:
            return self._end(f"{reason}; check the URL, which usually ends in /v1, and --model {self.model}")
        if code < 400:
            return self._end(f"{reason}, another address; give that as the --endpoint")
        return self._given_up(reason, True)

    def _given_up(self, reason: str, connected: bool) -> Refused:
        """An image without an answer; the last one where the server is gone, or answers nothing any more."""
        with self._lock:
            self.failed += 1
            dead = not connected or self.failed >= max(8, 2 * self.requests)
        if dead:
            return self._end(reason)
        return Refused(reason)

    def _end(self, reason: str) -> Refused:
        with self._lock:
            self.gone = self.gone or reason
        return Refused(self.gone, final=True)


def check_sent(options: GenerationOptions) -> None:
    """
    Raises:
        UnusedOption: an option that a server does not take.
    """
    for name, value in vars(options).items():
        if name not in SENT and value is not None:
            raise UnusedOption(
                f"--{name.replace('_', '-')} {value}: is not in the interface that servers share; leave it out.", name
            )
    if (options.num_captions or 1) > 1 and not options.sample:
        raise InputError(
            f"--num-captions {options.num_captions}: a server gives the likeliest caption each time; add --sample."
        )


def _retry_after(value: str | None) -> float:
    """Seconds that a server asks to wait: a number of them, or a date."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value or "").timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED) if seconds == seconds else 0.0


# ---- images -----------------------------------------------------------------------------------------------------------


def ask_images(
    server: Server, images: Iterable[FoundImage], options: BatchCaptionOptions, journal: Journal, prompts: Prompts
) -> Iterator[list[Captioned]]:
    """Rows in the order of the images, one at a time; what was answered before the server went is among them.

    Raises:
        RunError: the server is gone, does not know the model or the key, or answers nothing any more.
    """
    asking: dict[str, Future[CaptionResult]] = {}  # by key, until it is in the journal: copies are asked about once
    lock = threading.Lock()

    def one(found: FoundImage) -> Captioned | None:
        return None if server.gone is not None else _one(server, found, options, journal, prompts, asking, lock)

    with closing(in_threads(one, images, server.requests, ahead=2 * server.requests)) as answers:
        for done in answers:
            if done is None:
                continue
            yield [done]
            if done.key:
                with lock:
                    asking.pop(done.key, None)
    if server.gone is not None:
        raise RunError(
            f"--endpoint {server.endpoint}: {server.gone}; what was captioned is kept, and the same command goes on."
        )


def _one(
    server: Server,
    found: FoundImage,
    options: BatchCaptionOptions,
    journal: Journal,
    prompts: Prompts,
    asking: dict[str, Future[CaptionResult]],
    lock: Any,
) -> Captioned | None:
    """None where the server is gone."""
    try:
        data, state = found.read()
    except ImageError as error:
        return Captioned(found, (-1, -1), None, False, CaptionResult(found.name, error=str(error)))
    content = hashlib.sha256(data).hexdigest()
    try:
        asked = prompts.of_image(found, content)
    except ImageError as error:
        return Captioned(found, state, None, False, CaptionResult(found.name, error=str(error)))
    key = key_of(content, asked)
    with lock:
        known, other = journal.result(key), asking.get(key)
        if known is None and other is None:
            mine = asking[key] = Future()
    try:
        if known is not None or other is not None:
            return Captioned(found, state, key, True, known or other.result())  # type: ignore[union-attr]
        try:
            mine.set_result(_asked(server, found, data, asked, options))
            return Captioned(found, state, key, False, mine.result())
        except BaseException as error:
            mine.set_exception(error)
            with lock:
                asking.pop(key)
            raise
    except ImageError as error:
        return Captioned(found, state, None, False, CaptionResult(found.name, error=str(error)))
    except Refused as error:
        return (
            None if error.final else Captioned(found, state, None, False, CaptionResult(found.name, error=str(error)))
        )


def _asked(server: Server, found: FoundImage, data: bytes, asked: Asked, options: BatchCaptionOptions) -> CaptionResult:
    """
    Raises:
        ImageError: a reason that passes; any other is a result, to be kept.
        Refused: there is no answer.
    """
    try:
        image = read_image(data)
    except ImageError as error:
        if str(error) in PASSING:
            raise
        return CaptionResult(found.name, error=str(error))
    answers, ended = server.ask(server.body(image, asked, options.generation))
    captions = tuple(map(caption_of, answers))
    return CaptionResult(
        image=found.name, caption=captions[0], captions=captions, ended=ended, width=image.width, height=image.height,
        raw=tuple(answers) if options.prompting.keep_raw else (),
    )  # fmt: skip
