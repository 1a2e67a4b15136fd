"""Forms that people's files have: other names, other delimiters, lists in cells, JSON of other shapes; each exactly."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reading import Reader

from toolkit.data.annotations import Columns
from toolkit.data.annotations._csv import read_csv

AB = {"a.jpg": ["A dog, a cat .", "Two pets ."], "b.jpg": ["A bird ."]}


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\na.jpg,"[""A dog, a cat ."", ""Two pets .""]"\nb.jpg,"[""A bird .""]"\n',
        "image,caption\na.jpg,\"['A dog, a cat .', 'Two pets .']\"\nb.jpg,['A bird .']\n",
        "image,caption\na.jpg,\"['A dog, a cat .'\n 'Two pets .']\"\nb.jpg,['A bird .']\n",  # numpy's array
        'image;caption\na.jpg;["A dog, a cat .", "Two pets ."]\nb.jpg;A bird .\n',
        'image, caption\na.jpg, "A dog, a cat ."\na.jpg, Two pets .\nb.jpg, "A bird ."\n',
        'image|caption\na.jpg | A dog, a cat .\na.jpg|"Two pets ."\nb.jpg| A bird .\n',
        "\ufeffsep=;\r\nimage;caption\r\na.jpg;A dog, a cat .\r\na.jpg;Two pets .\r\nb.jpg;A bird .\r\n",
        'image,caption\ra.jpg,"A dog, a cat ."\ra.jpg,Two pets .\rb.jpg,A bird .\r',
        'image_path,text\na.jpg,"A dog, a cat ."\na.jpg,Two pets .\nb.jpg,A bird .\n',
        "filepath\ttitle\na.jpg\tA dog, a cat .\na.jpg\tTwo pets .\nb.jpg\tA bird .\n",
        'filename,text\na.jpg,"A dog, a cat ."\na.jpg,Two pets .\nb.jpg,A bird .\n',
        'Filename,Description\na.jpg,"A dog, a cat ."\na.jpg,Two pets .\nb.jpg,A bird .\n',
        'en_caption,image\n"A dog, a cat .",a.jpg\nTwo pets .,a.jpg\nA bird .,b.jpg\n',
        'image,caption,size\na.jpg,"A dog, a cat .",3\na.jpg,Two pets .\nb.jpg,A bird .,,,\n,,\n,,,\n',
    ],
)
def test_tables(text: str, reader: Reader) -> None:
    assert reader.captions("c.txt", text) == AB
    assert (reader.set.format, reader.set.images, reader.notes) == ("flickr8k", reader.images, [])


@pytest.mark.parametrize(
    "text", ['file_name;text\na.jpg;"x; y"\n', "sep=;\nfile_name;text\na.jpg;'x; y'\n".replace("'", '"')]
)
def test_semicolons_in_metadata(text: str, reader: Reader) -> None:
    assert reader.captions("d/metadata.csv", text) == {"a.jpg": ["x; y"]}
    assert reader.captions("d") == {"a.jpg": ["x; y"]}
    assert reader.set.format == "imagefolder"


def test_quotes_and_brackets_that_are_part_of_a_caption(reader: Reader) -> None:
    text = 'image,caption\na.jpg, "sit" he says\na.jpg,[a dog]\na.jpg,["x", y]\nb.jpg, "one", two\nb.jpg, "a\nb"\n'
    assert reader.captions("c.csv", text) == {
        "a.jpg": ['"sit" he says', "[a dog]", '["x", y]'],
        "b.jpg": ['"one", two', "a\nb"],
    }
    assert reader.notes == ["rows with unquoted commas repaired: 2 (line 4, line 5)"]


def test_what_the_csv_module_writes_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(300):
        delimiter, end = rng.choice(",\t;|"), rng.choice(["\n", "\r\n", "\r"])
        rows = [["".join(rng.choices("ab \"\n,;|\t'[]", k=rng.randint(0, 8))) for _ in range(3)] for _ in range(5)]
        with open(tmp_path / "c.csv", "w", newline="") as file:
            quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL  # which leaves a line feed bare there
            csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
        found = [[field.strip() for field in row] for _, row in read_csv(tmp_path / "c.csv", delimiter)]
        assert found == [[field.strip() for field in row] for row in rows]


def test_rows_of_the_wrong_length(reader: Reader) -> None:
    text = "image,caption,split\na.jpg,x,train\nb.jpg,x, y,train\nc.jpg,z\nd.jpg,,\n\ne.jpg,w,test\n"
    assert reader.captions("c.csv", text) == {"a.jpg": ["x"], "e.jpg": ["w"]}
    assert list(reader.set.notes.unusable) == [
        (3, "4 fields for 3 columns", "b.jpg"),
        (4, "2 fields for 3 columns", "c.jpg"),
    ]
    assert reader.notes[0] == (
        "rows that can't be used: 2 (line 3: 4 fields for 3 columns; line 4: 2 fields for 3 columns)"
    )


def test_many_unusable_rows_are_kept_on_disk(reader: Reader) -> None:
    reader("c.csv", "image,caption\na.jpg,x\n" + "b.jpg\n" * 30_000)
    unusable = reader.set.notes.unusable
    assert unusable._file._rolled
    rows = list(unusable)
    assert (len(rows), unusable.count) == (30_000, 30_000)
    assert (rows[0], rows[-1]) == ((3, "1 field for 2 columns", "b.jpg"), (30_002, "1 field for 2 columns", "b.jpg"))


def test_a_caption_beyond_the_csv_modules_limit(reader: Reader) -> None:
    long = "dog, " * 40_000 + "end"
    assert reader.captions("c.csv", f'image,caption\na.jpg,"{long}"\n') == {"a.jpg": [long]}


LINES_OF_TEXT = "one\u2028still\x0bone\x0cyes\x85it is\ntwo\r\nthree\rfour"


def test_only_line_ends_end_a_line(reader: Reader, touch: Callable[..., None]) -> None:
    touch("d/a.jpg")
    (reader.folder / "d/a.txt").write_bytes(LINES_OF_TEXT.encode())
    assert reader.captions("d") == {"a.jpg": ["one\u2028still\x0bone\x0cyes\x85it is", "two", "three", "four"]}
    assert reader.captions("c.csv", "image,caption\na.jpg,x\u2028y\n") == {"a.jpg": ["x\u2028y"]}
    assert reader.captions("c.jsonl", '{"image": "a.jpg", "caption": "x\u2028y"}\n') == {"a.jpg": ["x\u2028y"]}


# ---- JSON -----------------------------------------------------------------------------------------------------------

ROWS = [{"image": name, "caption": captions} for name, captions in AB.items()]
TALK = [
    {"id": "7", "image": name, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": c}]}
    for name, captions in AB.items() for c in captions
]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        AB,
        {**AB, "b.jpg": "A bird ."},
        {name: {"captions": captions, "size": 3} for name, captions in AB.items()},
        [{"file_name": name, "caption": captions} for name, captions in AB.items()],
        [{"meta": {"id": 1}, "box": [{"x": 1}], "caption": captions, "image": name} for name, captions in AB.items()],
        {"version": "1.0", "data": ROWS},
        {"info": {"about": "x" * 100_000}, "annotations": ROWS},
        {"images": [{"file_name": name, "id": 1, "captions": captions} for name, captions in AB.items()]},
        TALK,
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_json(value: object, indent: int | None, reader: Reader) -> None:
    assert reader.captions("c.json", json.dumps(value, indent=indent)) == AB
    assert (reader.set.format, reader.set.images, reader.notes) == ("lavis", reader.images, [])


def test_json_lines_by_content(reader: Reader) -> None:
    lines = "\n".join(json.dumps({"note": "x" * 70_000, **row}) for row in ROWS)
    for name in ("c.json", "c.txt", "c.jsonl"):
        assert reader.captions(name, lines) == AB
        assert reader.set.format == "lavis"
    assert reader.captions("c.txt", json.dumps(ROWS[1])) == {"b.jpg": ["A bird ."]}
    assert reader.captions("d/c.json", lines.replace('"image"', '"file_name"')) == AB
    assert reader.set.format == "imagefolder"
    assert reader.captions("c.txt", json.dumps(ROWS)) == AB  # a list in a file of any name


def test_conversations(reader: Reader) -> None:
    talk: list[dict[str, Any]] = [
        {"image": "a.jpg", "conversations": [*TALK[0]["conversations"], *TALK[2]["conversations"]]},
        {"conversations": TALK[0]["conversations"]},
        {"image": "b.jpg", "conversations": [{"from": "human", "value": "?"}]},
    ]
    assert reader.captions("c.json", json.dumps(talk)) == {"a.jpg": ["A dog, a cat ."]}
    assert reader.notes == [
        "rows that can't be used: 1 (line 1: no caption: its keys are image, conversations)",
        "images whose further questions and answers are left out: 1 (a.jpg)",
        "conversations without an image left out: 1",
    ]


def test_detection_looks_beyond_what_stands_first(reader: Reader) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}]
    said = [{"image_id": 1, "id": 2, "caption": "x"}]
    licenses = [{"id": i, "name": "y" * 100} for i in range(1000)]
    coco = {"info": {"contributor": "z" * 70_000}, "licenses": licenses, "annotations": said, "images": images}
    assert reader.captions("c.json", json.dumps(coco)) == {"a.jpg": ["x"]}
    assert reader.set.format == "coco"
    image = {"sentids": list(range(20_000)), "split": "train", "sentences": [{"raw": "x"}], "filename": "a.jpg"}
    assert reader.captions("c.json", json.dumps({"dataset": "d", "images": [image]})) == {"a.jpg": ["x"]}
    assert reader.set.format == "karpathy"
    assert reader.captions("c.json", json.dumps([{"image": "a.jpg"}, *ROWS[1:]])) == {"b.jpg": ["A bird ."]}
    assert reader.captions("t.txt", "broken\na.jpg#0\tx\nb.jpg#0\ty\n") == {"a.jpg": ["x"], "b.jpg": ["y"]}
    assert reader.set.format == "flickr8k-token"


# ---- columns that the user names ------------------------------------------------------------------------------------

NAMED = Columns("pic", ("words", "more"), "part", (("eval", "validation"), ("fit", "train")))
WANT = [("a.jpg", ("x", "X"), "validation"), ("b.jpg", ("y",), "train")]


def found(reader: Reader, name: str, content: str | None = None, **options: Any) -> list[tuple]:
    columns = options.pop("columns", None) or Columns(NAMED.image, NAMED.captions, NAMED.split, NAMED.split_map)
    return [(r.path, r.captions, r.split) for r in reader(name, content, columns=columns, **options)]


OBJECTS = [
    {"pic": "a.jpg", "caption": "no", "words": "x", "more": ["X"], "part": "eval"},
    {"pic": "b.jpg", "caption": "no", "words": "y", "more": None, "part": "fit"},
]


def test_named_columns(reader: Reader) -> None:
    table = "pic,caption,words,more,part\na.jpg,no,x,X,eval\nb.jpg,no,y,,fit\n"
    assert found(reader, "c.csv", table) == WANT
    assert found(reader, "d/metadata.csv", table.replace(",", ";")) == WANT
    assert found(reader, "d") == WANT
    lines = "".join(json.dumps(row) + "\n" for row in OBJECTS)
    assert found(reader, "e/metadata.jsonl", lines) == WANT
    assert reader.set.format == "imagefolder"
    assert found(reader, "c.jsonl", lines) == WANT
    assert found(reader, "c.json", json.dumps(OBJECTS)) == WANT
    assert found(reader, "c.json", json.dumps({"rows": OBJECTS})) == WANT
    upper = Columns("PIC", ("Words", "MORE"), "Part", NAMED.split_map)
    assert found(reader, "c.csv", table, columns=upper) == found(reader, "c.jsonl", lines, columns=upper) == WANT
    assert reader.set.format == "lavis"


def test_named_keys_of_coco_and_karpathy(reader: Reader) -> None:
    images = [{"id": i, "file_name": "no", "pic": row["pic"], "part": row["part"]} for i, row in enumerate(OBJECTS)]
    said = [{"image_id": i, "caption": "no", "words": r["words"], "more": r["more"]} for i, r in enumerate(OBJECTS)]
    assert found(reader, "c.json", json.dumps({"images": images, "annotations": said})) == WANT
    assert reader.set.format == "coco"
    results = [{"image_id": 3, "caption": "no", "words": "x", "more": "X", "pic": "a.jpg"}]
    columns = Columns("pic", ("words", "more"))
    assert found(reader, "r.json", json.dumps(results), columns=columns) == [("a.jpg", ("x", "X"), None)]
    karpathy = {"images": [{**row, "filename": "no", "sentences": []} for row in OBJECTS]}
    assert found(reader, "k.json", json.dumps(karpathy)) == WANT
    assert reader.set.format == "karpathy"


def test_named_columns_of_parquet(reader: Reader) -> None:
    rows = [
        {**row, "pic": {"bytes": b"x", "path": row["pic"]}, "image": {"bytes": b"y", "path": "no"}} for row in OBJECTS
    ]
    rows[1]["more"] = []
    rows[0]["more"] = ["X"]
    pq.write_table(pa.Table.from_pylist(rows), reader.folder / "c.parquet")
    assert found(reader, "c.parquet") == WANT
    assert [record.data for record in reader("c.parquet", columns=Columns("pic", ("words",)))] == [b"x", b"x"]
    named = [{"jpg": {"bytes": b"x", "path": None}, "txt": "said", "__key__": "0"}]
    pq.write_table(pa.Table.from_pylist(named), reader.folder / "w.parquet")
    assert [(r.captions, r.data) for r in reader("w.parquet")] == [(("said",), b"x")]
    pq.write_table(pa.Table.from_pylist([{"file_name": "a.jpg", "text": "x"}]), reader.folder / "n.parquet")
    assert reader.captions("n.parquet") == {"a.jpg": ["x"]}
    assert reader.set.images == reader.images
    pq.write_table(pa.Table.from_pylist([{"image": 3, "text": "x"}]), reader.folder / "i.parquet")
    assert reader.error("i.parquet", columns=Columns(image="image")) == (
        "--image-column image: in i.parquet it is of type int64; name a column of images or of their names."
    )


def test_flickr30k_has_columns_too(reader: Reader) -> None:
    text = "image_name| comment_number| comment\na.jpg| 0| x\n"
    assert reader.captions("r.csv", text, columns=Columns(captions=("comment",))) == {"a.jpg": ["x"]}
    assert reader.error("r.csv", text, columns=Columns(captions=("text",))) == (
        "--caption-column text: r.csv has no such column, but image_name, comment_number, comment; name one of these."
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "image,caption\na.jpg,x\n"),
        ("metadata.csv", "file_name,text\na.jpg,x\n"),
        ("c.json", json.dumps(ROWS)),
        ("c.jsonl", json.dumps(ROWS[0])),
        ("coco.json", json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]})),
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", ["image", "caption", "split"])
def test_a_column_that_isnt_there(option: str, name: str, content: str, reader: Reader) -> None:
    columns = {"image": Columns("ghost"), "caption": Columns(captions=("ghost",)), "split": Columns(split="ghost")}[
        option
    ]
    message = reader.error(name, content, columns=columns)
    assert message.startswith(f"--{option}-column ghost: {name} has no such column, but ")
    assert "caption" in message or "text" in message


def test_named_columns_tell_the_file_in_a_folder(reader: Reader, touch: Callable[..., None]) -> None:
    touch("set/Images/a.jpg")
    reader.images = Path("Images")
    (reader.folder / "set/README.txt").write_text("Read me, please.\n")
    (reader.folder / "set/config.json").write_text('{"pic": [1]}')
    for name, text in (("captions.txt", "pic;words\na.jpg;x\n"), ("captions.json", '[{"pic": "a.jpg", "words": "x"}]')):
        (reader.folder / "set" / name).write_text(text)
        assert found(reader, "set", columns=Columns("pic", ("words",))) == [("a.jpg", ("x",), None)]
        assert reader.set.images == reader.folder / "set/Images"
        (reader.folder / "set" / name).unlink()


def test_splits_by_other_names(reader: Reader, touch: Callable[..., None]) -> None:
    text = "image,caption,split\na.jpg,x,train\nb.jpg,y,eval\n"
    assert reader.error("c.csv", text) == (
        "c.csv: b.jpg is in split 'eval', which is unknown; use train, val or test (or restval, dev), or say what it is "
        "with --split-map eval=validation."
    )
    columns = Columns(split_map=(("eval", "validation"),))
    assert [r.split for r in reader("c.csv", text, columns=columns)] == ["train", "validation"]
    touch("d/train/a.jpg", "d/eval/a.jpg")
    for split in ("train", "eval"):
        (reader.folder / f"d/{split}/a.txt").write_text("x")
    assert [r.split for r in reader("d", columns=columns)] == ["validation", "train"]
    assert reader.error("c.csv", text.replace("eval", "val"), columns=Columns(split_map=(("evla", "test"),))) == (
        "--split-map evla=test: c.csv has no split evla; name one that it has."
    )
    assert reader.error("d", columns=Columns(image="x")).startswith(
        "--image-column x: d has the format sidecar, which "
    )


# ---- what is none ---------------------------------------------------------------------------------------------------


def test_what_cant_be_read_is_named(reader: Reader) -> None:
    def said(name: str, content: str | bytes, **options: Any) -> str:
        return reader.error(name, content, **options).removeprefix(f"{name}: ")

    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for name in ("captions.txt", "x.parquet", "x.tar"):
        assert "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`." in said(name, pointer)
    assert said("c.csv", pointer, format="flickr8k").startswith("is a Git LFS pointer")
    for name in ("f/train-0.parquet", "g/train-0.tar", "g2/train-0.tar.gz"):
        reader.error(name, pointer)
        assert "train-0" in (message := reader.error(name.split("/")[0]))
        assert "is a Git LFS pointer, not the file itself; " in message
    assert said("c.csv", "<!DOCTYPE html>\n<html><body>404</body>").startswith("is an HTML page, as a failed download")
    assert said("c.csv", b"PK\x03\x04" + b"\0" * 30).startswith("is an archive (zip); unpack it")
    assert said("c.xlsx", b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml").startswith("is an Excel workbook")
    assert said("c.csv", b"\x1f\x8b\x08\0" + b"x" * 99).startswith("is an archive (gzip); unpack it")
    Image.new("RGB", (4, 4)).save(reader.folder / "p.png")
    assert said("p.txt", (reader.folder / "p.png").read_bytes()).startswith("is an image; name the file that holds")
    assert said("c.json", '{"name": "x", "version": {"a": 1}}') == (
        "is a JSON object with the keys name, version, which do not name images and captions; name those of image and "
        "captions with --image-column and --caption-column, or see docs/formats.md."
    )
    assert said("c.json", '[{"url": "http://x", "words": "y"}]').startswith(
        "is JSON whose objects have the keys url, words"
    )
    assert said("c.json", "[1, 2]") == "is a JSON list without objects in it; give one {...} per image."
    assert said("c.json", '{"a": 1,,}').startswith("broken JSON at line 1, column 9")
    assert said("c.txt", "just some words\nof text\n") == (
        "not recognised as annotations: a table needs a first line `image,caption`, and this one begins with `just some "
        "words`; give its column names with --image-column and --caption-column, or see docs/formats.md for other formats."
    )


# ---- encodings ------------------------------------------------------------------------------------------------------

ENCODED = {
    "cp949": ["개 한 마리가 잔디밭을 달린다 .", "고양이가 소파에 앉아 있다", "두 남자가 이야기하고 있다"],
    "cp932": ["犬が草の上を走っている。", "赤い服を着た子供が笑う", "コーヒーを飲む男性", "黒い犬"],
    "euc-jp": ["犬が草の上を走っている。", "男性二人が話している"],
    "gb18030": ["一只狗在草地上奔跑。", "红色的汽车停在路边", "雪地上的白色小狗", "两个男人在说话"],
    "big5": ["一隻狗在草地上奔跑。", "紅色的汽車停在路邊", "雪地上的白色小狗", "兩個男人在說話"],
    "cp1252": ["café", "Ein Mädchen läuft über die Straße .", "Un niño pequeño — ¿por qué?", "“A dog” – it’s running"],
    "cp1250": ["Dziewczyna idzie przez ulicę, żółty samochód", "Malý pes běží přes louku"],
    "cp1251": ["собака бежит по траве", "Кошка"],
    "cp1253": ["ένας σκύλος τρέχει"],
    "cp1254": ["Küçük bir çocuk gülüyor, ağaç ışık"],
}


@pytest.mark.parametrize(("code", "caption"), [(code, caption) for code, said in ENCODED.items() for caption in said])
def test_encodings_are_told_by_their_bytes(code: str, caption: str, reader: Reader) -> None:
    message = reader.error("captions.txt", f"image,caption\na.jpg,A dog .\nb.jpg,{caption}\n".encode(code))
    assert message.startswith("captions.txt: line 3 is not UTF-8 (byte 0x")
    assert f"`iconv -f {code} -t utf-8 captions.txt > new-captions.txt`, if that is its encoding, and" in message


def test_one_line_that_is_not_utf8_among_others_that_are(reader: Reader) -> None:
    text = "image,caption\r\na.jpg,na\u00efve\r\n".encode() + "b.jpg,caf\u00e9\r\n".encode("cp1252")
    assert reader.error("captions.txt", text) == (
        "captions.txt: line 3 is not UTF-8 (byte 0xe9), though other lines are; write that line again in UTF-8 (by itself "
        "it looks like cp1252)."
    )
    assert Path(reader.folder / "captions.txt").exists()
