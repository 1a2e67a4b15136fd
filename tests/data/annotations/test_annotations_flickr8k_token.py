from __future__ import annotations

from collections.abc import Callable

from reading import Reader

from toolkit.data.annotations import Columns


def test_the_original_file(reader: Reader, touch: Callable[..., None]) -> None:
    touch("Images/1000268201_693b08cb0e.jpg")
    text = (
        "1000268201_693b08cb0e.jpg#0\tA child in a pink dress .\n"
        "1000268201_693b08cb0e.jpg#1\tA girl with sign #2 and a tab\there .\r\n"
        "2258277193_586949ec62.jpg.1#0\tpeople waiting at a crosswalk\n"
        "a#1.jpg#0\tHashes in a name\n"
        "1000268201_693b08cb0e.jpg#0\tA child in a pink dress .\n"
        "1000268201_693b08cb0e.jpg#2\tA child in a pink dress .\n"
        "1000268201_693b08cb0e.jpg#3\t \n"
    )
    assert reader.captions("Flickr8k.token.txt", text) == {
        "1000268201_693b08cb0e.jpg": [
            "A child in a pink dress .",
            "A girl with sign #2 and a tab\there .",
            "A child in a pink dress .",
        ],
        "2258277193_586949ec62.jpg.1": ["people waiting at a crosswalk"],
        "a#1.jpg": ["Hashes in a name"],
    }
    assert reader.set.format == "flickr8k-token"
    assert reader.notes == [
        "duplicate rows dropped: 1 (1000268201_693b08cb0e.jpg)",
        "repeated captions of an image kept: 1 (1000268201_693b08cb0e.jpg)",
        "blank captions dropped: 1 (1000268201_693b08cb0e.jpg)",
    ]


def test_names_without_a_suffix(reader: Reader, touch: Callable[..., None]) -> None:
    touch("Images/1000_a.jpg", "Images/1001_b.PNG")
    text = "1000_a#0\tx\n1000_a#1\ty\n1001_b#0\tz\n1002_c#0\tno such image\n"
    assert reader.captions("Flickr8k.lemma.token.txt", text) == {
        "1000_a.jpg": ["x", "y"],
        "1001_b.PNG": ["z"],
        "1002_c": ["no such image"],
    }
    assert reader.notes == ["names without a suffix completed: 2 (1000_a.jpg, 1001_b.PNG)"]


def test_lists_beside_the_file(reader: Reader, touch: Callable[..., None]) -> None:
    touch("Images/a.jpg", "Images/b.jpg")
    (reader.folder / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    (reader.folder / "Flickr_8k.testImages.txt").write_text("b.jpg\n")
    records = reader("Flickr8k.token.txt", "a#0\tx\nb#0\ty\n")
    assert [(r.path, r.split) for r in records] == [("a.jpg", "train"), ("b.jpg", "test")]


def test_mistakes(reader: Reader) -> None:
    assert reader.captions("t.txt", "no number\na.jpg#0\tx\n") == {"a.jpg": ["x"]}
    assert list(reader.set.notes.unusable) == [(1, "not `name.jpg#0<tab>caption`", None)]
    assert reader.error("t.txt", format="flickr8k-token", columns=Columns(captions=("x",))) == (
        "--caption-column x: t.txt has the format flickr8k-token, which has no columns; leave the option out."
    )
    assert "line 2 is not UTF-8 (byte 0xe9)" in reader.error("t.txt", "a.jpg#0\tx\na.jpg#1\t\u00e9\n".encode("cp1252"))
