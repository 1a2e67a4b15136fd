"""Image names that lead to no file: found where there is one way for all, else told with the nearest name there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from reading import Reader

Touch = Callable[..., None]


def found(reader: Reader, names: list[str]) -> list[str]:
    """The paths that the names become."""
    text = "image,caption\n" + "".join(f'"{name}",said\n' for name in names)
    records = reader("c.csv", text)
    assert [record.image_id for record in records] == names  # what captions are reported under stays
    return [record.path for record in records]


@pytest.mark.parametrize(
    ("names", "files", "note"),
    [
        (["Images/1.jpg", "Images/2.jpg"], ["1.jpg", "2.jpg"],
         "without the folder Images/: 2 (Images/1.jpg is 1.jpg, Images/2.jpg is 2.jpg)"),
        (["x/Images/a/1.jpg", "x/Images/b/2.jpg"], ["a/1.jpg", "b/2.jpg"],
         "without the folder x/Images/: 2 (x/Images/a/1.jpg is a/1.jpg, x/Images/b/2.jpg is b/2.jpg)"),
        # the same, though a folder of small copies has them too
        (["Images/1.jpg", "Images/2.jpg"], ["1.jpg", "2.jpg", "small/1.jpg"],
         "without the folder Images/: 2 (Images/1.jpg is 1.jpg, Images/2.jpg is 2.jpg)"),
        (["C:\\data\\Images\\1.jpg", "C:\\data\\Images\\2.jpg"], ["1.jpg", "2.jpg"],
         "without the folder C:/data/Images/: 2 (C:\\data\\Images\\1.jpg is 1.jpg, C:\\data\\Images\\2.jpg is 2.jpg)"),
        (["/kaggle/input/x/1.jpg"], ["1.jpg"], "without the folder kaggle/input/x/: 1 (/kaggle/input/x/1.jpg is 1.jpg)"),
        (["../Images/1.jpg"], ["1.jpg"], "without the folder Images/: 1 (../Images/1.jpg is 1.jpg)"),
        (["../1.jpg"], ["1.jpg"], "without ../: 1 (../1.jpg is 1.jpg)"),
        (["1.jpg", "2.jpg"], ["train/1.jpg", "train/2.jpg"],
         "in the folder train/: 2 (1.jpg is train/1.jpg, 2.jpg is train/2.jpg)"),
        (["1.jpg", "2.jpg"], ["train/1.jpg", "val/2.jpg"],
         "in the folders there: 2 (1.jpg is train/1.jpg, 2.jpg is val/2.jpg)"),
        (["a/1.jpg", "b/2.jpg"], ["1.jpg", "2.jpg"], "by their last part: 2 (a/1.jpg is 1.jpg, b/2.jpg is 2.jpg)"),
        (["IMG_1.JPG", "IMG_2.JPG"], ["img_1.jpg", "img_2.jpg"],
         "in other upper and lower case: 2 (IMG_1.JPG is img_1.jpg, IMG_2.JPG is img_2.jpg)"),
        (["1", "2.5"], ["1.jpg", "2.5.png"], "with a suffix: 2 (1 is 1.jpg, 2.5 is 2.5.png)"),
        (["D:\\IMG\\A", "D:\\IMG\\B"], ["x/img/a.jpg", "x/img/b.jpg"],
         "without the folder D:/, in the folder x/, in other upper and lower case, with a suffix: 2 "
         "(D:\\IMG\\A is x/img/a.jpg, D:\\IMG\\B is x/img/b.jpg)"),
        # decomposed on disk
        (["Images/caf\u00e9.jpg"], ["cafe\u0301.jpg"],
         "without the folder Images/: 1 (Images/caf\u00e9.jpg is cafe\u0301.jpg)"),
    ],
)  # fmt: skip
def test_one_way_for_all(reader: Reader, touch: Touch, names: list[str], files: list[str], note: str) -> None:
    touch(*(f"Images/{file}" for file in files))
    assert found(reader, names) == files[: len(names)]
    assert reader.notes == [f"image names found {note}"]


def test_what_is_there_stays(reader: Reader, touch: Touch) -> None:
    touch("Images/1.jpg", "Images/B.jpg", "Images/sub/1.jpg")
    assert found(reader, ["1.jpg", "b.jpg", "sub/1.jpg", "./1.jpg"][:3]) == ["1.jpg", "B.jpg", "sub/1.jpg"]
    assert reader.notes == ["image names found in other upper and lower case: 1 (b.jpg is B.jpg)"]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["1.jpg"], ["a/1.jpg", "b/1.jpg"]),  # two files
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"]),  # two names
        (["x.JPG"], ["X.jpg", "x.jpg"]),
        (["1"], ["1.jpg", "1.png"]),
        (["a/1.jpg", "1.jpg"], ["1.jpg"]),  # the file is another's
        (["a/1.jpg", "a/2.jpg"], ["a/1.jpg", "2.jpg"]),  # its folder is there, so that it is just missing
        (["Images/1.jpg", "2.png"], ["1.jpg", "2.jpg"]),  # two ways
        (["1.jpg.png"], ["1.jpg"]),
        (["a/../1.jpg"], ["1.jpg"]),
        (["Images/1.jpg", "a/../2.jpg"], ["1.jpg", "2.jpg"]),
    ],
)
def test_no_guess(reader: Reader, touch: Touch, names: list[str], files: list[str]) -> None:
    touch(*(f"Images/{file}" for file in files))
    assert found(reader, names) == names
    assert reader.notes == []


def test_one_in_twenty_may_stay_lost(reader: Reader, touch: Touch) -> None:
    touch(*(f"Images/{n}.jpg" for n in range(1, 40)))
    names = [f"x/{n}.jpg" for n in range(40)]
    assert found(reader, names) == ["x/0.jpg", *(f"{n}.jpg" for n in range(1, 40))]
    assert reader.notes == [
        "image names found without the folder x/: 39 (x/1.jpg is 1.jpg, x/2.jpg is 2.jpg, x/3.jpg is 3.jpg, ...)"
    ]
    assert reader.set.notes.nearest == {}  # another number is another image
    for n in (5, 6):
        (reader.images / f"{n}.jpg").unlink()
    assert found(reader, names) == names


def test_names_never_lead_outside(reader: Reader, touch: Touch) -> None:
    touch("secret.jpg", "Images/other/1.png")
    names = ["../secret.jpg", str(reader.folder / "secret.jpg"), "x/../../secret.jpg"]
    assert found(reader, names) == names


def test_nearest_names(reader: Reader, touch: Touch) -> None:
    touch("Images/dog_001.jpg", "Images/b/cat-2.jpg", "Images/zebra.png", "Images/dog_2.jpg")
    found(reader, ["dog-1.jpg", "a/cat_2.jpg", "dog_3.jpg"])
    assert reader.set.notes.nearest == {"dog-1.jpg": "dog_001.jpg", "a/cat_2.jpg": "b/cat-2.jpg"}


def test_the_folder_is_listed_only_if_a_name_is_lost(
    reader: Reader, touch: Touch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toolkit.data.annotations.names

    listed = []
    real = toolkit.data.annotations.names.image_names
    monkeypatch.setattr(toolkit.data.annotations.names, "image_names", lambda root: listed.append(root) or real(root))
    touch("Images/1.jpg", "Images/2.jpg")
    assert found(reader, ["1.jpg", "2.jpg"]) == ["1.jpg", "2.jpg"]
    assert listed == []
    assert found(reader, ["1.jpg", "2.JPG"]) == ["1.jpg", "2.jpg"]
    assert listed == [reader.images]
    monkeypatch.setattr(toolkit.data.annotations.names, "LARGEST_LISTING", 1)
    monkeypatch.setattr(toolkit.data.annotations.names, "image_names", lambda root: iter(["x.jpg"] * 99))
    assert found(reader, ["1.jpg", "2.JPG"]) == ["1.jpg", "2.JPG"]


# ---- formats that did not obey --images -----------------------------------------------------------------------------


def test_imagefolder(reader: Reader, touch: Touch) -> None:
    """Beside the metadata, or below --images where more of the names lead to files."""
    rows = "file_name,text\n1.jpg,x\n2.jpg,x\n"
    touch("set/1.jpg", "set/2.jpg", "Images/1.jpg")
    reader("set/metadata.csv", rows)
    assert reader.set.images == reader.folder / "set"
    touch("Images/2.jpg")
    for source in ("set/metadata.csv", "set"):
        reader(source)
        assert reader.set.images == reader.images
    for name in ("1", "2"):
        (reader.images / f"{name}.jpg").rename(reader.images / f"{name}.JPG")
        (reader.folder / f"set/{name}.jpg").unlink()
    assert [record.path for record in reader("set/metadata.csv")] == ["1.JPG", "2.JPG"]
    touch("Images/train/3.jpg", "Images/val/4.jpg")
    reader("tree/train/metadata.csv", "file_name,text\n3.jpg,x\n")
    reader("tree/val/metadata.csv", "file_name,text\n4.jpg,x\n")
    assert [(r.path, r.split) for r in reader("tree")] == [("train/3.jpg", "train"), ("val/4.jpg", "validation")]
    assert reader.set.images == reader.images


def test_a_saved_set_of_names(reader: Reader, touch: Touch) -> None:
    import datasets

    touch("Images/1.jpg", "Images/2.jpg")
    columns = {"image": ["data/1.jpg", "data/2.jpg"], "caption": ["x", "y"]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(reader.folder / "saved"))
    assert [(r.path, r.captions, r.data) for r in reader("saved")] == [("1.jpg", ("x",), None), ("2.jpg", ("y",), None)]
    assert reader.set.images == reader.images
    part = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(reader.folder / "splits"))
    assert "data/1.jpg is in two splits (train and test)" in reader.error("splits")


def test_parquet_of_names(reader: Reader, touch: Touch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    touch("Images/1.jpg", "Images/2.jpg")
    table = pa.table({"image": ["../Images/1.jpg", "../Images/2.jpg"], "caption": ["x", "y"]})
    pq.write_table(table, reader.folder / "names.parquet")
    assert [(r.path, r.data) for r in reader("names.parquet")] == [("1.jpg", None), ("2.jpg", None)]
    assert reader.set.images == reader.images
