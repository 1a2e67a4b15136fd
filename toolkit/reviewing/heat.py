"""Heat maps that batch-caption has made: those of a gallery page, by image."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from toolkit.errors import InputError
from toolkit.reports.pictures import LINKED_NAME
from toolkit.runtime.overwrite import is_page

PNG = "data:image/png;base64,"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Heat:
    """The heat maps of a page; none without one.

    Attributes:
        words: by number of the picture, what the page needs to draw them: {"caption", "words", "grid", "box"}.

    Raises:
        InputError: no such page, or it has no heat maps of these images.
    """

    def __init__(self, page: Path | None, numbers: Mapping[str, int]) -> None:
        self.words: dict[int, dict[str, Any]] = {}
        self._page, self._places, self._folder = page, dict[int, tuple[int, int] | str](), ""
        if page is None:
            return
        if not page.is_file() or not is_page("gallery")(page):
            raise InputError(
                f"--gallery {page}: is not a gallery; name a page that `toolkit batch-caption --gallery --attention` wrote."
            )
        self._read(page, numbers)
        if not self.words:
            raise InputError(
                f"--gallery {page}: has no heat maps of these images; make it with --attention, from the same images."
            )

    def _read(self, page: Path, numbers: Mapping[str, int]) -> None:
        """One card after another: with their images they are megabytes."""
        with open(page, "rb") as file:
            at = 0
            for line in file:
                start, at = at, at + len(line)
                if b'id="folder"' in line:
                    self._folder = unquote(json.loads(line.partition(b">")[2].partition(b"<")[0]))
                if not line.startswith(b'{"name":'):
                    continue
                card = json.loads(line.rstrip().rstrip(b","))
                number = numbers.get(card["name"])
                if number is None or "heat" not in card:
                    continue
                heat = card["heat"]
                picture = heat.pop("image")
                self.words[number] = {"caption": card.get("caption"), **heat}
                self._places[number] = (start, len(line)) if picture.startswith(PNG) else picture

    def png(self, number: int) -> bytes | None:
        """The maps of a picture, one below the other; None if there are none any more."""
        place = self._places.get(number)
        if place is None or self._page is None:
            return None
        try:
            if isinstance(place, tuple):
                with open(self._page, "rb") as file:
                    file.seek(place[0])
                    card = json.loads(file.read(place[1]).rstrip().rstrip(b","))
                data = base64.b64decode(card["heat"]["image"].removeprefix(PNG))
            elif LINKED_NAME.fullmatch(place) and "/" not in self._folder.rstrip("/"):
                data = (self._page.parent / self._folder / place).read_bytes()
            else:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return data if data.startswith(SIGNATURE) else None
