"""The file of a person's actions: what it holds, who appends to it, and what a kill leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.data.reviews import Action, Review, Reviewed, read_review, review_of
from toolkit.errors import InputError, OutputError
from toolkit.records import ImageRecord


def act(review: Review, *actions: Action) -> None:
    for action in actions:
        assert review.append([action])


def test_rows_are_appended_and_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl.review"
    review = Review(path)
    assert not path.exists()
    act(review, Action("a", "edit", "one"), Action("b", "accept", "a \udcff cat"), Action("a", "edit", "two"))
    act(review, Action("b", "reject"), Action("b", "undo"), Action("b", "undo"), Action("c", "undo"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["id"], row["action"], row["text"]) for row in rows] == [
        ("a", "edit", "one"), ("b", "accept", "a \udcff cat"), ("a", "edit", "two"), ("b", "reject", None),
        ("b", "undo", None), ("b", "undo", None), ("c", "undo", None),
    ]  # fmt: skip
    assert all(list(row) == ["time", "id", "action", "text"] and row["time"].endswith("+00:00") for row in rows)
    for found in (review, Review(path)):
        assert [(key, action.text) for key, action in found.standing().items()] == [(("a", None), "two")]


def test_each_caption_of_an_image_has_its_own_word(tmp_path: Path) -> None:
    review = Review(tmp_path / "r.review")
    act(review, Action("a", "edit", "x", "one"), Action("a", "reject", None, "two"))
    assert Review(tmp_path / "r.review").standing().keys() == {("a", "one"), ("a", "two")}


@pytest.mark.parametrize("torn", [b'{"ti', b'{"time": "2026", "id": "b", "action": "edit", "text": "caf\xc3'])
@pytest.mark.parametrize("before", [0, 1])
def test_a_torn_line(tmp_path: Path, torn: bytes, before: int) -> None:
    """What a kill has left was never shown as done; the next row begins a line of its own, and nothing is removed."""
    path = tmp_path / "r.review"
    act(Review(path), *[Action("a", "edit", "one")] * before)
    whole = path.read_bytes() if before else b""
    path.write_bytes(whole + torn)
    review = Review(path)
    assert (len(review.rows), review.unreadable) == (before, 1)
    act(review, Action("b", "accept", "two"))
    assert path.read_bytes().startswith(whole + torn + b"\n")
    assert [row.id for row in Review(path).rows] == [*"a" * before, "b"]


def test_a_row_without_its_line_break_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.review"
    act(Review(path), Action("a", "reject"))
    path.write_bytes(path.read_bytes().rstrip())
    review = Review(path)
    act(review, Action("b", "reject"))
    assert [row.id for row in review.rows] == [row.id for row in Review(path).rows] == ["a", "b"]


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    """Two processes append to one file; each sees the other's rows."""
    path = tmp_path / "r.review"
    code = (
        "import sys; from pathlib import Path; from toolkit.data.reviews import Action, Review\n"
        "review = Review(Path(sys.argv[1]))\n"
        "for i in range(100): review.append([Action(f'{sys.argv[2]}{i}', 'edit', 'x' * i * 10 + '.')])"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "pq"]
    assert [process.wait(60) for process in running] == [0, 0]
    review = Review(path)
    assert review.unreadable == 0
    for name in "pq":
        assert [row.id for row in review.rows if row.id[0] == name] == [f"{name}{i}" for i in range(100)]


def test_undo_of_what_another_tab_has_changed(tmp_path: Path) -> None:
    one, other = Review(tmp_path / "r.review"), Review(tmp_path / "r.review")
    act(one, Action("a", "edit", "mine"))
    act(other, Action("a", "edit", "yours"), Action("b", "reject"))
    assert not one.append([Action("a", "undo")], seen=1)
    assert one.standing()["a", None].text == "yours"
    assert one.append([Action("a", "undo")], seen=3)
    assert other.append([Action("b", "undo")], seen=3)
    assert one.rows == other.rows[:4]


def test_another_file_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "r.review"
    review = Review(path)
    act(review, Action("a", "reject"), Action("b", "reject"))
    reading = review.reading
    path.write_text(path.read_text().splitlines(True)[1])
    review.refresh()
    assert review.standing().keys() == {("b", None)}
    path.unlink()
    review.refresh()
    assert review.standing() == {}
    assert review.reading == reading + 2


@pytest.mark.parametrize("content", ["my notes\n", '{"image": "a.jpg", "caption": "x"}\n', '{"time": "x"}\n'])
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "captions.jsonl.review"
    path.write_text(content)
    with pytest.raises(OutputError, match=r"is not a review, but that is where the review of captions\.jsonl is kept"):
        Review(path)
    with pytest.raises(InputError, match=r"is not a review; name the \.review file"):
        read_review(path, "--reviewed")
    assert path.read_text() == content


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "cache")
    assert review_of(Path("x/captions.jsonl")) == Path("x/captions.jsonl.review")
    assert review_of(Path()) == tmp_path / "cache.review"


def records_of(actions: list[Action], *captions: str) -> tuple[list[tuple[str, ...]], Reviewed]:
    words: dict[str, dict[str | None, Action]] = {}
    for action in actions:
        words.setdefault(action.id, {})[action.caption] = action
    reviewed = Reviewed(words, unknown=set(words))
    return [record.captions for record in reviewed.apply([ImageRecord("1", "a.jpg", captions)])], reviewed


@pytest.mark.parametrize(
    ("actions", "captions", "found", "counts"),
    [
        ([], ("x", "y"), [("x", "y")], (0, 0, 0)),
        ([Action("a.jpg", "edit", "z")], ("x", "y"), [("z",)], (1, 0, 0)),
        ([Action("1", "accept", "y")], ("x", "y"), [("y",)], (0, 0, 0)),
        ([Action("1", "accept", "other")], ("x", "y"), [("x", "y")], (0, 0, 0)),
        ([Action("1", "reject")], ("x", "y"), [], (0, 0, 1)),
        ([Action("1", "edit", "z", "y"), Action("1", "accept", "x", "x")], ("x", "y"), [("x", "z")], (1, 0, 0)),
        ([Action("1", "reject", None, "y")], ("x", "y"), [("x",)], (0, 1, 0)),
        ([Action("1", "reject", None, "x"), Action("1", "reject", None, "y")], ("x", "y"), [], (0, 0, 1)),
        ([Action("1", "edit", "y", "x"), Action("1", "edit", "z", "y")], ("x",), [("z",)], (1, 0, 0)),
        ([Action("1", "edit", "y", "x"), Action("1", "edit", "x", "y")], ("x",), [("x",)], (0, 0, 0)),
        ([Action("2", "reject")], ("x",), [("x",)], (0, 0, 0)),
    ],
)
def test_captions_with_a_persons_word(
    actions: list[Action], captions: tuple[str, ...], found: list[tuple[str, ...]], counts: tuple[int, int, int]
) -> None:
    given, reviewed = records_of(actions, *captions)
    assert given == found
    assert (reviewed.edited, reviewed.dropped, reviewed.rejected) == counts
    assert reviewed.unknown == {action.id for action in actions if action.id == "2"}
