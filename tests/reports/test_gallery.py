"""The gallery: what the page holds, what lies beside it, and what a real browser makes of it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image

from toolkit.data import sources
from toolkit.data.sources import FoundImage
from toolkit.errors import OutputError
from toolkit.records import CaptionResult, HeatMaps
from toolkit.reports import gallery as module
from toolkit.reports.gallery import Card, gallery_output, write_caption_gallery, write_gallery
from toolkit.reports.pictures import MARK, heat_png

EVIL = "\"><script>document.title=1</script>\u2028<!--<script>\udcff'<img src=x onerror=document.title=2>.jpg"
EVIL_CAPTION = "</script><script>document.title=3</script><img src=x onerror=document.title=4> \u2029 ]]>"
needs_browser = pytest.mark.skipif(browser.PATH is None, reason=f"none of {', '.join(browser.NAMES)} on PATH")


@pytest.fixture(scope="module")
def folder(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gallery") / "pictures"
    root.mkdir()
    for i, path in enumerate(sorted((sample_dir / "Images").iterdir())[:8]):
        shutil.copy(path, root / f"photo{i}.jpg")
    return root


def rows_of(folder: Path) -> tuple[list[CaptionResult], list[FoundImage]]:
    """A result for each image, one with a hostile name, and one that could not be read."""
    rows = [
        CaptionResult(path.name, text := f"word {'and ' * i}number{i}", (text,), -0.1 * (5 * i % 8), i != 3)
        for i, path in enumerate(sorted(folder.iterdir()))
    ]
    images = [FoundImage(folder, row.image) for row in rows]
    rows[1] = replace(rows[1], image=EVIL, caption=EVIL_CAPTION, captions=(EVIL_CAPTION, "a second"))
    rows.append(CaptionResult("bad.jpg", error="truncated"))
    return rows, [*images, FoundImage(folder, "bad.jpg")]


def cards_of(page: Path) -> list[dict[str, Any]]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="cards">(.*?)</script>', text, re.DOTALL)
    assert found
    assert found[1].isascii()
    assert "<" not in found[1]
    cards = json.loads(found[1])
    assert cards.pop() is None
    return cards


class Spotlights:
    """Word k of a caption is looked for in row k of a 4 x 4 grid."""

    def prepare(self, image: Image.Image) -> tuple[int, int]:
        return image.size

    def explain(self, prepared: Sequence[Any], captions: Sequence[str]) -> list[HeatMaps | None]:
        return [None if "script" in caption else self.maps(caption) for caption in captions]

    def maps(self, caption: str) -> HeatMaps:
        words = tuple(match.span() for match in re.finditer(r"\S+", caption))
        maps = np.zeros((len(words), 4, 4), np.uint8)
        for k in range(len(words)):
            maps[k, k % 4] = 255
        return HeatMaps(words, maps)


def test_an_embedded_page(folder: Path, tmp_path: Path) -> None:
    rows, images = rows_of(folder)
    page = tmp_path / "page.html"
    write_caption_gallery(gallery_output(page), rows, images, Spotlights())
    cards = cards_of(page)
    assert [card["name"] for card in cards] == [row.image for row in rows]
    assert [card.get("caption") for card in cards] == [row.caption for row in rows]
    assert cards[-1] == {"name": "bad.jpg", "error": "truncated"}
    assert cards[1]["captions"] == [EVIL_CAPTION, "a second"]
    for card, found in zip(cards[:-1], images, strict=False):
        kind, data = card["image"].split(",")
        assert kind == "data:image/jpeg;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        with Image.open(found.path) as whole:
            assert abs(small.width / small.height - whole.width / whole.height) < 0.02
        assert max(small.size) <= 288
    assert cards[0]["heat"]["words"] == [[0, 4], [5, 12]]
    assert cards[0]["heat"]["grid"] == [4, 4]
    assert "heat" not in cards[1]
    assert list(tmp_path.iterdir()) == [page]
    assert "http" not in page.read_text().replace("http-equiv", "")


def test_heat_maps_as_a_picture() -> None:
    maps = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5) * 8
    image = Image.open(io.BytesIO(heat_png(maps)))
    assert image.size == (5, 6)
    assert (np.asarray(image) == maps.reshape(6, 5) // 4).all()
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert alpha[0, 0] > alpha[-1, -1] > 0  # the light is the clearer part


def test_many_images_are_linked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, images = rows_of(folder)
    page, beside = tmp_path / "a page.html", tmp_path / "a page_files"
    monkeypatch.setattr(module, "EMBED_LIMIT", 3)
    write_caption_gallery(gallery_output(page), rows, images, Spotlights())
    cards = cards_of(page)
    files = {path.relative_to(beside).as_posix() for path in beside.rglob("*.*")} - {MARK}
    named = {card["image"] for card in cards[:-1]} | {card["heat"]["image"] for card in cards if "heat" in card}
    assert files == named
    assert 'id="folder">"a%20page_files/"<' in page.read_text()
    first = page.read_bytes()
    write_caption_gallery(gallery_output(page), rows, images, Spotlights())
    assert page.read_bytes() == first
    # a picture of a file as it was is not made again; those no longer shown go, the user's own files stay
    (beside / "mine.txt").write_text("mine")
    (beside / "ab").mkdir(exist_ok=True)
    (beside / "ab" / "mine.jpg").write_text("mine")
    read: list[Path] = []
    real = sources.read_file
    monkeypatch.setattr(sources, "read_file", lambda path: read.append(path) or real(path))
    os.utime(images[4].path, ns=(1, 1))
    write_caption_gallery(gallery_output(page), rows[2:6], images[2:6])
    assert read == [images[4].path]
    shown = {card["image"] for card in cards_of(page)}
    assert {path.name for path in beside.iterdir() if path.is_dir()} == {"ab"} | {name[:2] for name in shown}
    assert {path.relative_to(beside).as_posix() for path in beside.rglob("*.*")} == {
        *shown,
        "mine.txt",
        "ab/mine.jpg",
        MARK,
    }


def test_a_page_that_shrinks_leaves_no_thumbnails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, images = rows_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(module, "EMBED_LIMIT", 3)
        write_caption_gallery(gallery_output(tmp_path / "page.html"), rows, images)
    write_caption_gallery(gallery_output(tmp_path / "page.html"), rows, images)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_score_that_is_no_number(tmp_path: Path) -> None:
    write_gallery(gallery_output(tmp_path / "page.html"), "Captions", [Card("a.jpg", None, "a", float("nan"))])
    assert cards_of(tmp_path / "page.html") == [{"name": "a.jpg", "caption": "a"}]


def test_an_image_that_is_gone_keeps_its_caption(folder: Path, tmp_path: Path) -> None:
    row = CaptionResult("gone.jpg", "a dog", ("a dog",), -0.5, True)
    write_caption_gallery(gallery_output(tmp_path / "page.html"), [row], [FoundImage(folder, "gone.jpg")])
    (card,) = cards_of(tmp_path / "page.html")
    assert card == {
        "name": "gone.jpg", "caption": "a dog", "score": -0.5, "ended": True,
        "error": "can't be shown: missing",
    }  # fmt: skip


def test_cards_are_written_as_they_come(tmp_path: Path) -> None:
    """Memory stays flat: the page on disk grows while the cards are still being made."""
    sizes: list[int] = []

    def cards() -> Iterator[Card]:
        for i in range(50):
            sizes.append(next(tmp_path.iterdir()).stat().st_size)
            yield Card(f"{i}.jpg", bytes(20_000), "a dog")

    write_gallery(gallery_output(tmp_path / "page.html"), "Captions", cards())
    assert sizes == sorted(sizes)
    assert sizes[-1] > 48 * 26_000
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_few_thumbnails_are_made_ahead(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    real = module._draw
    monkeypatch.setattr(module, "_draw", lambda pair, **rest: started.append(pair[0].image) or real(pair, **rest))
    rows, images = rows_of(folder)
    many = [replace(rows[0], image=f"{i}.jpg") for i in range(200)]
    made = module._cards(many, [images[0]] * 200, None, None, 2)
    for place, card in enumerate(made):
        assert card.name == f"{place}.jpg"  # in order
        assert len(started) <= place + 1 + 4 * 2 + 16
    assert len(started) == 200


def test_a_failed_page_leaves_nothing(tmp_path: Path) -> None:
    def cards() -> Iterator[Card]:
        yield Card("a.jpg", None, "a dog")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gallery(gallery_output(tmp_path / "page.html"), "Captions", cards())
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_written(tmp_path: Path) -> None:
    write_gallery(gallery_output(tmp_path / "page.html"), "Captions", [])
    gallery_output(tmp_path / "page.html")  # an earlier page of ours
    gallery_output(tmp_path / "new.htm")
    (tmp_path / "mine.html").write_text("<html>my own</html>")
    (tmp_path / "folder.html").mkdir()
    for name, reason in (
        ("mine.html", "exists and is not"),
        ("page.png", "ends in .html"),
        ("folder.html", "is a folder"),
    ):
        with pytest.raises(OutputError, match=reason):
            gallery_output(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="there is no folder"):
        gallery_output(tmp_path / "file" / "page.html")


def test_the_folder_beside_a_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that saves a page makes `page_files` too, and names of 2 + 30 hex digits are many a store's."""
    rows, images = rows_of(folder)
    page, beside = tmp_path / "page.html", tmp_path / "page_files"
    mine = beside / "ab" / f"{'c' * 30}.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OutputError, match="needs the folder page_files beside it, which holds other files"):
        gallery_output(page, total=1001)
    write_caption_gallery(gallery_output(page, total=1000), rows, images)  # embeds its pictures
    assert mine.read_text() == "mine"
    mine.rename(tmp_path / "mine.jpg")
    shutil.rmtree(beside)
    beside.symlink_to(folder)
    with pytest.raises(OutputError, match="needs the folder page_files"):
        gallery_output(page, total=1001)
    beside.unlink()
    monkeypatch.setattr(module, "EMBED_LIMIT", 3)
    write_caption_gallery(gallery_output(page), rows, images)
    pictures = sorted(path for path in beside.rglob("*.jpg"))
    (beside / MARK).unlink()  # as an earlier version left it
    gallery_output(page, total=1001)
    write_caption_gallery(gallery_output(page), rows, images)
    assert sorted(path for path in beside.rglob("*.jpg")) == pictures


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


NAMES_SHOWN = "[...document.querySelectorAll('.meta > :first-child')].map((e) => e.textContent)"
COUNT = "document.getElementById('count').textContent"


def set_control(name: str, value: str, event: str) -> str:
    return f"document.getElementById('{name}').value = {json.dumps(value)}; document.getElementById('{name}').dispatchEvent(new Event('{event}'))"


@needs_browser
@pytest.mark.parametrize("limit", [1000, 3], ids=["embedded", "linked"])
def test_in_a_browser(
    chromium: browser.Browser, folder: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, images = rows_of(folder)
    page = tmp_path / "#1 page%.html"
    monkeypatch.setattr(module, "EMBED_LIMIT", limit)
    write_caption_gallery(gallery_output(page), rows, images, Spotlights())
    chromium.asked.clear()
    chromium.messages.clear()
    chromium.screen(1300, 900)
    chromium.open(page)
    names = [row.image for row in rows]
    assert chromium.run(COUNT) == "9 images"
    assert chromium.run(NAMES_SHOWN) == names
    chromium.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert chromium.run("document.images.length") == 8

    # hostile names and captions are text, and ran nothing
    assert chromium.run("document.title") == "Captions"
    assert chromium.run("document.querySelectorAll('.card')[1].querySelector('.caption').textContent") == EVIL_CAPTION
    assert chromium.run("document.querySelectorAll('#grid script, #grid [onerror]').length") == 0

    # filtered
    chromium.run(set_control("search", "NUMBER5 and", "input"))
    assert chromium.run(NAMES_SHOWN) == ["photo5.jpg"]
    assert chromium.run(COUNT) == "1 of 9 images"
    chromium.run(set_control("search", "trunc", "input"))
    assert chromium.run(NAMES_SHOWN) == ["bad.jpg"]
    chromium.run(set_control("search", "", "input"))

    # sorted
    good = [row for row in rows if row.error is None]
    by_score = [row.image for row in sorted(good, key=lambda row: row.score)]
    chromium.run(set_control("order", "worst", "change"))
    assert chromium.run(NAMES_SHOWN) == [*by_score, "bad.jpg"]
    chromium.run(set_control("order", "best", "change"))
    assert chromium.run(NAMES_SHOWN) == [*by_score[::-1], "bad.jpg"]
    chromium.run(set_control("order", "shortest", "change"))
    assert chromium.run(NAMES_SHOWN)[0] == "photo0.jpg"
    assert chromium.run(NAMES_SHOWN)[-1] == "bad.jpg"
    chromium.run(set_control("order", "longest", "change"))
    assert chromium.run(NAMES_SHOWN)[0] == names[1]
    chromium.run(set_control("order", "trouble", "change"))
    assert chromium.run(NAMES_SHOWN)[:2] == ["bad.jpg", "photo3.jpg"]
    chromium.run(set_control("order", "name", "change"))
    assert chromium.run(NAMES_SHOWN)[1:] == ["bad.jpg", *(f"photo{i}.jpg" for i in (0, 2, 3, 4, 5, 6, 7))]
    chromium.run(set_control("order", "given", "change"))

    # a heat map: on focus, on pointing, on a tap
    third = "document.querySelectorAll('.card')[2].querySelectorAll('.word')[1]"
    for start, stop in (
        (f"{third}.focus()", f"{third}.blur()"),
        (f"{third}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))",
         "document.body.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"),
        (f"{third}.click()", "document.body.click()"),
    ):  # fmt: skip
        chromium.run(start)
        chromium.wait("document.querySelectorAll('canvas').length === 1")
        assert chromium.run(f"{third}.matches('.shown')")
        box = chromium.run(
            "(() => { const image = document.querySelectorAll('.card')[2].querySelector('img');"
            "const inside = document.querySelector('canvas').getBoundingClientRect();"
            "return [image.naturalWidth / image.naturalHeight, inside.width / inside.height] })()"
        )
        assert box[0] == pytest.approx(box[1], rel=0.02)
        if limit == 1000:  # a linked picture may be drawn, but not be read
            alpha = chromium.run(
                "(() => { const c = document.querySelector('canvas'); const d = c.getContext('2d');"
                "return [0.1, 0.375, 0.625, 0.9].map((y) => d.getImageData(c.width / 2, c.height * y, 1, 1).data[3]) })()"
            )
            assert int(np.argmin(alpha)) == 1  # the light is in the second row of four
        chromium.run(stop)
        chromium.wait("document.querySelectorAll('canvas').length === 0")

    # at both widths, light and dark, nothing sticks out; no complaint of the policy's; nothing was asked for elsewhere
    for width in (390, 1300):
        for dark in (False, True):
            chromium.screen(width, 900, dark)
            assert chromium.run("document.documentElement.scrollWidth") == width
    root = page.parent.as_uri()
    assert chromium.messages == []
    assert [address for address in chromium.asked if not address.startswith(("data:image/", root + "/"))] == []


@needs_browser
def test_a_big_page_in_a_browser(chromium: browser.Browser, tmp_path: Path) -> None:
    """20,000 cards: drawn as one scrolls, searched and sorted all."""
    page = tmp_path / "page.html"
    cards = (Card(f"folder/{i}.jpg", None, f"a dog number {i}", -(i * 7919 % 20_000) / 1000) for i in range(20_000))
    write_gallery(gallery_output(page), "Captions", cards, [("model", "m<1>")])
    chromium.screen(1300, 900)
    chromium.open(page)
    assert chromium.run(COUNT) == "20,000 images"
    assert chromium.run("document.querySelector('.facts').textContent.trim()") == "model m<1>"
    time.sleep(0.2)
    assert chromium.run("document.querySelectorAll('.card').length") < 500
    before = chromium.run("document.querySelectorAll('.card').length")
    chromium.run("window.scrollTo(0, document.body.scrollHeight)")
    chromium.wait(f"document.querySelectorAll('.card').length > {before}")
    chromium.run(set_control("order", "worst", "change"))
    worst = next(i for i in range(20_000) if i * 7919 % 20_000 == 19_999)
    assert chromium.run(f"{NAMES_SHOWN}[0]") == f"folder/{worst}.jpg"
    chromium.run(set_control("search", "number 19999", "input"))
    assert chromium.run(NAMES_SHOWN) == ["folder/19999.jpg"]
