from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

from reading import Reader


def write(folder: Path, texts: dict[str, str | bytes]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def test_texts_beside_images(reader: Reader, touch: Callable[..., None], tmp_path: Path) -> None:
    touch(
        "d/a.jpg", "d/b b.JPG", "d/sub/a.jpg", "d/c.png", "d/c.jpg", "d/x.1.jpg", "d/x.2.jpg", "d/alone.webp", "d/e.gif"
    )
    write(tmp_path / "d", {
        "a.txt": "\ufeffone\r\n\r\n  two \r\n", "b b.caption": "three", "sub/a.txt": "four\n", "c.jpg.txt": "five",
        "c.png.txt": "six", "x.1.txt": "seven", "x.2.txt": "eight", "readme.txt": "nothing", "e.txt": " \n",
    })  # fmt: skip
    assert reader.captions("d") == {
        "a.jpg": ["one", "two"],
        "b b.JPG": ["three"],
        "c.jpg": ["five"],
        "c.png": ["six"],
        "sub/a.jpg": ["four"],
        "x.1.jpg": ["seven"],
        "x.2.jpg": ["eight"],
    }
    assert (reader.set.format, reader.set.images) == ("sidecar", tmp_path / "d")
    assert reader.notes == [
        "images without a caption left out: 2 (alone.webp, e.gif)",
        "texts without an image: 1 (readme.txt)",
    ]


def test_texts_in_a_folder_of_their_own(reader: Reader, touch: Callable[..., None], tmp_path: Path) -> None:
    touch("Images/a.jpg", "Images/sub/b.jpg")
    write(tmp_path / "texts", {"a.txt": "x", "sub/b.txt": "y"})
    assert reader.captions("texts") == {"a.jpg": ["x"], "sub/b.jpg": ["y"]}
    assert reader.set.images == tmp_path / "Images"


def test_composed_and_decomposed_names(reader: Reader, touch: Callable[..., None], tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "gr\u00fcn") for form in ("NFC", "NFD"))
    touch(f"d/{decomposed}.jpg")
    write(tmp_path / "d", {f"{composed}.txt": "x"})
    assert reader.captions("d") == {f"{decomposed}.jpg": ["x"]}


def test_folders_are_splits(reader: Reader, touch: Callable[..., None], tmp_path: Path) -> None:
    touch("d/train/a.jpg", "d/valid/a.jpg", "d/more/a.jpg")
    write(tmp_path / "d", {f"{split}/a.txt": "x" for split in ("train", "valid", "more")})
    assert [(r.path, r.split) for r in reader("d")] == [
        ("more/a.jpg", None),
        ("train/a.jpg", "train"),
        ("valid/a.jpg", "validation"),
    ]


def test_mistakes(reader: Reader, touch: Callable[..., None], tmp_path: Path) -> None:
    touch("d/a.jpg")
    write(tmp_path / "d", {"a.txt": b"good\ncaf\xe9"})
    assert reader.error("d").startswith(
        "d/a.txt: line 2 is not UTF-8 (byte 0xe9); convert the file with `iconv -f cp1252"
    )
    assert reader.error("d/a.txt", format="sidecar").startswith("d/a.txt: is not a folder; name the folder")
    write(tmp_path / "texts", {"a.txt": "x"})
    assert reader.error("texts").endswith("Images: no such file or folder; name images, folders or a glob in quotes.")
