"""What a command may write, and what it may replace."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.errors import OutputError
from toolkit.runtime.overwrite import Output, check_folder, is_page, page_mark, same_place


def page(kind: str, text: str = "") -> str:
    return f"<!doctype html>\n<head>{page_mark(kind)}</head>\n<body>{text}</body>"


def write(output: Output, text: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    with output.writing() as temporary:
        temporary.write_text(text)
        meanwhile()


def raises(error: BaseException) -> Callable[..., None]:
    def it(*_: object, **__: object) -> None:
        raise error

    return it


def test_what_is_ours_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    write(Output("--per-image", path), "one")
    write(Output("--per-image", path), "two")
    assert path.read_text() == "two"
    path.write_text("two, and notes of mine")
    with pytest.raises(
        OutputError, match=r"^--per-image .*figures.csv: exists and is not .* add --overwrite to replace it.$"
    ):
        Output("--per-image", path)
    assert path.read_text() == "two, and notes of mine"
    write(Output("--per-image", path, overwrite=True), "three")
    write(Output("--per-image", path), "four")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures.csv", "figures.csv.state"]


def test_a_page_is_known_by_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for text in ("", "mine", page("gallery"), f"mine, on {page('evaluation')}", page("x", page_mark("evaluation"))):
        path.write_text(text)
        with pytest.raises(OutputError, match="exists and is not"):
            Output("--page", path, ours=is_page("evaluation"))
        assert path.read_text() == text
    path.write_text(page("evaluation", "old"))
    write(Output("--page", path, ours=is_page("evaluation")), page("evaluation", "new"))
    assert path.read_text() == page("evaluation", "new")
    assert list(tmp_path.iterdir()) == [path]


def test_an_input_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "references.csv"
    write(Output("--x", table), "ours, even")
    (tmp_path / "sub").mkdir()
    os.link(table, tmp_path / "hard.csv")
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (table, Path("references.csv"), Path("sub/../references.csv"), Path("hard.csv"), Path("link/hard.csv")):
        with pytest.raises(OutputError, match="is an input of this command"):
            Output("--per-image", path, inputs=[None, "gpt2", table], overwrite=True)
    assert table.read_text() == "ours, even"
    # a file of an input folder: ours is replaced, a foreign one is not, whatever is asked for
    write(Output("--x", table, inputs=[tmp_path]), "again")
    (tmp_path / "sub" / "notes.csv").write_text("mine")
    with pytest.raises(OutputError, match=f"is a file of {tmp_path}, which this command reads"):
        Output("--x", Path("link/sub/notes.csv"), inputs=[tmp_path], overwrite=True)
    # two outputs of one name, of which neither is there yet
    with pytest.raises(OutputError, match="or another output"):
        Output("--x", Path("sub/new.csv"), inputs=[tmp_path / "sub" / "NEW.csv"])


def test_letter_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where A.csv and a.csv are one file, they are one input: the file system says so."""
    one, other = tmp_path / "A.csv", tmp_path / "a.csv"
    one.write_text("1")
    other.write_text("2")
    assert not same_place(one, other)
    real = os.stat
    monkeypatch.setattr("os.stat", lambda path, *a, **k: real(one if path == other else path, *a, **k))
    assert same_place(one, other)


def test_no_file_to_write(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "folder": "is a folder", "link": "is a link", "pipe": "is not a regular file", "nothing/x": "there is no folder",
        "x" * 300: "can't be written (File name too long)",
    }  # fmt: skip
    for name, why in cases.items():
        with pytest.raises(OutputError, match=re.escape(why)) as error:
            Output("--page", tmp_path / name, overwrite=True)
        assert str(error.value).startswith(f"--page {tmp_path / name}: ")
    assert not os.path.lexists(tmp_path / "target")


def test_another_s_state_file(tmp_path: Path) -> None:
    state = tmp_path / "x.csv.state"
    for text in ("mine", "[]", json.dumps({"toolkit output": 1})):
        state.write_text(text)
        with pytest.raises(OutputError, match=r"needs x[.]csv[.]state beside it, which toolkit did not write"):
            Output("--x", tmp_path / "x.csv", overwrite=True)
        assert state.read_text() == text


def test_a_file_put_there_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(OutputError, match="exists and is not"):
        write(Output("--x", path), "ours", lambda: path.write_text("mine"))
    assert path.read_text() == "mine"
    write(Output("--x", path, overwrite=True), "ours", lambda: path.write_text("mine"))
    assert path.read_text() == "ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.csv", "x.csv.state"]


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(KeyboardInterrupt):
        write(Output("--x", path), "half", raises(KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match=r"--x .*x.csv: can't be written \(No space left on device\)"):
        write(Output("--x", path), "half", raises(OSError(28, "No space left on device")))
    assert list(tmp_path.iterdir()) == []
    write(Output("--x", path), "first")  # a kill between the state and the file: both contents are known
    with monkeypatch.context() as patch:
        patch.setattr("os.link", raises(SystemExit()))
        with pytest.raises(SystemExit):
            write(Output("--x", path), "second")
    assert path.read_text() == "first"
    write(Output("--x", path), "third")


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", raises(PermissionError(1, "Operation not permitted")))
    path = tmp_path / "x.csv"
    write(Output("--x", path), "one")
    before = path.stat()
    write(Output("--x", path), "one")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    write(Output("--x", path), "two")
    assert path.read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.csv", "x.csv.state"]


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home", tmp_path / "work" / "here"
    for folder in (home, work, tmp_path / "data" / "Images"):
        folder.mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(work)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    cases = {
        "/": "holds the working folder", ".": "is the working folder", "..": "holds the working folder",
        str(tmp_path / "link"): "is the working folder", str(home): "is your home folder",
        str(tmp_path / "file"): "is a file", str(tmp_path / "nowhere"): "is a link that leads nowhere",
        str(tmp_path / "data" / "Images"): "is an input", str(tmp_path / "data"): "holds .*Images, which this command reads",
    }  # fmt: skip
    for name, why in cases.items():
        with pytest.raises(OutputError, match=why):
            check_folder("--out", Path(name), ["gpt2", None, tmp_path / "data" / "Images"])
    check_folder("--out", Path("new"), [tmp_path / "data" / "Images"])
    check_folder("--out", tmp_path / "data" / "Images" / "new", [tmp_path / "data" / "Images"])
