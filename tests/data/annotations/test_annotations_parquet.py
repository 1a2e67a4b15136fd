from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from reading import Reader


def write(file: Path, columns: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def images(*pairs: tuple[bytes | None, str | None] | None) -> list:
    return [None if pair is None else {"bytes": pair[0], "path": pair[1]} for pair in pairs]


def rows(reader: Reader, name: str = "d.parquet", **options: object) -> list[tuple]:
    return [(r.image_id, r.captions, r.split, r.data) for r in reader(name, **options)]  # type: ignore[arg-type]


def test_a_row_per_image(reader: Reader, tmp_path: Path) -> None:
    write(
        tmp_path / "d.parquet",
        {"image": images((b"A", "a.jpg"), (b"B", "b b.JPG")), "captions": [["x", " "], ["y", "z"]]},
    )
    assert rows(reader) == [("a.jpg", ("x",), None, b"A"), ("b b.JPG", ("y", "z"), None, b"B")]
    assert (reader.set.format, reader.set.images) == ("parquet", None)


def test_a_row_per_caption(reader: Reader, tmp_path: Path) -> None:
    """One name is one image only where the bytes agree: names in containers have lost their folders."""
    pairs = [(b"A", "0.jpg"), (b"B", "1.jpg"), (b"A", "0.jpg"), (b"C", "0.jpg"), (b"B", "2.jpg")]
    write(tmp_path / "d.parquet", {"image": images(*pairs), "text": ["x", "y", "z", "other", "w"]})
    assert rows(reader) == [
        ("0.jpg", ("x", "z"), None, b"A"),
        ("1.jpg", ("y",), None, b"B"),
        ("0.jpg~2", ("other",), None, b"C"),
        ("2.jpg", ("w",), None, b"B"),
    ]
    assert reader.notes == ["different images with the same name renamed: 1 (0.jpg~2)"]


def test_images_without_names(reader: Reader, tmp_path: Path) -> None:
    write(
        tmp_path / "d.parquet", {"image": images((b"A", None), (b"B", None), (b"A", None)), "caption": ["x", "y", "z"]}
    )
    assert rows(reader) == [("00000000", ("x", "z"), None, b"A"), ("00000001", ("y",), None, b"B")]
    write(tmp_path / "d.parquet", {"jpg": pa.array([b"A", b"B"]), "caption_1": ["y", "z"], "caption_0": ["x", None]})
    assert rows(reader) == [("00000000", ("x", "y"), None, b"A"), ("00000001", ("z",), None, b"B")]
    write(tmp_path / "d.parquet", {"image": pa.array([b"A"]), "filename": ["f.jpg"], "caption": ["x"]})
    assert rows(reader) == [("f.jpg", ("x",), None, b"A")]


def test_rows_without_an_image_stay_to_be_rejected(reader: Reader, tmp_path: Path) -> None:
    write(tmp_path / "d.parquet", {"image": images((b"A", "a.jpg"), (None, "b.jpg"), None), "caption": ["x", "y", "z"]})
    assert rows(reader) == [
        ("a.jpg", ("x",), None, b"A"),
        ("b.jpg", ("y",), None, b""),
        ("00000002", ("z",), None, b""),
    ]


def test_names_lead_nowhere(reader: Reader, tmp_path: Path) -> None:
    write(tmp_path / "d.parquet", {"image": images((b"A", "/etc/a.jpg"), (b"B", "../b.jpg")), "caption": ["x", "y"]})
    assert [r[0] for r in rows(reader)] == ["a.jpg", "b.jpg"]
    assert reader.notes == ["image names that lead out of the folder shortened: 2 (/etc/a.jpg, ../b.jpg)"]


def test_file_names_for_images(reader: Reader, tmp_path: Path) -> None:
    write(tmp_path / "d.parquet", {"image": ["s/a.jpg", "b.jpg", "s/a.jpg"], "caption": ["x", "y", "z"]})
    assert rows(reader) == [("s/a.jpg", ("x", "z"), None, None), ("b.jpg", ("y",), None, None)]
    assert reader.set.images == tmp_path / "Images"


def test_splits(reader: Reader, tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        data = name.encode()
        write(tmp_path / "d" / "data" / f"{name}.parquet", {"image": images((data, "0.jpg")), "caption": ["x"]})
    got = [(image_id, split) for image_id, _, split, _ in rows(reader, "d")]
    assert got == [("test/0.jpg", "test"), ("train/0.jpg", "train"), ("train/0.jpg~2", "train"), ("validation/0.jpg", "validation")]  # fmt: skip
    write(
        tmp_path / "d.parquet",
        {"image": images((b"A", "a"), (b"B", "b")), "caption": ["x", "y"], "split": ["restval", None]},
    )
    assert [r[2] for r in rows(reader)] == ["train", None]


def test_many_rows_come_in_order(reader: Reader, tmp_path: Path) -> None:
    names = [f"{i % 700}.jpg" for i in range(2100)]
    write(
        tmp_path / "d.parquet",
        {"image": images(*((n.encode(), n) for n in names)), "caption": [str(i) for i in range(2100)]},
    )
    assert rows(reader) == [
        (f"{i}.jpg", (str(i), str(i + 700), str(i + 1400)), None, f"{i}.jpg".encode()) for i in range(700)
    ]


def test_mistakes(reader: Reader, tmp_path: Path) -> None:
    write(tmp_path / "d.parquet", {"caption": ["x"]})
    assert reader.error("d.parquet").startswith("d.parquet: no column of images (`image`) among its columns caption;")
    write(tmp_path / "d.parquet", {"image": images((b"A", "a")), "label": [1]})
    assert reader.error("d.parquet").startswith(
        "d.parquet: no column of captions (`caption`) among its columns image, label;"
    )
    write(tmp_path / "d.parquet", {"image": images((b"A", "a")), "caption": [1]})
    assert reader.error("d.parquet").startswith("d.parquet: the captions of row 0 are neither text nor a list of it;")
    whole = (tmp_path / "d.parquet").read_bytes()
    assert reader.error("d.parquet", whole[:-20]).startswith("d.parquet: not a readable Parquet file (")
    (tmp_path / "e").mkdir()
    assert reader.error("e", format="parquet").startswith("e: no .parquet file in it;")
    for name, column in (("a", "caption"), ("b", "text")):
        write(tmp_path / "f" / f"{name}.parquet", {"image": images((b"A", "a")), column: ["x"]})
    assert reader.error("f").startswith("f/b.parquet: has other columns than a.parquet;")
