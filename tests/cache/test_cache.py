"""Reading a cache: views, reads and gathers give the same rows, and index mappings are followed."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preprocessing import DataSet, stored_processors

import toolkit.cache.reader
import toolkit.cache.staging
import toolkit.commands.preprocess
from toolkit.cache.reader import SplitReader, available_memory
from toolkit.cache.schema import Cache, caption_view, open_cache, read_manifest
from toolkit.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """40 images with one to three captions, in shards of four."""
    data = DataSet(tmp_path_factory.mktemp("cache") / "data", images=40)
    data.rows += [(f"{i:03d}.png", f"third caption {i}") for i in range(1, 40, 6) if i % 3]
    data.rows.remove(("004.png", "waves, and colours ."))
    data.write()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolkit.cache.staging, "SHARD_ROWS", 4)
        patch.setattr(toolkit.commands.preprocess, "fetch_processors", stored_processors)
        data.run()
    return data


@pytest.fixture(scope="module")
def cache(data: DataSet) -> Cache:
    return open_cache(data.out)


@pytest.fixture(params=[False, True], ids=["mapped", "read"])
def reader(request: pytest.FixtureRequest, cache: Cache) -> SplitReader:
    return replace(cache["train"], from_disk=request.param)


def plain(data: DataSet, split: str = "train") -> Any:
    """The split as plain `datasets` rows."""
    import datasets

    return datasets.load_from_disk(str(data.out))[split]


def test_rows_are_those_of_datasets(data: DataSet, reader: SplitReader) -> None:
    rows = plain(data).with_format("numpy")
    assert len(reader) == len(rows) > 10
    assert reader.column("image_id") == list(plain(data)["image_id"])
    assert [list(c) for c in reader.column("captions")] == [list(c) for c in plain(data)["captions"]]
    for item, row in zip(reader, rows, strict=True):
        assert item["pixel_values"].dtype == np.uint8
        assert item["labels"].dtype == np.int32
        assert np.array_equal(item["pixel_values"], row["pixel_values"])
        assert np.array_equal(item["labels"], row["labels"])
    assert np.array_equal(reader[-1]["pixel_values"], reader[len(reader) - 1]["pixel_values"])
    for beyond in (len(reader), -len(reader) - 1):
        with pytest.raises(IndexError):
            reader[beyond]


def test_gather(data: DataSet, reader: SplitReader) -> None:
    indices = np.random.default_rng(0).integers(0, len(reader), 33)
    batch = reader.gather(indices)
    assert batch.shape == (33, 3, 32, 32)
    assert np.array_equal(batch, np.stack([reader[i]["pixel_values"] for i in indices]))
    out = np.zeros_like(batch)
    assert reader.gather(indices.tolist(), out) is out
    assert np.array_equal(out, batch)
    assert reader.gather([]).shape == (0, 3, 32, 32)
    with pytest.raises(IndexError):
        reader.gather([len(reader)])


def test_mapped_rows_are_views(cache: Cache) -> None:
    reader = replace(cache["train"], from_disk=False)
    for item in (reader[0], reader[len(reader) - 1]):
        for array in item.values():
            assert not array.flags["OWNDATA"]
            assert not array.flags["WRITEABLE"]


def test_reads_where_memory_is_short(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() > 10**6
    assert not cache["train"].reads
    size = len(cache["train"]) * 3 * 32 * 32
    monkeypatch.setattr(toolkit.cache.reader, "available_memory", lambda: size - 1)
    assert cache["train"].reads
    monkeypatch.setattr(toolkit.cache.reader, "available_memory", lambda: size)
    assert not cache["train"].reads


def test_a_file_cut_short_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data.arrow").write_bytes(b"1234")
    with pytest.raises(InputError, match="is cut short"):
        toolkit.cache.reader.read_into(tmp_path / "data.arrow", 2, memoryview(bytearray(4)))


def test_a_pickled_reader_is_small(reader: SplitReader) -> None:
    """As a loader's worker gets it."""
    reader[0]
    pickled = pickle.dumps(reader)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled)[3]["pixel_values"], reader[3]["pixel_values"])


def test_splits_by_name(cache: Cache) -> None:
    assert list(cache) == ["train", "validation", "test"]
    assert sum(len(cache[split]) for split in cache) == 40
    with pytest.raises(InputError, match="--split dev"):
        cache["dev"]


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; run `toolkit preprocess` first"):
        open_cache(tmp_path / "none")
    with pytest.raises(InputError, match="not a cache"):
        open_cache(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema version 99"):
        read_manifest(tmp_path)


# ---- one row per caption --------------------------------------------------------------------------------------------


def expected(rows: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """What a caption view of these rows is, the slow way."""
    found = []
    for row in rows.with_format("numpy"):
        pixels = (row["pixel_values"] * np.float64(1 / 255)).astype(np.float32)
        found += [((pixels - np.float32(0.5)) / np.float32(0.5), labels) for labels in row["labels"]]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d,
        lambda d: d.select(range(3, 11)),
        lambda d: d.select([7, 2, 2, 9]),
        lambda d: d.shuffle(seed=3),
        lambda d: d.shuffle(seed=3).select(range(2, 9)),
        lambda d: d.select(range(4, 12)).shuffle(seed=1),
        lambda d: d.train_test_split(0.4, seed=1)["test"],
        lambda d: d.filter(lambda row: row["image_id"] > "010", load_from_cache_file=False),
        lambda d: d.sort("image_id", reverse=True),
        lambda d: d.with_format("torch"),
    ],
)
def test_caption_view_follows_what_was_done(data: DataSet, change: Any) -> None:
    rows = change(plain(data))
    view = caption_view(rows)
    wanted = expected(rows.with_format(None))
    assert len(view) == len(wanted)
    for item, (pixels, labels) in zip(view, wanted, strict=True):
        assert item["pixel_values"].dtype == np.float32
        assert item["labels"].dtype == np.int64
        assert np.array_equal(item["pixel_values"], pixels)
        assert np.array_equal(item["labels"], labels)
    assert np.array_equal(view[-1]["labels"], wanted[-1][1])
    with pytest.raises(IndexError):
        view[len(wanted)]


def test_caption_view_refuses_what_it_cannot_follow(data: DataSet, tmp_path: Path) -> None:
    import datasets

    rows = plain(data)
    for changed in (
        rows.remove_columns("labels"),
        rows.select([]),
        rows.map(lambda row: {"image_id": "x"}, keep_in_memory=True, load_from_cache_file=False),
        datasets.Dataset.from_dict({"pixel_values": [1]}),
    ):
        with pytest.raises(InputError, match="caption_view: give one split"):
            caption_view(changed)


def test_caption_view_with_a_stock_collator(data: DataSet) -> None:
    import torch
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    view = caption_view(plain(data))
    batch = next(iter(DataLoader(view, batch_size=5, collate_fn=default_data_collator)))
    assert batch["pixel_values"].shape == (5, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].shape == (5, 50)
    assert batch["labels"].dtype == torch.int64
