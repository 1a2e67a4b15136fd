from __future__ import annotations

import errno
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from reading import Reader

from toolkit.data.annotations import Columns, webdataset
from toolkit.errors import RunError


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


def test_numbered_captions(reader: Reader, tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("a.jpg", b"A"), ("a.caption_10.txt", "k\n"), ("a.caption_2.txt", "c"), ("a.caption_0.txt", "one\u2028two"),
        ("b.jpg", b"B"), ("b.caption.txt", "x\ny"), ("c.1.jpg", b"C"), ("c.1.caption_0.txt", "z"),
        ("d.jpg", b"D"), ("d.caption_0.txt", "not this"), ("d.txt", "this"),
    ]  # fmt: skip
    pack(tmp_path / "s.tar", members)
    assert rows(reader, "s.tar") == [
        ("a.jpg", ("one\u2028two", "c", "k"), None, b"A"),
        ("b.jpg", ("x", "y"), None, b"B"),
        ("c.1.jpg", ("z",), None, b"C"),
        ("d.jpg", ("this",), None, b"D"),
    ]
    assert reader.notes == []


def test_named_members_and_keys(reader: Reader, tmp_path: Path) -> None:
    said = json.dumps({"caption": "no", "long": "L", "fold": "eval"})
    pack(
        tmp_path / "s.tar",
        [("a.in.jpg", b"A"), ("a.out.jpg", b"no"), ("a.json", said), ("a.alt.txt", "T"), ("a.txt", "no")],
    )
    columns = Columns("in.jpg", ("long", "alt.txt"), "fold", (("eval", "test"),))
    records = list(reader("s.tar", columns=columns))
    assert [(r.path, r.captions, r.split, r.data) for r in records] == [("a.in.jpg", ("L", "T"), "test", b"A")]
    assert reader.error("s.tar", columns=Columns("in.jpg", ("ghost",))) == (
        "--caption-column ghost: s.tar has no such column, but in.jpg, jpg, json, txt, caption, long, fold; name one of "
        "these."
    )


def test_a_compressed_tar_is_read_once(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies between an image and its text, the records are those of the plain tar, of one pass over it."""
    members = [(f"{i}.jpg", bytes([i]) * 5000) for i in range(20)] + [
        (f"{i}.txt", f"said {i}") for i in reversed(range(20))
    ]
    members.insert(0, ("7.json", '{"caption": "first"}'))
    for name, mode in (("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tar.bz2", "w:bz2"), ("s.tar.xz", "w:xz")):
        pack(tmp_path / name, members, mode)
    want = rows(reader, "s.tar")
    assert [row[:2] for row in want] == [(f"{i}.jpg", ("first" if i == 7 else f"said {i}",)) for i in range(20)]
    reads: list[int] = []

    class Counting(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            reads.append(len(data))
            return data

    for limit in (webdataset.IN_MEMORY, 1000):  # in memory, in a temporary file
        monkeypatch.setattr(webdataset, "IN_MEMORY", limit)
        monkeypatch.setattr(webdataset, "_COMPRESSED", ((b"\x1f\x8b", Counting), *webdataset._COMPRESSED[1:]))
        reads.clear()
        assert rows(reader, "s.tar.gz") == want
        assert sum(reads) == (tmp_path / "s.tar").stat().st_size
    (tmp_path / "s.tar.bz2").rename(tmp_path / "b.tar")
    (tmp_path / "s.tar.xz").rename(tmp_path / "x.tar")
    assert rows(reader, "b.tar") == rows(reader, "x.tar") == want


def test_no_room_to_unpack(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    pack(tmp_path / "s.tar.gz", MEMBERS, "w:gz")
    monkeypatch.setattr(webdataset.tempfile, "SpooledTemporaryFile", lambda max_size: Full())
    with pytest.raises(
        RunError, match=r"s\.tar\.gz: can't be unpacked in .* \(no space left on device\); set TMPDIR to a folder"
    ):
        reader("s.tar.gz")


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
        "tar members whose names lead outside skipped: 3 (../up.jpg, /etc/abs.jpg, a/../../up.jpg)",
        "tar members with a name already taken skipped: 1 (ok.jpg)",
        "links and special files in tars skipped: 3 (sym.jpg, hard.jpg, dev.jpg)",
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
