"""The review page in a real browser, and what its actions become in every export."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from serving import Server, actions_in, write_captions
from test_server import EVIL_CAPTION

from toolkit.commands.review import review
from toolkit.data.annotations import read_annotations
from toolkit.data.reviews import Action, Review
from toolkit.errors import InputError, OutputError
from toolkit.options import ReviewOptions
from toolkit.outputs.tables import read_captions

needs_browser = pytest.mark.skipif(browser.PATH is None, reason=f"none of {', '.join(browser.NAMES)} on PATH")
READY = "document.body.dataset.ready === 'yes'"
HERE = "document.querySelector('#facts b').textContent"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def make(folder: Path, sample_dir: Path, number: int, **rows: dict[str, Any]) -> list[str]:
    """`number` images and their captions; the names of the images."""
    (folder / "Images").mkdir(parents=True)
    pictures = sorted((sample_dir / "Images").iterdir())
    names = [f"{i:04d}{pictures[i % len(pictures)].suffix}" for i in range(number)]
    for i, name in enumerate(names):
        shutil.copy(pictures[i % len(pictures)], folder / "Images" / name)
    write_captions(folder / "captions.jsonl", names, **rows)
    return names


def replayed(actions: list[tuple[str, str, str | None]]) -> dict[str, tuple[str, str | None]]:
    """What counts after a list of actions, by a loop of its own."""
    stacks: dict[str, list[tuple[str, str | None]]] = {}
    for image, action, text in actions:
        stack = stacks.setdefault(image, [])
        if action != "undo":
            stack.append((action, text))
        elif stack:
            stack.pop()
    return {image: stack[-1] for image, stack in stacks.items() if stack}


def act(chromium: browser.Browser, rng: random.Random, step: int) -> list[tuple[str, str, str | None]]:
    """One thing that a person does by keyboard, and the rows that it must give."""
    image = chromium.run(HERE)
    shown = chromium.run("document.querySelector('#text .caption').textContent")
    what = rng.choice(("accept", "edit", "edit", "reject"))
    if what == "edit":
        chromium.press("e")
        chromium.type(f"said by a person {step}")
        chromium.press("Enter")
        return [(image, "edit", f"said by a person {step}")]
    chromium.press(what[0])
    return [(image, what, shown if what == "accept" else None)]


def reviewing(chromium: browser.Browser, folder: Path, number: int, every: int) -> list[tuple[str, str, str | None]]:
    """Acts on `number` captions; after so many each there is a reload, a second tab or a server that is killed."""
    rng, done = random.Random(number), list[tuple[str, str, str | None]]()
    path = folder / "captions.jsonl.review"
    server = Server(folder, "captions.jsonl", "--near-duplicates", "off")
    try:
        chromium.open(server.address)
        chromium.wait(READY)
        for step in range(number):
            done += act(chromium, rng, step)
            if step % 5 == 3:
                chromium.press("u")
                done.append((done[-1][0], "undo", None))
                done += act(chromium, rng, step + 10_000)
            if step % every:
                continue
            chromium.wait(f"waiting.length === 0 && seen === {len(done)}")
            assert actions_in(path) == done  # what is shown as done is on the disk
            kind = step // every % 3
            if kind == 0:
                chromium.open(server.address)
            elif kind == 1:
                with chromium.second_tab():
                    chromium.open(server.address)
                    chromium.wait(READY)
                    done += act(chromium, rng, step + 20_000)
                    chromium.wait("waiting.length === 0")
                chromium.run("window.dispatchEvent(new Event('focus'))")  # as when a person comes back to the first one
                chromium.wait(f"seen === {len(done)}")
                continue
            else:
                server.kill()
                server = Server(folder, "captions.jsonl", "--near-duplicates", "off")
                chromium.open(server.address)
            chromium.wait(READY)
        chromium.wait(f"waiting.length === 0 && seen === {len(done)}")
    finally:
        server.kill()
    return done


@needs_browser
@pytest.mark.parametrize(
    ("number", "every"), [(5, 2), pytest.param(200, 11, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_captions_are_reviewed_by_keyboard(
    chromium: browser.Browser, sample_dir: Path, tmp_path: Path, number: int, every: int
) -> None:
    names = make(tmp_path, sample_dir, number + number // 2 + 5)
    chromium.messages.clear()
    chromium.screen(1200, 900)
    done = reviewing(chromium, tmp_path, number, every)
    assert actions_in(tmp_path / "captions.jsonl.review") == done
    last = replayed(done)
    review(ReviewOptions(path=tmp_path / "captions.jsonl", export=tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == names
    for row, before in zip(rows, given, strict=True):
        action, text = last.get(row["image"], ("", None))
        assert row["rejected"] == (action == "reject")
        assert row["caption"] == (text if action in ("accept", "edit") else before["caption"])
        # An edit of another tab may be accepted afterwards: it stays a person's.
        own = action in ("accept", "edit") and text != before["caption"]
        assert row["source"] == ("person" if own else "model")
    assert [line for line in chromium.messages if "net::ERR" not in line] == []


@needs_browser
def test_the_page(chromium: browser.Browser, sample_dir: Path, tmp_path: Path) -> None:
    """Hostile text is text, nothing sticks out on a phone, and a server that is gone is said."""
    several = {"captions": [EVIL_CAPTION, "the second", "the third"], "caption": EVIL_CAPTION, "ended": False}
    names = make(tmp_path, sample_dir, 8, **{"2": several, "5": {"caption": None, "error": "truncated", "score": None}})
    for name in names[3:5]:  # the same picture, so they are near-duplicates
        shutil.copy(tmp_path / "Images" / names[0], tmp_path / "Images" / name)
    with Server(tmp_path, "captions.jsonl") as server:
        chromium.screen(1200, 900)
        chromium.open("about:blank")
        chromium.messages.clear()
        chromium.asked.clear()
        chromium.open(server.address)
        chromium.wait(READY)
        assert chromium.run(HERE) == names[2]  # the weakest
        assert chromium.run("document.querySelector('#text .caption').textContent") == EVIL_CAPTION.encode(
            "utf-16", "surrogatepass"
        ).decode("utf-16", "replace").replace("\ufffd", "\udcff")
        assert chromium.run("document.title") == "Review: captions.jsonl"
        assert chromium.run("document.querySelectorAll('#stage script, #stage [onerror], #list script').length") == 0
        chromium.press("3")
        chromium.wait("seen === 1")
        assert actions_in(tmp_path / "captions.jsonl.review") == [(names[2], "accept", "the third")]
        chromium.wait("alike !== null")
        chromium.run(f"go(chosen.findIndex((n) => items[n].id === '{names[3]}'))")
        assert chromium.run("document.querySelectorAll('#alike button').length") == 2
        chromium.press("g")
        chromium.press("e")
        chromium.type("three alike")
        chromium.press("Enter")
        chromium.wait("seen === 4")
        assert {row[0] for row in actions_in(tmp_path / "captions.jsonl.review")[1:]} == {names[0], *names[3:5]}
        chromium.press("u")
        chromium.wait("seen === 7")
        chromium.run("search.value = 'NUMBER 6'; search.dispatchEvent(new Event('input'))")
        assert chromium.run("document.querySelectorAll('.row').length") == 1
        chromium.run("search.value = ''; search.dispatchEvent(new Event('input'))")
        for width in (390, 760, 1200):
            for dark in (False, True):
                chromium.screen(width, 800, dark)
                assert chromium.run("document.documentElement.scrollWidth") == width
        assert chromium.messages == []
        assert [asked for asked in chromium.asked if not asked.startswith(server.address)] == []
        server.kill()
        chromium.press("r")
        chromium.wait("!notice.hidden && notice.textContent.includes('not kept yet')")
        assert chromium.run("document.querySelectorAll('.state.waiting').length") == 1
    assert len(actions_in(tmp_path / "captions.jsonl.review")) == 7


# ---- exports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reviewed(sample_dir: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    several = {"captions": ["one", "two"], "caption": "one"}
    names = make(tmp_path, sample_dir, 6, **{"1": several, "5": {"caption": None, "error": "truncated", "score": None}})
    kept = Review(tmp_path / "captions.jsonl.review")
    for action in (
        Action(names[0], "edit", "a, b"), Action(names[1], "accept", "two"), Action(names[2], "reject"),
        Action(names[3], "accept", "a thing number 3"), Action(names[5], "edit", "seen by a person"),
    ):  # fmt: skip
        kept.append([action])
    return tmp_path, names


FOUND = [
    ("a, b", "person", False), ("two", "model", False), ("a thing number 2", "model", True), ("a thing number 3", "model", False),
    ("a thing number 4", "model", False), ("seen by a person", "person", False),
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "json"])
def test_exports(reviewed: tuple[Path, list[str]], suffix: str) -> None:
    folder, names = reviewed
    out = folder / f"out.{suffix}"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    summary = review(ReviewOptions(path=folder / "captions.jsonl", export=out))
    assert summary.values == {
        "export": f"{out}", "format": {"json": "coco"}.get(suffix, suffix), "images": 6, "person": 2, "rejected": 1,
        "review": f"{folder / 'captions.jsonl.review'}",
    }  # fmt: skip
    table = read_captions(out)
    assert list(table["image_id" if suffix == "json" else "image"]) == names
    assert list(zip(table["caption"], table["source"], table["rejected"], strict=True)) == FOUND
    if suffix != "json":
        assert list(table["score"].isna()) == [True, True, False, False, False, True]
        assert table["error"].isna().all()
    assert {name: (folder / name).read_bytes() for name in before} == before
    review(ReviewOptions(path=folder / "captions.jsonl", export=out))  # ours, so it may be replaced
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists and is not what this command wrote"):
        review(ReviewOptions(path=folder / "captions.jsonl", export=out))


def test_exports_beside_images(reviewed: tuple[Path, list[str]]) -> None:
    folder, names = reviewed
    review(ReviewOptions(path=folder / "captions.jsonl", export=folder / "Images", format="imagefolder"))
    rows = [json.loads(line) for line in (folder / "Images" / "metadata.jsonl").read_text().splitlines()]
    assert [(row["text"], row["source"], row["rejected"]) for row in rows] == FOUND
    texts = folder / "texts"
    texts.mkdir()
    options = {"path": folder / "captions.jsonl", "export": texts, "format": "txt"}
    review(ReviewOptions(**options))
    assert {path.stem: path.read_text() for path in texts.iterdir()} == {
        Path(name).stem: f"{text}\n" for name, (text, _, rejected) in zip(names, FOUND, strict=True) if not rejected
    }
    Review(folder / "captions.jsonl.review").append([Action(names[0], "reject")])
    with pytest.raises(
        OutputError, match="exists, but its image was rejected; name another folder, or add --overwrite"
    ):
        review(ReviewOptions(**options))
    review(ReviewOptions(**options, overwrite=True))
    assert not (texts / names[0]).with_suffix(".txt").exists()


def test_a_caches_captions(cache_dir: Path, tmp_path: Path) -> None:
    """Each caption has its own word; the export gives what is left of them, and is annotations again."""
    from toolkit.cache.schema import open_cache
    from toolkit.reviewing.listing import list_cache

    shutil.copytree(cache_dir, tmp_path / "cache")
    listing = list_cache(ReviewOptions(path=tmp_path / "cache"), None)
    reader = open_cache(tmp_path / "cache")["train"]
    ids, said = reader.column("image_id"), reader.column("captions")
    assert [item.key for item in listing.items] == [
        (i, c) for i, captions in zip(ids, said, strict=True) for c in captions
    ]
    kept = Review(tmp_path / "cache.review")
    kept.append([Action(ids[0], "edit", "new", said[0][1]), *(Action(ids[1], "reject", None, c) for c in said[1])])
    kept.append([Action(ids[2], "reject", None, said[2][0])])
    review(ReviewOptions(path=tmp_path / "cache", export=tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["captions"] == [said[0][0], "new", *said[0][2:]]
    assert [row["source"] for row in rows[:4]] == ["person", "model", "model", "model"]
    assert [row["rejected"] for row in rows[:4]] == [False, True, False, False]
    assert rows[2]["captions"] == said[2][1:]
    found = read_annotations(tmp_path / "out.jsonl", cache_dir.parents[1] / "sample" / "data" / "Images")
    assert len(list(found.records)) == len(reader)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"path": "nothing.jsonl"}, r"nothing\.jsonl: no such file"),
        ({"model": "m"}, "--model m: only applies to a cache"),
        ({"split": "test"}, "--split test: only applies to a cache"),
        ({"images": "nothing"}, "--images nothing: no such folder"),
        ({"host": "no.such.host.invalid"}, r"--host no\.such\.host\.invalid --port 0: can't be listened on"),
        ({"gallery": "captions.jsonl"}, "--gallery captions.jsonl: is not a gallery"),
    ],
)
def test_mistakes(
    sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], sentence: str
) -> None:
    make(tmp_path, sample_dir, 2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        review(ReviewOptions(**given))  # type: ignore[arg-type]
    shutil.move(tmp_path / "Images", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"captions\.jsonl: its images \(the first is 0000"):
        review(ReviewOptions())


def test_options_without_effect() -> None:
    for given in ({"export": "x.csv", "port": 1}, {"format": "csv"}, {"overwrite": True}, {"device": "cpu"}):
        with pytest.raises(InputError, match=r"^--(port|format|overwrite|device) .*(no effect|only applies)"):
            ReviewOptions(**given)  # type: ignore[arg-type]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import toolkit.options.review as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"starlette is not installed; pip install 'captioning-toolkit\[review\]'\.$"):
        ReviewOptions()
    ReviewOptions(export="x.csv")  # type: ignore[arg-type]
