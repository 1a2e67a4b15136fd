"""A folder of 200 images that nobody should have to open, among 12 good ones: damaged files, bombs, a FIFO, a device, a
socket, a folder, links to nowhere, a sparse file of 1 TiB, names of files that are not there.

`conftest.hostile_dir` is one, made once a session, to be read only. `within` ends whatever hangs on it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
from preprocessing import picture

LIMIT = 60  # seconds that a command may take on it

GOOD = [f"{i:03d}.{'png' if i % 3 else 'jpg'}" for i in range(12)]

# Names without a file; a folder does not have them, an annotation file may.
NAMED_ONLY = ["gone.jpg", "x" * 300 + ".jpg", "../outside.jpg", "nul\0.jpg"]

# Why an image of it can't be read, where the reason does not depend on who asks.
REASONS = {
    "bomb.png": "too large: 60000x60000 pixels",
    "line.png": "too large: 2147483647x1 pixels",
    "zero.jpg": "empty file",
    "text.jpg": "not an image",
    "page.png": "not an image",
    "archive.jpg": "not an image",
    "sparse.jpg": "too large: a file of 1099511627776 bytes",
    "dangling.jpg": "dangling link",
    "device.jpg": "not a regular file",
    "folder.jpg": "not a regular file",
    "fifo.jpg": "not a regular file",
    "socket.jpg": "not a regular file",
}
# The same for names that only annotations have, or that no folder's listing takes for an image.
REASONS_OF_NAMES = {
    "script.eps": "not an image",
    "gone.jpg": "missing",
    "../outside.jpg": "leads outside the images folder",
}


def make(folder: Path) -> list[str]:
    """Writes `captions.txt` and `Images/`; returns the 200 names that are not good ones."""
    images = folder / "Images"
    images.mkdir(parents=True)
    for number, name in enumerate(GOOD):
        picture(number).save(images / name)
    names = fill(images)
    with open(folder / "captions.txt", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "caption"))
        for name in [*GOOD, *names]:
            rows.writerows([(name, f"a picture called {name}"), (name, "waves, and colours .")])
    return names


def fill(images: Path) -> list[str]:
    """Writes what lies in the folder of images; returns the names of the 200, those without a file among them."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(180):
        suffix, format = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("gif", "GIF"), ("tif", "TIFF")][
            number % 5
        ]
        buffer = io.BytesIO()
        picture(number).save(buffer, format)
        content = bytearray(buffer.getvalue())
        for at in rng.integers(0, len(content), 1 + number // 10):
            content[at] = rng.integers(256)
        if number % 3 == 0:
            content = content[: int(rng.integers(len(content)))]
        names.append(f"fuzzed{number}.{suffix}")
        (images / names[-1]).write_bytes(content)
    files = {
        "bomb.png": _png(60000, 60000),
        "line.png": _png(2**31 - 1, 1),
        "zero.jpg": b"",
        "text.jpg": b"image,caption\n",
        "page.png": b"<!DOCTYPE html><html></html>",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "archive.jpg": b"PK\3\4" + bytes(40),
    }
    for name, content in files.items():
        (images / name).write_bytes(content)
    with open(images / "sparse.jpg", "wb") as file:
        file.truncate(2**40)
    (images / "dangling.jpg").symlink_to("nowhere.jpg")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "device.jpg").symlink_to("/dev/zero")
    (images / "folder.jpg").mkdir()
    (images / "shut.jpg").write_bytes(b"x")
    (images / "shut.jpg").chmod(0)
    os.mkfifo(images / "fifo.jpg")
    here = os.getcwd()
    os.chdir(images)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket.jpg")
    finally:
        os.chdir(here)
    special = [f"{n}.jpg" for n in ("sparse", "dangling", "loop", "device", "folder", "shut", "fifo", "socket")]
    return [*names, *files, *special, *NAMED_ONLY]


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


class StillRunning(BaseException):
    """No Exception, let alone the OSError that TimeoutError is: commands take those for an image's."""


@contextlib.contextmanager
def within(seconds: float = LIMIT) -> Iterator[None]:
    """Ends what hangs: StillRunning in the main thread, also while it waits for a file, a thread or a process."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StillRunning(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
