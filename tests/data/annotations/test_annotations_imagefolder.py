from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from reading import Reader


def test_csv_with_repeated_rows(reader: Reader, tmp_path: Path) -> None:
    text = '\ufefffile_name,text\r\na.jpg,"x, y"\r\nsub/b b.JPG,z\r\na.jpg,again\r\n'
    assert reader.captions("data/metadata.csv", text) == {"a.jpg": ["x, y", "again"], "sub/b b.JPG": ["z"]}
    assert (reader.set.format, reader.set.images) == ("imagefolder", tmp_path / "data")
    assert reader.captions("data") == {"a.jpg": ["x, y", "again"], "sub/b b.JPG": ["z"]}
    assert (reader.set.format, reader.set.images) == ("imagefolder", tmp_path / "data")


def test_caption_columns(reader: Reader) -> None:
    rows = [
        {"file_name": "a.jpg", "caption_10": "k", "caption_2": "c", "caption_0": "a", "id": 3},
        {"file_name": "b.jpg", "captions": ["x", " ", "y"]},
        {"file_name": "c.jpg", "caption": "z", "other": "no"},
        {"file_name": "d.jpg", "caption_0": "one", "caption_1": None},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert reader.captions("data/metadata.jsonl", text) == {
        "a.jpg": ["a", "c", "k"],
        "b.jpg": ["x", "y"],
        "c.jpg": ["z"],
        "d.jpg": ["one"],
    }


def test_folders_are_splits(reader: Reader, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "metadata.jsonl").write_text('{"file_name": "0.jpg", "text": "x"}\n')
    assert [(r.image_id, r.split) for r in reader("data")] == [
        ("test/0.jpg", "test"),
        ("train/0.jpg", "train"),
        ("val/0.jpg", "validation"),
    ]


def test_one_metadata_file_over_folders(reader: Reader) -> None:
    text = "file_name,caption\ntrain/a.jpg,x\ntest/b.jpg,y\nother/c.jpg,z\n"
    assert [(r.path, r.split) for r in reader("metadata.csv", text)] == [
        ("train/a.jpg", "train"),
        ("test/b.jpg", "test"),
        ("other/c.jpg", None),
    ]
    alone = "file_name,caption\ntest/b.jpg,y\nother/c.jpg,z\n"
    assert {r.split for r in reader("metadata.csv", alone)} == {None}
    column = "file_name,caption,split\ntest/b.jpg,y,train\n"
    assert [r.split for r in reader("metadata.csv", column)] == ["train"]


def test_parquet(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"file_name": ["a.jpg", "b.jpg"], "captions": [["x", "y"], ["z"]]})
    pq.write_table(table, tmp_path / "data" / "metadata.parquet")
    assert reader.captions("data") == {"a.jpg": ["x", "y"], "b.jpg": ["z"]}
    assert reader.set.format == "imagefolder"


def test_mistakes(reader: Reader, tmp_path: Path) -> None:
    assert reader.error("metadata.csv", "file_name,label\na.jpg,3\n").startswith(
        "metadata.csv: its first line has no columns file_name and caption (but file_name, label); "
    )
    assert reader.captions("metadata.csv", "file_name,text,n\na.jpg,x,y,1\nb.jpg,y,2\n") == {"b.jpg": ["y"]}
    assert list(reader.set.notes.unusable) == [(2, "4 fields for 3 columns", "a.jpg")]
    rows = '{"file_name": "a.jpg", "text": 7}\n{"text": "x"}\n{"file_name"\n{"file_name": "b.jpg", "text": "y"}\n'
    assert reader.captions("metadata.jsonl", rows) == {"b.jpg": ["y"]}
    assert list(reader.set.notes.unusable) == [
        (1, "no caption: its keys are file_name, text", "a.jpg"),
        (2, "no file_name: its keys are text", None),
        (3, "broken JSON (Expecting ':' delimiter)", None),
    ]
    (tmp_path / "bare").mkdir()
    assert reader.error("bare", format="imagefolder").startswith("bare: no metadata.csv, metadata.jsonl or ")
    (tmp_path / "broken").mkdir()
    assert reader.error("broken/metadata.parquet", b"PAR1xxxx").startswith("broken/metadata.parquet: not a readable")
