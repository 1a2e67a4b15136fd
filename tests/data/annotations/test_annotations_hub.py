from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image as PIL
from reading import Reader

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def png(grey: int) -> bytes:
    file = io.BytesIO()
    PIL.new("L", (2, 2), grey).save(file, "PNG")
    return file.getvalue()


def make(greys: list[int], **columns: list) -> datasets.Dataset:
    images = [{"bytes": png(grey), "path": f"{i}.png"} for i, grey in enumerate(greys)]
    return datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())


def rows(reader: Reader, name: str, **options: object) -> list[tuple]:
    return [(r.image_id, r.captions, r.split, r.data) for r in reader(name, **options)]  # type: ignore[arg-type]


def test_saved_with_splits(reader: Reader, tmp_path: Path) -> None:
    parts = {"train": make([1, 2], caption=["x", "y"]), "val": make([3], caption=["z"])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert rows(reader, "d") == [
        ("train/0.png", ("x",), "train", png(1)),
        ("train/1.png", ("y",), "train", png(2)),
        ("val/0.png", ("z",), "validation", png(3)),
    ]
    assert (reader.set.format, reader.set.images) == ("hub", None)


def test_captions_of_every_shape(reader: Reader, tmp_path: Path) -> None:
    make([1], sentences=[[{"raw": "x", "tokens": ["x"]}, {"raw": "y", "tokens": ["y"]}]]).save_to_disk(tmp_path / "a")
    assert rows(reader, "a") == [("0.png", ("x", "y"), None, png(1))]
    make([1], sentences=[{"raw": "x"}]).save_to_disk(tmp_path / "b")
    assert rows(reader, "b") == [("0.png", ("x",), None, png(1))]
    make([1], caption_1=["y"], caption_0=["x"], split=["test"]).save_to_disk(tmp_path / "c")
    assert rows(reader, "c") == [("0.png", ("x", "y"), "test", png(1))]


def test_an_indices_mapping_is_respected(reader: Reader, tmp_path: Path) -> None:
    make([1, 2, 3], text=["x", "y", "z"]).select([2, 0]).save_to_disk(tmp_path / "d")
    assert [r[1:] for r in rows(reader, "d")] == [(("z",), None, png(3)), (("x",), None, png(1))]


def test_a_local_folder(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for i, grey in enumerate((1, 2)):
        (tmp_path / "d" / f"{i}.png").write_bytes(png(grey))
    (tmp_path / "d" / "metadata.csv").write_text("file_name,text\n0.png,x\n1.png,y\n")
    got = rows(reader, "d", format="hub")
    assert [r[1:] for r in got] == [(("x",), None, png(1)), (("y",), None, png(2))]


def test_mistakes(reader: Reader, tmp_path: Path) -> None:
    message = reader.error("nobody/nothing-here", format="hub")
    assert message.startswith("nobody/nothing-here: neither a local data set nor one that the hub has: ")
    assert "save_to_disk" in message
    make([1], label=[3]).save_to_disk(tmp_path / "a")
    assert reader.error("a").startswith("a: no column of captions (`caption`) among its columns image, label;")
    datasets.Dataset.from_dict({"pixel_values": [[1]], "captions": [["x"]]}).save_to_disk(tmp_path / "b")
    assert reader.error("b").startswith("b: is a cache that `preprocess` wrote;")
    make([1], caption=["x"]).save_to_disk(tmp_path / "c")
    (tmp_path / "c" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    assert reader.error("c").startswith("c: `datasets` can't load it (")
    datasets.DatasetDict({"extra": make([1], caption=["x"])}).save_to_disk(tmp_path / "e")
    assert reader.error("e").startswith("e: extra/0.png is in split 'extra', which is unknown;")
