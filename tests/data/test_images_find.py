"""Which files are images, and which file a name means."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from toolkit.data import images
from toolkit.data.images import LARGEST_FILE, read_file, resolve_image
from toolkit.data.sources import find_images
from toolkit.errors import ImageError, InputError
from toolkit.runtime import shelf

# ---- finding --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, params=["in memory", "on the disk"])
def _where_names_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "on the disk":
        monkeypatch.setattr(shelf, "ENTRIES", 1)
        monkeypatch.setattr(shelf, "CHUNK", 2)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "A.JPG", "notes.txt", ".hidden.jpg", "sub/c.Png", "sub/deep/d e.webp", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(*paths: str | Path, recursive: bool = True) -> list[str]:
    return [image.name for image in find_images(paths, recursive)]


def test_finding(tree: Path) -> None:
    everything = ["A.JPG", "b.jpg", "sub/c.Png", "sub/deep/d e.webp"]
    assert names(tree) == everything
    assert names(tree, recursive=False) == ["A.JPG", "b.jpg"]
    assert names(tree / "b.jpg", tree) == everything  # the same file is not twice in the answer
    assert names(tree / "notes.txt") == ["notes.txt"]  # named by hand: to be tried, and rejected with a reason
    assert names(f"{tree}/*.jpg") == ["b.jpg"]
    assert names(f"{tree}/**/*.[Pw]*") == ["sub/c.Png", "sub/deep/d e.webp"]
    assert names(f"{tree}/su*") == ["sub/c.Png", "sub/deep/d e.webp"]
    assert names(f"{tree}/*") == everything
    assert names(f"{tree}/*", recursive=False) == ["A.JPG", "b.jpg", "sub/c.Png"]
    assert [image.path for image in find_images([str(tree / "sub")])] == [
        tree / "sub/c.Png",
        tree / "sub/deep/d e.webp",
    ]


def test_order(tmp_path: Path) -> None:
    """That of names, then of folders: by code point, also where a name is not UTF-8."""
    for folder in ("one", "two"):
        for name in ("a/x.jpg", "a-b/x.jpg", "a.jpg", os.fsdecode(b"b\xff.jpg"), "b\uffff.jpg", "\U0001f600.jpg"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"x")
    given = [tmp_path / "two", tmp_path / "one", tmp_path / "one" / "a"]
    found = find_images(given)
    assert [image.root for image in found] == given[1::-1] * 6
    assert list(found) == sorted(found, key=lambda image: (image.name, str(image.root)))
    assert len(found) == len({image.path for image in found}) == 12


def test_a_name_with_brackets_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].jpg").write_bytes(b"x")
    assert names(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_links_between_folders(tree: Path) -> None:
    os.symlink(tree, tree / "sub" / "up")
    os.symlink(tree / "sub", tree / "a-link-to-sub")
    os.symlink(tree / "b.jpg", tree / "z.jpg")
    assert names(tree) == ["A.JPG", "b.jpg", "sub/c.Png", "sub/deep/d e.webp", "z.jpg"]
    elsewhere = tree.parent / f"{tree.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jpg").write_bytes(b"x")
    os.symlink(elsewhere, tree / "there")
    assert "there/far.jpg" in names(tree)


def test_nothing_found(tmp_path: Path) -> None:
    for given, words in (
        (tmp_path / "no", "no such file"),
        (tmp_path, "no image here"),
        (f"{tmp_path}/*.jpg", "no such"),
    ):
        with pytest.raises(InputError, match=words) as error:
            find_images([given])
        assert str(error.value).startswith(str(given))


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_become_files(tree: Path) -> None:
    assert resolve_image(tree, "sub/deep/d e.webp") == tree / "sub/deep/d e.webp"
    assert resolve_image(tree, "sub\\c.Png") == tree / "sub/c.Png"
    composed, decomposed = (unicodedata.normalize(form, "gr\u00fcn.jpg") for form in ("NFC", "NFD"))
    (tree / decomposed).write_bytes(b"x")
    assert resolve_image(tree, composed) == tree / decomposed
    (tree / composed).write_bytes(b"x")
    assert resolve_image(tree, composed) == tree / composed
    os.symlink(tree / "b.jpg", tree / "link.jpg")
    assert resolve_image(tree, "link.jpg") == tree / "link.jpg"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "not a file name"),
        ("a\0.jpg", "not a file name"),
        ("\ud800.jpg", "not a file name"),
        ("no.jpg", "missing"),
        ("b.jpg/x", "not a directory"),
        ("dangling.jpg", "dangling link"),
        ("/etc/passwd", "leads outside the images folder"),
        ("../x.jpg", "leads outside the images folder"),
        ("sub/../../x.jpg", "leads outside the images folder"),
        ("sub\\..\\..\\x.jpg", "leads outside the images folder"),
    ],
)
def test_names_that_become_none(tree: Path, name: str, why: str) -> None:
    os.symlink("nowhere", tree / "dangling.jpg")
    (tree.parent / "x.jpg").write_bytes(b"x")
    with pytest.raises(ImageError) as error:
        resolve_image(tree, name)
    assert str(error.value) == why


def test_read_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / "b.jpg"
    state = path.stat()
    assert read_file(path) == (path.read_bytes(), (state.st_size, state.st_mtime_ns))
    (tree / "empty.jpg").touch()
    assert read_file(tree / "empty.jpg").data == b""
    # What is read counts, not the size of a moment before: files grow and shrink while others write them.
    real = os.fstat
    for content in (b"longer than before", b"x", b""):

        def changing(descriptor: int, content: bytes = content) -> os.stat_result:
            state = real(descriptor)
            path.write_bytes(content)
            return state

        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", changing)
            assert read_file(path).data == content


def test_what_is_no_regular_file_is_not_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it took the file's place between the look and the opening; a pipe would then wait for ever."""
    os.mkfifo(tree / "pipe.jpg")
    (tree / "zero.jpg").symlink_to("/dev/zero")
    with open(tree / "huge.jpg", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    for look in (images.check_file, lambda path: None):
        monkeypatch.setattr(images, "check_file", look)
        for name, reason in (
            ("pipe.jpg", "not a regular file"),
            ("zero.jpg", "not a regular file"),
            ("huge.jpg", "too large: a file of 1073741825 bytes"),
            ("none.jpg", "missing"),
            ("", "not a regular file"),
        ):
            with pytest.raises(ImageError, match=reason):
                read_file(tree / name)


def test_a_file_that_grows_without_end(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_FILE", 100)
    monkeypatch.setattr(os, "read", lambda descriptor, n: bytes(n))
    with pytest.raises(ImageError, match="too large: a file of 101 bytes"):
        read_file(tree / "b.jpg")
