from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reading import Reader

from toolkit.records import ImageRecord


def test_kaggles_file(reader: Reader) -> None:
    text = (
        "image,caption\n"
        "1000268201_693b08cb0e.jpg,A child in a pink dress is climbing up a set of stairs in an entry way .\n"
        "1000268201_693b08cb0e.jpg,A girl going into a wooden building .\n"
        '1001773457_577c3a7d70.jpg,"A black dog and a white dog, on the road , "\n'
        '1001773457_577c3a7d70.jpg,"A sign says ""stop"" , and ""go"""\n'
        '1001773457_577c3a7d70.jpg,a "quoted" word\n'
        '1001773457_577c3a7d70.jpg,"two\nlines"\n'
    )
    assert reader("captions.txt", text) == [
        ImageRecord(
            "1000268201_693b08cb0e.jpg",
            "1000268201_693b08cb0e.jpg",
            (
                "A child in a pink dress is climbing up a set of stairs in an entry way .",
                "A girl going into a wooden building .",
            ),
        ),
        ImageRecord(
            "1001773457_577c3a7d70.jpg",
            "1001773457_577c3a7d70.jpg",
            (
                "A black dog and a white dog, on the road ,",
                'A sign says "stop" , and "go"',
                'a "quoted" word',
                "two\nlines",
            ),
        ),
    ]
    assert (reader.set.format, reader.set.images, reader.notes) == ("flickr8k", reader.images, [])


def test_bom_and_crlf_change_nothing(reader: Reader) -> None:
    text = 'image,caption\na.jpg,"x, y"\nb b.jpg,"two\nlines"\ngr\u00fcn.jpg,\u732b\n'
    want = {"a.jpg": ["x, y"], "b b.jpg": ["two\nlines"], "gr\u00fcn.jpg": ["\u732b"]}
    assert reader.captions("captions.txt", text) == want
    assert reader.captions("captions.txt", "\ufeff" + text.replace("\n", "\r\n")) == want


def test_what_is_counted(reader: Reader) -> None:
    text = (
        "image,caption\na.jpg, said \na.jpg,   \nb.jpg,\n./a.jpg,again\na.jpg,said\nc.jpg,one, two\n,nobody\n"
        "\nd.jpg\nb c.jpg,x\n"
    )
    assert reader.captions("captions.txt", text) == {
        "a.jpg": ["said", "again", "said"],
        "c.jpg": ["one, two"],
        "b c.jpg": ["x"],
    }
    assert reader.notes == [
        "rows that can't be used: 2 (line 8: no image name; line 10: 1 field for 2 columns)",
        "blank captions dropped: 2 (a.jpg, b.jpg)",
        "repeated captions of an image kept: 1 (a.jpg)",
        "rows with unquoted commas repaired: 1 (line 7)",
        "images without a caption left out: 1 (b.jpg)",
    ]
    assert list(reader.set.notes.unusable) == [(8, "no image name", None), (10, "1 field for 2 columns", "d.jpg")]


def test_other_columns_and_delimiters(reader: Reader) -> None:
    assert reader.captions("c.tsv", "caption\timage\nx, y\ta.jpg\n") == {"a.jpg": ["x, y"]}
    assert reader.captions("c.csv", "image_name;comment_number;comment\na.jpg;0;x\n") == {"a.jpg": ["x"]}
    assert reader.captions("c.csv", "image,caption_1,caption_0\na.jpg,x,y\n") == {"a.jpg": ["y", "x"]}
    records = reader("c.csv", "image,caption,split\na.jpg,x,train\nb.jpg,y,val\nb.jpg,z,dev\nc.jpg,z,\n")
    assert [(r.path, r.split) for r in records] == [("a.jpg", "train"), ("b.jpg", "validation"), ("c.jpg", None)]


def test_mistakes(reader: Reader) -> None:
    assert reader.error("no.txt") == "no.txt: no such file or folder; name your annotations with --annotations."
    assert (
        reader.error("captions.txt", b"") == "captions.txt: the file is empty; give an annotation file with at least "
        "one image."
    )
    assert reader.error("captions.txt", "\ufeff \n\r\n").startswith("captions.txt: the file is empty;")
    assert reader.error("captions.txt", "image,caption\n") == (
        "captions.txt: names no image with a caption; give an annotation file with at least one."
    )
    assert reader.error("captions.txt", "file,words\na.jpg,x\n").startswith(
        "captions.txt: not recognised as annotations"
    )
    assert reader.error("captions.txt", "a.jpg,x\n", format="flickr8k") == (
        "captions.txt: its first line has no columns image and caption (but a.jpg, x); write them above the rows, or "
        "name those it has with --image-column and --caption-column."
    )
    assert reader.error("c.csv", "image,caption,n\na.jpg,x,y,0\n") == (
        "c.csv: names no image with a caption (line 2: 4 fields for 3 columns); give an annotation file with at least one."
    )
    broken = reader.error("captions.txt", 'image,caption\na.jpg,x\nb.jpg,"never closed\nc.jpg,y\n')
    assert broken.startswith("captions.txt: the row at line 3 has a broken quotation (unexpected end of data); ")
    unknown = reader.error("c.csv", "image,caption,split\na.jpg,x,train2\n")
    assert unknown.startswith("c.csv: a.jpg is in split 'train2', which is unknown; use ")
    assert reader.error("captions.txt", format="xml").startswith("--format xml: no such format; choose one of auto, ")


@pytest.mark.parametrize(
    "data", ["image,caption\na.jpg,x\nb.jpg,caf\u00e9\n".encode(code) for code in ("cp1252", "utf-16")]
)
def test_other_encodings_are_named_not_guessed(data: bytes, reader: Reader) -> None:
    message = reader.error("captions.txt", data)
    if data[0] == 0xFF:
        assert message.startswith(
            "captions.txt: line 1 is not UTF-8 (byte 0xff); convert the file with `iconv -f utf-16 "
        )
    else:
        assert message == (
            "captions.txt: line 3 is not UTF-8 (byte 0xe9); convert the file with `iconv -f cp1252 -t utf-8 captions.txt"
            " > new-captions.txt`, if that is its encoding, and name the new one."
        )


def test_utf16_without_bom(reader: Reader) -> None:
    message = reader.error("captions.txt", "image,caption\na.jpg,x\n".encode("utf-16-le"), format="flickr8k")
    assert message.startswith(
        "captions.txt: line 1 holds zero bytes, so this is not UTF-8; convert the file with `iconv"
    )


def test_a_folder(reader: Reader, touch: Callable[..., None], tmp_path: Path) -> None:
    """A folder with one annotation file and its images is as good as the file."""
    reader.images = Path("Images")
    touch("set/Images/a.jpg")
    (tmp_path / "set/captions.txt").write_text("image,caption\na.jpg,x\n")
    assert reader.captions("set") == {"a.jpg": ["x"]}
    assert (reader.set.format, reader.set.images) == ("flickr8k", tmp_path / "set" / "Images")
    assert reader.captions("set", format="flickr8k") == {"a.jpg": ["x"]}
    assert reader.error("set", format="coco") == "set: is a folder; name the one annotation file that you mean."
    (tmp_path / "set/more.csv").write_text("image,caption\na.jpg,x\n")
    assert reader.error("set") == (
        "set: holds 2 annotation files (captions.txt, more.csv); name the one annotation file that you mean."
    )
    (tmp_path / "empty").mkdir()
    assert reader.error("empty").startswith("empty: no captions of a known format in this folder")


LISTS = {"train": "x.jpg\nsub/y.jpg\n", "validation": "\ufeffv\r\n\r\n", "test": "t.jpg\nghost.jpg\n"}


def test_lists(reader: Reader, tmp_path: Path) -> None:
    lists = {split: tmp_path / f"{split}.list" for split in LISTS}
    for split, file in lists.items():
        file.write_text(LISTS[split], newline="")
    text = "image,caption,split\n" + "".join(
        f"{n},said,test\n" for n in ("x.jpg", "sub/y.jpg", "v.jpg", "f/t.jpg", "o.jpg")
    )
    records = reader("c.csv", text, lists=lists)
    assert [(r.path, r.split) for r in records] == [
        ("x.jpg", "train"),
        ("sub/y.jpg", "train"),
        ("v.jpg", "validation"),
        ("f/t.jpg", "test"),
        ("o.jpg", None),
    ]
    assert reader.notes == [
        "images in no list, left out: 1 (o.jpg)",
        "names in a list that no image has: 1 (ghost.jpg)",
    ]
    lists["test"].write_text("t.jpg\nx.jpg\n")
    assert reader.error("c.csv", text, lists=lists) == (
        "test.list: x.jpg is in the train list too; leave it in one of them."
    )
    lists["test"].write_text("x\n")
    assert reader.error("c.csv", text, lists=lists).startswith("x.jpg is in two lists, as x.jpg and as x;")
    assert reader.error("c.csv", text, lists={"test": tmp_path / "no"}).startswith("no: no such file;")


def test_lists_beside_the_file(reader: Reader, tmp_path: Path) -> None:
    for word, name in (("train", "a.jpg"), ("dev", "b.jpg"), ("test", "c.jpg")):
        (tmp_path / f"Flickr_8k.{word}Images.txt").write_text(f"{name}\n")
    records = reader("captions.txt", "image,caption\na.jpg,x\nb.jpg,x\nc.jpg,x\nd.jpg,x\n")
    assert [r.split for r in records] == ["train", "validation", "test", None]
    assert reader.notes == [
        "splits taken from Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt, Flickr_8k.testImages.txt beside captions.txt",
        "images in no list, left out: 1 (d.jpg)",
    ]
