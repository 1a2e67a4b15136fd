from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from reading import Reader


def pack(file: Path, members: list[tuple[str, bytes | str]], mode: str = "w") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def rows(reader: Reader, name: str) -> list[tuple]:
    return [(r.image_id, r.captions, r.split, r.data) for r in reader(name)]


MEMBERS: list[tuple[str, bytes | str]] = [
    ("000.jpg", b"A"),
    ("000.txt", "\ufeffone\r\ntwo\n"),
    ("000.json", json.dumps({"caption": "one\ntwo", "width": 3})),
    ("001.JPG", b"B"),
    ("001.json", json.dumps({"text": ["x", " "], "split": "val"})),
    ("./sub/b b.1.png", b"C"),
    ("./sub/b b.1.txt", "y\nz"),
    ("late.txt", "came first"),
    ("late.webp", b"D"),
    ("alone.jpg", b"E"),
    ("readme.txt", "nobody's"),
]


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tgz", "w:gz")])
def test_a_tar(name: str, mode: str, reader: Reader, tmp_path: Path) -> None:
    pack(tmp_path / name, MEMBERS, mode)
    assert rows(reader, name) == [
        ("000.jpg", ("one\ntwo",), None, b"A"),
        ("001.JPG", ("x",), "validation", b"B"),
        ("sub/b b.1.png", ("y", "z"), None, b"C"),
        ("late.webp", ("came first",), None, b"D"),
    ]
    assert (reader.set.format, reader.set.images) == ("webdataset", None)
    assert reader.notes == [
        "blank captions dropped: 1 (001.JPG)",
        "images without a caption left out: 1 (alone.jpg)",
        "texts without an image: 1 (readme.txt)",
    ]


def test_a_folder_of_tars(reader: Reader, tmp_path: Path) -> None:
    for name in ("train-0000.tar", "train-0001.tar", "val-0000.tar"):
        pack(tmp_path / "d" / name, [("0.jpg", name), ("0.txt", "x")])
    assert [(r.image_id, r.split) for r in reader("d")] == [
        ("train-0000/0.jpg", "train"),
        ("train-0001/0.jpg", "train"),
        ("val-0000/0.jpg", "validation"),
    ]


def test_members_lead_nowhere(reader: Reader, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("../up.jpg", "/etc/abs.jpg", "a/../../up.jpg", "ok.jpg", "ok.txt", "ok.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        for name, kind in (("sym.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert rows(reader, "s.tar") == [("ok.jpg", ("x",), None, b"x")]
    assert reader.notes == [
        "tar members whose names lead outside passed over: 3 (../up.jpg, /etc/abs.jpg, a/../../up.jpg)",
        "tar members of a name already taken passed over: 1 (ok.jpg)",
        "links and special files in tars passed over: 3 (sym.jpg, hard.jpg, dev.jpg)",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"]


def test_mistakes(reader: Reader, tmp_path: Path) -> None:
    pack(tmp_path / "s.tar", [("0.jpg", b"x" * 2000), ("0.txt", "x")])
    whole = (tmp_path / "s.tar").read_bytes()
    assert reader.error("s.tar", whole[:1500]).startswith("s.tar: not a whole tar (")
    assert reader.error("t.tar", b"no tar at all" * 99).startswith("t.tar: not a whole tar (")
    pack(tmp_path / "s.tar.gz", [("0.jpg", b"x" * 2000), ("0.txt", "x")], "w:gz")
    assert reader.error("s.tar.gz", (tmp_path / "s.tar.gz").read_bytes()[:60]).startswith("s.tar.gz: not a whole tar (")
    pack(tmp_path / "s.tar", [("0.jpg", b"x"), ("0.json", '{"caption"'), ("1.jpg", b"y"), ("1.txt", "z")])
    assert rows(reader, "s.tar") == [("1.jpg", ("z",), None, b"y")]
    assert list(reader.set.notes.unusable) == [(None, "broken JSON (Expecting ':' delimiter)", "s.tar:0.json")]
    pack(tmp_path / "s.tar", [("0.jpg", b"x"), ("0.txt", b"ok\ncaf\xe9")])
    assert reader.error("s.tar").startswith("s.tar:0.txt: line 2 is not UTF-8 (byte 0xe9);")
    (tmp_path / "e").mkdir()
    assert reader.error("e", format="webdataset").startswith("e: no .tar in it;")
