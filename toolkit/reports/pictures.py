"""The images of a gallery: coloured heat maps, and the folder of thumbnails beside a large page."""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.runtime.files import finishing
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.overwrite import is_page

MARK = ".toolkit-gallery"  # a file that marks a folder as written by the toolkit
LINKED_NAME = re.compile(
    r"[0-9a-f]{2}/[0-9a-f]{30}\.(jpg|png)"
)  # files that the gallery writes below FILE_files and may remove there
# From dark and opaque to bright and clear: red, green, blue, alpha.
COLOURS = np.array([(8, 10, 40, 185), (50, 25, 110, 140), (190, 45, 90, 100), (250, 140, 30, 75), (255, 225, 90, 60)])
LEVELS = 64  # more can't be told apart, and a palette of 256 would be half of the file


def heat_png(maps: np.ndarray) -> bytes:
    """uint8 (n, rows, columns) -> a coloured PNG with the maps stacked vertically.

    Already coloured, because a page opened from a file may draw an image beside it but not read its pixels.
    """
    places = np.linspace(0, len(COLOURS) - 1, LEVELS)
    palette = np.stack([np.interp(places, range(len(COLOURS)), band).round() for band in COLOURS.T], axis=1)
    image = Image.fromarray(maps.reshape(-1, maps.shape[2]) // (256 // LEVELS))
    image.putpalette(palette[:, :3].astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=palette[:, 3].astype(np.uint8).tobytes())
    return buffer.getvalue()


class Linked:
    """The folder FILE_files beside a page: images named by a hash of their content, each finished by rename."""

    def __init__(self, page: Path) -> None:
        self.root = page.with_name(page.stem + "_files")
        self.used: set[str] = set()
        self.ours = self._is_ours(page)

    def _is_ours(self, page: Path) -> bool:
        """Whether the folder may be written: it is new, has the mark, or is beside a gallery and holds only gallery images.
        (A browser that saves a page creates a folder of the same name.)"""
        if not os.path.lexists(self.root):
            return True
        if self.root.is_symlink() or not self.root.is_dir():
            return False
        if (self.root / MARK).is_file():
            return True
        files = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if not path.is_dir())
        return page.is_file() and is_page("gallery")(page) and all(LINKED_NAME.fullmatch(name) for name in files)

    def name(self, suffix: str, *key: object) -> tuple[str, bool]:
        """The name of an image, and whether it exists already."""
        digest = hash_hex(repr(key))
        name = f"{digest[:2]}/{digest[2:]}{suffix}"
        self.used.add(name)
        return name, (self.root / name).exists()

    def write(self, name: str, data: bytes) -> str:
        path = self.root / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            (self.root / MARK).touch()
        with finishing(path, lasting=False) as temporary:
            temporary.write_bytes(data)
        return name

    def tidy(self) -> None:
        """Removes images of an earlier page that this one does not show."""
        if not self.ours:
            return
        for folder in self.root.glob("[0-9a-f][0-9a-f]"):
            for path in folder.iterdir():
                name = path.relative_to(self.root).as_posix()
                if name not in self.used and LINKED_NAME.fullmatch(name.removesuffix(".tmp")):
                    path.unlink()
            _remove_if_empty(folder)
        if [path.name for path in self.root.glob("*")] == [MARK]:
            (self.root / MARK).unlink()
            _remove_if_empty(self.root)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or missing
        folder.rmdir()
