"""Lists of splits, as every format takes them: which image goes where."""

from __future__ import annotations

from pathlib import Path

from reading import Reader

OWN = "image,caption,split\na.jpg,x,train\nb.jpg,x,val\nc.jpg,x,test\nd.jpg,x,test\n"


def splits(reader: Reader, tmp_path: Path, **lists: str) -> str:
    """The first letters of the splits of a, b, c and d; "-" for none."""
    files = {}
    for split, names in lists.items():
        files[split] = tmp_path / f"{split}.list"
        files[split].write_text(names)
    return "".join((record.split or "-")[0] for record in reader("own.csv", OWN, lists=files))


def test_a_source_with_splits_of_its_own(reader: Reader, tmp_path: Path) -> None:
    assert splits(reader, tmp_path, train="a.jpg\nc.jpg\n", test="b.jpg\n") == "ttt-"
    assert splits(reader, tmp_path, validation="a.jpg\n") == "vttt"
    assert reader.notes == ["images of the source's own validation split in no list, taken for train: 1 (b.jpg)"]
    assert [record.split for record in reader("own.csv", lists={"test": tmp_path / "test.list"})] == [
        "train", "test", "train", "train",
    ]  # fmt: skip
    assert reader.notes == ["images of the source's own test split in no list, taken for train: 2 (c.jpg, d.jpg)"]
    assert [record.split for record in reader("own.csv", lists={"validation": tmp_path / "validation.list"})][2:] == [
        "test", "test",
    ]  # fmt: skip


def test_windows_names_in_annotations(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "test.list").write_text("b.jpg\n")
    text = "image,caption\nC:\\data\\a.jpg,x\nC:\\data\\b.jpg,x\n"
    assert [r.split for r in reader("w.csv", text, lists={"test": tmp_path / "test.list"})] == ["train", "test"]


def test_lists_beside_that_belong_to_others(reader: Reader, tmp_path: Path) -> None:
    """Those of the whole set may lie beside a part of it; those of another set are an error."""
    for word, name in (("train", "a.jpg"), ("dev", "other.jpg")):
        (tmp_path / f"Flickr_8k.{word}Images.txt").write_text(f"{name}\n")
    records = reader("captions.txt", "image,caption\na.jpg,x\nb.jpg,x\n")
    assert [r.split for r in records] == ["train", None]
    assert reader.notes[1:] == [
        "images in no list, left out: 1 (b.jpg)",
        "names in a list that no image has: 1 (other.jpg)",
    ]
    assert reader.error("captions.txt", "image,caption\nc.jpg,x\n") == (
        "Flickr_8k.trainImages.txt: none of the names in it (1) is an image of captions.txt, whose images are called "
        "c.jpg, not a.jpg; name the list that belongs to these images."
    )
