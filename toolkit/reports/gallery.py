"""A page of images and their captions: one HTML file, or one with a folder of thumbnails beside it.

The page holds its cards as JSON, one line per card, and draws them while scrolling (templates/gallery.js). Captions and
file names are untrusted: they are ASCII JSON strings without a "<" in the page and text nodes on the screen, and the
page's Content-Security-Policy allows no other script and no requests.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from toolkit.data.sources import FoundImage
from toolkit.errors import ImageError, OutputError
from toolkit.options.fields import default_workers
from toolkit.records import CaptionResult, HeatMaps
from toolkit.reports.html import script_digest, template_source, thumbnail, write_page
from toolkit.reports.pictures import Linked, heat_png
from toolkit.runtime.ahead import in_threads
from toolkit.runtime.overwrite import Output, is_page
from toolkit.runtime.progress import Progress

EMBED_LIMIT = 1000  # images inside the page (10 MB); more are linked


class Explainer(Protocol):
    """Makes heat maps of attention (captioning/attention.py): images are prepared in threads, explained in batches."""

    def prepare(self, image: Image.Image) -> Any: ...

    def explain(self, prepared: Sequence[Any], captions: Sequence[str]) -> list[HeatMaps | None]: ...


@dataclass(frozen=True)
class Card:
    """One image of a gallery.

    Attributes:
        thumbnail: a JPEG, or its name below FILE_files; None if the image can't be shown.
        score: mean token log-probability in nats.
        ended: False if the caption reached the length limit; None if unknown.
        clip: CLIPScore of the caption, if known.
        verdict: whether the caption is right, if known.
        heat: HeatMaps, and their PNG as bytes or a name like `thumbnail`.
    """

    name: str
    thumbnail: bytes | str | None
    caption: str | None
    score: float | None = None
    captions: Sequence[str] = ()
    references: Sequence[str] = ()
    ended: bool | None = None
    clip: float | None = None
    verdict: bool | None = None
    error: str | None = None
    heat: tuple[HeatMaps, bytes | str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The card as the page stores it, without unknown values."""
        values: dict[str, Any] = {
            "name": self.name,
            "caption": self.caption,
            "captions": list(self.captions) if len(self.captions) > 1 else None,
            "references": list(self.references) or None,
            "score": round(self.score, 4) if self.score is not None and math.isfinite(self.score) else None,
            "ended": self.ended,
            "clip": self.clip,
            "verdict": self.verdict,
            "error": self.error,
            "image": _address(self.thumbnail, "jpeg"),
        }
        if self.heat is not None:
            maps, picture = self.heat
            values["heat"] = {"image": _address(picture, "png"), "words": maps.words, "grid": maps.maps.shape[1:]}
            if maps.box != (0.0, 0.0, 1.0, 1.0):
                values["heat"]["box"] = [round(v, 4) for v in maps.box]
        return {name: value for name, value in values.items() if value is not None}


def _address(picture: bytes | str | None, kind: str) -> str | None:
    if isinstance(picture, bytes):
        return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    return picture


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a <script>: ASCII only (no line separators, no lone surrogates) and no "<"."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


# ---- pages ----------------------------------------------------------------------------------------------------------


def gallery_output(
    path: Path, inputs: Sequence[Path | str | None] = (), overwrite: bool = False, total: int = 0
) -> Output:
    """The page that `write_gallery` writes, checked before any work is done.

    Args:
        total: number of images; above `EMBED_LIMIT` thumbnails are in a folder beside the page.

    Raises:
        OutputError: the name does not end in .html, or the page or that folder may not be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--gallery {path}: name a file that ends in .html.")
    page = Output("--gallery", path, inputs, overwrite, is_page("gallery"))
    if total > EMBED_LIMIT:
        _beside(page)
    return page


def _beside(page: Output) -> Linked:
    linked = Linked(page.path)
    if not linked.ours:
        raise page.refused(f"needs the folder {linked.root.name} beside it, which holds other files")
    return linked


def write_gallery(page: Output, title: str, cards: Iterable[Card], facts: Sequence[tuple[str, str]] = ()) -> None:
    """One page, finished by rename; cards are written as they come, so memory stays flat.

    Args:
        facts: (name, value) pairs shown at the top.

    Raises:
        OutputError: it can't be written.
    """
    script = template_source("parts.js") + template_source("gallery.js")
    write_page(
        page,
        "gallery",
        title=title,
        facts=facts,
        folder=script_json(quote(page.path.stem + "_files/")),
        cards=(script_json(card.to_json()) for card in cards),
        script=Markup(script),
        script_digest=script_digest(script),
    )


def write_caption_gallery(
    page: Output,
    results: Sequence[CaptionResult],
    images: Sequence[FoundImage],
    explainer: Explainer | None = None,
    workers: int = 0,
) -> None:
    """Captions as a page, in their order.

    Thumbnails are made in threads, a few images ahead. With more than `EMBED_LIMIT` images they are linked, and those of
    unchanged files are used again.

    Args:
        images: the file of each result.
        explainer: adds the heat map of each word.
        workers: threads; 0 for one per core.

    Raises:
        OutputError: the page or its folder can't be written.
    """
    linked = _beside(page) if len(results) > EMBED_LIMIT else None
    earlier = linked or Linked(page.path)  # before the page is written, which tells whose the folder is
    write_gallery(page, "Captions", _cards(results, images, linked, explainer, workers or default_workers()))
    earlier.tidy()


def _cards(
    results: Sequence[CaptionResult],
    images: Sequence[FoundImage],
    linked: Linked | None,
    explainer: Explainer | None,
    workers: int,
) -> Iterator[Card]:
    draw = partial(_draw, linked=linked, explainer=explainer)
    drawn = in_threads(draw, zip(results, images, strict=True), workers, ahead=4 * workers)
    with Progress("gallery", len(results)) as progress, closing(drawn):
        while batch := list(islice(drawn, 16)):
            yield from _explained(batch, linked, explainer)
            progress.update(len(batch))


class _Drawn(NamedTuple):
    result: CaptionResult
    key: tuple[object, ...]  # identifies what is shown: name, size, time
    thumbnail: bytes | str | None
    prepared: Any
    error: str | None


def _draw(pair: tuple[CaptionResult, FoundImage], linked: Linked | None, explainer: Explainer | None) -> _Drawn:
    result, found = pair
    if result.error is not None:
        return _Drawn(result, (), None, None, result.error)
    try:
        key = (result.image, *found.state())
        name, there = linked.name(".jpg", *key) if linked else ("", False)
        if there and not explainer:
            return _Drawn(result, key, name, None, None)
        image, state = found.picture()
        key = (result.image, *state)  # of what was read
        if linked:
            name, there = linked.name(".jpg", *key)
    except ImageError as error:  # it was readable when it was captioned
        return _Drawn(result, (), None, None, f"can't be shown: {error}")
    prepared = explainer.prepare(image) if explainer else None
    if there:
        return _Drawn(result, key, name, prepared, None)
    data = thumbnail(image)
    return _Drawn(result, key, linked.write(name, data) if linked else data, prepared, None)


def _explained(batch: Sequence[_Drawn], linked: Linked | None, explainer: Explainer | None) -> Iterator[Card]:
    told = [drawn for drawn in batch if drawn.prepared is not None]
    heats = iter(
        explainer.explain([d.prepared for d in told], [d.result.caption or "" for d in told])
        if explainer and told
        else ()
    )
    for drawn in batch:
        result, heat = drawn.result, None
        maps = next(heats) if drawn.prepared is not None else None
        if maps is not None:
            png: bytes | str = heat_png(maps.maps)
            if linked and isinstance(png, bytes):
                png = linked.write(linked.name(".png", *drawn.key, png)[0], png)
            heat = maps, png
        yield Card(
            name=result.image,
            thumbnail=drawn.thumbnail,
            caption=result.caption,
            score=result.score,
            captions=result.captions,
            ended=result.ended,
            clip=result.clip_scores[0] if result.clip_scores else None,
            error=drawn.error,
            heat=heat,
        )
