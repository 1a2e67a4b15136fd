"""`toolkit preprocess` as a whole: what it writes, what it refuses, what it does again and what not."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from PIL import Image
from preprocessing import SHARD_ROWS, DataSet, decoded, picture, states, stored_processors, tree

import toolkit.cache.staging
import toolkit.commands.preprocess
from toolkit.cache.build import pixel_hash
from toolkit.cache.schema import open_cache
from toolkit.data.images import read_image
from toolkit.errors import InputError, OutputError, RunError, ToolkitError
from toolkit.options import PreprocessOptions
from toolkit.runtime.hashing import hash_int


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(toolkit.cache.staging, "SHARD_ROWS", SHARD_ROWS)
    if "real_processors" not in request.fixturenames:
        monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", stored_processors)


@pytest.fixture
def real_processors() -> None:
    """For tests of the process that fetches them, which takes seconds."""


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path / "data")


def error_of(data: DataSet, kind: type[ToolkitError] = InputError, **options: Any) -> str:
    """The one sentence that a run fails with, without this machine's folder."""
    with pytest.raises(kind) as error:
        data.run(**options)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text.replace(f"{data.root}/", "")


# ---- what is written ------------------------------------------------------------------------------------------------


def test_cache_of_the_contract(data: DataSet) -> None:
    import datasets

    summary = data.run()
    loaded = datasets.load_from_disk(str(data.out))
    assert list(loaded) == ["train", "validation", "test"]
    features = loaded["train"].features
    assert features["pixel_values"] == datasets.Array3D((3, 32, 32), "uint8")
    assert features["labels"] == datasets.List(datasets.List(datasets.Value("int32"), length=50))
    assert features["captions"] == datasets.List(datasets.Value("string"))
    assert [features[n].dtype for n in ("image_id", "path")] == ["string", "string"]
    rows = [row for split in loaded.values() for row in split.with_format("numpy")]
    assert sorted(row["path"] for row in rows) == sorted({name for name, _ in data.rows})
    for row in rows:
        with Image.open(data.images / row["path"]) as image:
            wanted = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(row["pixel_values"], wanted)
        assert list(row["captions"]) == [caption for name, caption in data.rows if name == row["path"]]
    manifest = json.loads((data.out / "manifest.json").read_text())
    counts = {split: len(loaded[split]) for split in loaded}
    assert manifest["counts"]["splits"] == counts == summary.values["splits"]
    assert manifest["counts"]["images"] == 12
    assert manifest["counts"]["captions"] == 24
    assert manifest["options"]["seed"] == 42
    assert manifest["pixels"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["libraries"]["pillow"]
    assert (data.out / "rejected.jsonl").read_text() == ""
    assert summary.exit_code == 0
    assert data.beside() == ["dataset"]


def test_processors_are_saved_as_transformers_reads_them(
    data: DataSet, real_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    # Their process starts in the user's folder, but imports nothing from it.
    (data.root / "random.py").write_text("raise SystemExit('the wrong random')")
    monkeypatch.chdir(data.root)
    data.run(preset="tiny")
    tokenizer = AutoTokenizer.from_pretrained(data.out / "tokenizer")
    processor = AutoImageProcessor.from_pretrained(data.out / "image_processor", backend="pil")
    cache = open_cache(data.out)
    assert cache.shape == (3, 64, 64)
    row = cache["train"][0]
    path, captions = (cache["train"].column(name)[0] for name in ("path", "captions"))
    with Image.open(data.images / path) as image:
        wanted = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(row["pixel_values"], wanted)
    assert [tokenizer.decode(r[r != -100], skip_special_tokens=True) for r in row["labels"]] == captions
    assert all(r[r != -100][-1] == tokenizer.eos_token_id for r in row["labels"])


def test_an_encoder_that_is_nowhere_is_one_sentence(data: DataSet, real_processors: None) -> None:
    text = error_of(data, ToolkitError, preset=None, encoder="nobody/nothing", decoder="nobody/nothing")
    assert text.startswith("--encoder nobody/nothing: ")
    assert all(way in text for way in ("local folder", "HF_HUB_OFFLINE", "--preset tiny"))
    assert not data.out.parent.exists()


def test_a_typo_in_a_models_name_is_told_before_the_captions_are_read(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.root)
    monkeypatch.setattr(toolkit.commands.preprocess, "stage", None)
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", None)
    (data.root / "folder").mkdir()
    for name, reason in (
        ("./vit", "no such folder (relative to the current directory)"),
        ("/nowhere/vit", "no such folder (relative to the current directory)"),
        ("Images/vit", "no such folder (relative to the current directory)"),
        ("captions.txt", "is a file, not a folder or a name on the hub"),
        ("google/vit base", "no such folder, and not a possible name on the hub"),
        ("google--vit", "no such folder, and not a possible name on the hub"),
        ("s3://bucket/vit", "no such folder (relative to the current directory)"),
        (
            "google/vit-bse",
            "could not be loaded from the Hugging Face hub: it is not in the hub's cache on this machine",
        ),
    ):
        for option, other in (("encoder", "decoder"), ("decoder", "encoder")):
            text = error_of(data, ToolkitError, preset=None, **{option: name, other: "folder"})
            assert text.startswith(f"--{option} {name}: {reason}"), text
    assert data.beside() == []


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "gpt2", "n_positions": 40}, 40),
        ({"model_type": "bert", "max_position_embeddings": 40}, 40),
        ({"model_type": "roberta", "max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ({"model_type": "vision-encoder-decoder", "decoder": {"n_positions": 40}}, 40),
        ({"model_type": "t5"}, None),
        ([], None),
    ],
)
def test_labels_longer_than_the_decoder_has_positions(data: DataSet, config: Any, positions: int | None) -> None:
    folder = data.root / "decoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    options = {"preset": None, "encoder": str(folder), "decoder": str(folder)}
    if positions is None:
        data.run(max_length=500, **options)
        return
    text = error_of(data, max_length=positions + 1, **options)
    assert (
        text
        == f"--max-length {positions + 1}: --decoder decoder has positions for {positions} tokens; use {positions} or less."
    )
    assert data.beside() == []
    data.run(max_length=positions, **options)


def test_a_split_without_rows_is_still_a_split(data: DataSet) -> None:
    import datasets

    data.run(val_fraction=0, test_fraction=0)
    loaded = datasets.load_from_disk(str(data.out))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 12, "validation": 0, "test": 0}
    assert len(open_cache(data.out)["test"]) == 0


def test_the_same_bytes_whatever_the_workers_and_the_place(data: DataSet) -> None:
    data.run()
    first = tree(data.out)
    shutil.rmtree(data.out)
    data.run(num_workers=2)
    assert tree(data.out) == first
    data.run(out=data.root / "elsewhere", num_workers=3)
    assert tree(data.root / "elsewhere") == first


def test_options_of_the_content_change_the_fingerprint(data: DataSet) -> None:
    """`datasets` finds the results of its own `map` by it."""
    prints = set()
    for options in ({}, {"max_length": 40}, {"seed": 1}):
        data.run(**options)
        prints.add(json.loads((data.out / "train" / "state.json").read_text())["_fingerprint"])
    data.rows[0] = (data.rows[0][0], "another caption altogether")
    data.write()
    data.run(seed=1, val_fraction=0, test_fraction=0)
    prints.add(json.loads((data.out / "train" / "state.json").read_text())["_fingerprint"])
    assert len(prints) == 4


def test_a_long_caption_is_cut_and_counted(data: DataSet) -> None:
    data.add("long.png", picture(99), ["x" * 80, "short"])
    data.write()
    summary = data.run(max_length=20, val_fraction=0, test_fraction=0)
    assert summary.values["truncated"] == sum(len(caption) > 19 for _, caption in data.rows)
    assert f"{summary.values['truncated']} captions cut to --max-length 20 tokens, EOS kept" in summary.text
    labels = open_cache(data.out)["train"][12]["labels"]
    assert labels[0].tolist()[-1] == 0
    assert (labels[0] != -100).all()
    assert (labels[1] != -100).sum() == len("short") + 1


# ---- images that can't be read --------------------------------------------------------------------------------------


def test_a_bad_image_is_a_row_with_a_reason(data: DataSet) -> None:
    (data.images / "001.png").write_bytes(b"no image at all")
    (data.images / "002.png").write_bytes((data.images / "002.png").read_bytes()[:300])
    summary = data.run(max_rejected=0.2)
    lines = [json.loads(line) for line in (data.out / "rejected.jsonl").read_text().splitlines()]
    assert lines == [
        {"image_id": "001.png", "path": "001.png", "reason": "not an image", "line": None},
        {"image_id": "002.png", "path": "002.png", "reason": "truncated", "line": None},
    ]
    assert summary.exit_code == 3
    assert summary.values["rejected"] == 2
    assert "rejected.jsonl" in summary.text
    again = data.run(max_rejected=0.2)
    assert again.exit_code == 3
    assert "up to date" in again.text


def test_a_row_that_cant_be_used_is_listed_and_weighed(data: DataSet) -> None:
    """Of 12 images and 2 rows, one image and both rows: 3 of 14, 0.214."""
    (data.images / "001.png").write_bytes(b"no image at all")
    with open(data.annotations, "a") as file:
        file.write("lonely.png\r\n,said of nothing\r\n")
    assert error_of(data).startswith(
        "captions.txt: 2 rows can't be used and 12 images can (line 26: 1 field for 2 columns; line 27: no image name), "
        "more than --max-rejected 0.05; correct them, or accept the loss with --max-rejected."
    )
    assert data.beside() == []
    assert error_of(data, RunError, max_rejected=0.2).startswith(
        "1 of 12 images can't be read (1 not an image; first: 001.png) and 2 rows of the annotations can't be used "
        "(line 26: 1 field for 2 columns; line 27: no image name), more than --max-rejected 0.2; "
    )
    summary = data.run(max_rejected=0.22)
    assert summary.exit_code == 3
    assert (summary.values["rejected"], summary.values["unusable_rows"]) == (1, 2)
    assert "2 rows of the annotations could not be used, see" in summary.text
    lines = [json.loads(line) for line in (data.out / "rejected.jsonl").read_text().splitlines()]
    assert lines == [
        {"image_id": "001.png", "path": "001.png", "reason": "not an image", "line": None},
        {"image_id": None, "path": "lonely.png", "reason": "1 field for 2 columns", "line": 26},
        {"image_id": None, "path": None, "reason": "no image name", "line": 27},
    ]
    again = data.run(max_rejected=0.22)
    assert again.exit_code == 3
    assert "up to date" in again.text


def test_another_column_is_another_cache(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        f"{name},{caption.partition(',')[0]},other {i},{'eval' if i < 4 else 'train'}"
        for i, (name, caption) in enumerate(data.rows)
    ]
    data.annotations.write_text("\n".join(["image,caption,second,fold", *rows]))
    data.run()
    assert open_cache(data.out)["train"].column("captions")[0][0].startswith("a picture called")
    calls = decoded(monkeypatch)
    named = {"caption_column": ("second",), "split_column": "fold", "split_map": ("eval=val",)}
    summary = data.run(**named)
    assert "done" in summary.text
    assert calls == []  # pixels are those of before
    cache = open_cache(data.out)
    assert cache["validation"].column("captions") == [["other 0", "other 1"], ["other 2", "other 3"]]
    assert summary.values["splits"] == {"train": 10, "validation": 2, "test": 0}
    assert cache.manifest["options"]["split_map"] == ["eval=val"]
    assert "up to date" in data.run(**named).text
    for wrong in ("eval", "=val", "eval=vlad", "eval="):
        assert error_of(data, split_map=(wrong,)).startswith(
            f"--split-map {wrong}: is the source's name, =, and one of "
        )
    assert error_of(data, split_map=("a=val", "a=test")) == "--split-map a=val: a is given 2 times; give it once."
    assert error_of(data, **{**named, "caption_column": ("second", "third")}) == (
        "--caption-column third: captions.txt has no such column, but image, caption, second, fold; name one of these."
    )


def test_too_many_bad_images_stop_without_a_cache(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("001.png", "002.png"):
        (data.images / name).write_bytes(b"")
    text = error_of(data, RunError)
    assert text.startswith("2 of 12 images can't be read (2 empty file; first: 001.png), more than --max-rejected 0.05")
    assert "rejected.jsonl" in text
    assert data.beside() == ["dataset.partial"]
    calls = decoded(monkeypatch)
    assert data.run(max_rejected=0.2).exit_code == 3
    assert calls == []
    assert data.beside() == ["dataset"]


def test_nothing_but_bad_images(data: DataSet) -> None:
    for name in {name for name, _ in data.rows}:
        (data.images / name).write_bytes(b"x")
    assert "12 of 12 images can't be read (12 not an image" in error_of(data, RunError, max_rejected=1)


def test_missing_images_which_and_how_many(data: DataSet) -> None:
    for name in ("000.jpg", "001.png", "002.png", "003.jpg", "004.png"):
        (data.images / name).unlink()
    text = error_of(data)
    assert text.startswith(
        "--images Images: 5 of the 12 images that captions.txt names are not there (000.jpg, 001.png"
    )
    assert not data.out.parent.exists()
    summary = data.run(max_rejected=0.5)
    assert summary.values["rejected"] == 5
    assert '"reason": "missing"' in (data.out / "rejected.jsonl").read_text()
    (data.images / "000.jpg").write_bytes((data.images / "006.jpg").read_bytes())
    assert data.run(max_rejected=0.5).values["rejected"] == 4


def test_names_that_lead_to_no_file_are_found(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.run()
    before = splits_of(data)
    data.rows = [(f"C:\\data\\Images\\{name}", caption) for name, caption in data.rows]
    data.write()
    summary = data.run()
    assert summary.exit_code == 0
    assert splits_of(data) == before
    assert "image names found without the folder C:/data/Images/: 12 (C:\\data" in capsys.readouterr().err
    assert open_cache(data.out)["train"].column("image_id")[0].startswith("C:\\data\\Images\\0")
    assert "up to date" in data.run().text


def test_missing_images_are_told_with_the_nearest_names(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.add("dog_1.jpg", picture(20))
    data.write()
    (data.images / "dog_1.jpg").rename(data.images / "dog-1.jpg")
    assert "1 of the 13 images that captions.txt names are not there (dog_1.jpg, nearest dog-1.jpg);" in error_of(data)
    assert data.run(max_rejected=0.1).values["rejected"] == 1
    assert "missing images: 1 (dog_1.jpg, nearest dog-1.jpg)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_names_never_lead_outside(data: DataSet, name: str) -> None:
    picture(1).save(data.root / "secret.png")
    data.add(name, None)
    data.write()
    data.run(max_rejected=0.2)
    assert "leads outside" in (data.out / "rejected.jsonl").read_text()


def test_out_of_memory_is_no_reason_to_reject(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without fault would be missing from the cache for good."""
    import toolkit.cache.build

    def read_image(source: bytes) -> Image.Image:
        raise toolkit.cache.build.ImageError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(toolkit.cache.build, "read_image", read_image)
        assert error_of(data, RunError).startswith("000.jpg: out of memory; run the same command again")
    assert data.run().exit_code == 0


def test_names_in_another_unicode_form(data: DataSet) -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    picture(50).save(data.images / decomposed)
    data.add(composed, None)
    data.write()
    data.run(val_fraction=0, test_fraction=0)
    assert composed in open_cache(data.out)["train"].column("path")
    assert "up to date" in data.run(val_fraction=0, test_fraction=0).text


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_and_writes_nothing(data: DataSet, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("image,caption\n000.jpg,caf\u00e9\n".encode("cp1252"))
    columns = tmp_path / "columns.txt"
    columns.write_text("a,b\n1,2\n")
    before = states(data.root)
    assert "no such file" in error_of(data, annotations=tmp_path / "none.txt")
    assert "empty" in error_of(data, annotations=empty)
    assert "UTF-8" in error_of(data, annotations=latin)
    assert "columns.txt" in error_of(data, annotations=columns)
    assert "no such folder" in error_of(data, images=tmp_path / "none")
    assert "no such folder" in error_of(data, images=data.annotations)
    assert "no such file" in error_of(data, train_list=tmp_path / "none.txt")
    assert {k: v[0] for k, v in states(data.root).items()} == {k: v[0] for k, v in before.items()}


def test_out_that_is_something_else(data: DataSet) -> None:
    data.out.parent.mkdir()
    data.out.write_text("mine")
    assert error_of(data, OutputError) == "--out cache/dataset: is a file; name another folder."
    data.out.unlink()
    data.out.mkdir()
    (data.out / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        assert "holds files that are not a cache" in error_of(data, OutputError, overwrite=overwrite)
    assert (data.out / "thesis.tex").read_text() == "mine"
    (data.out / "thesis.tex").unlink()
    data.run()


def test_out_below_a_file(data: DataSet) -> None:
    assert "can't be written (a file is in the way)" in error_of(data, OutputError, out=data.annotations / "cache")


def test_out_of_another_data_set(data: DataSet, tmp_path: Path) -> None:
    data.run()
    other = DataSet(tmp_path / "other", images=5)
    before = tree(data.out)
    text = error_of(other, OutputError, out=data.out)
    assert "holds the cache of another data set" in text
    assert "--overwrite" in text
    assert tree(data.out) == before
    assert other.run(out=data.out, overwrite=True).values["images"] == 5
    other.run(out=tmp_path / "fresh")
    assert tree(tmp_path / "fresh") == tree(data.out)


def test_another_data_set_with_the_same_names_and_times(data: DataSet, tmp_path: Path) -> None:
    """As two archives unpack that were packed reproducibly: same names, sizes and times, other pictures."""
    other = DataSet(tmp_path / "other", images=0)
    for i, set_ in ((1, data), (2, other)):
        set_.rows = []
        set_.add("a.bmp", picture(i, (40, 40)))
        os.utime(set_.images / "a.bmp", ns=(0, 0))
        set_.write()
    data.run(val_fraction=0, test_fraction=0)
    other.run(out=data.out, overwrite=True, val_fraction=0, test_fraction=0)
    other.run(val_fraction=0, test_fraction=0)
    assert tree(other.out) == tree(data.out)


def test_a_cache_of_another_schema_version(data: DataSet) -> None:
    data.run()
    first = tree(data.out)
    manifest = data.out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    text = error_of(data, OutputError)
    assert text.startswith("--out cache/dataset: a cache of schema version 99, this toolkit reads 1;")
    data.run(overwrite=True)
    assert tree(data.out) == first


def test_a_damaged_manifest(data: DataSet) -> None:
    data.run()
    (data.out / "manifest.json").write_text("{")
    assert "manifest.json" in error_of(data, OutputError)
    data.run(overwrite=True)


def test_a_link_to_another_disk_stays_a_link(data: DataSet) -> None:
    big = data.root / "big" / "place"
    big.mkdir(parents=True)
    data.out.parent.mkdir()
    data.out.symlink_to(big)
    data.run()
    data.run(seed=1)
    assert data.out.is_symlink()
    assert (big / "manifest.json").exists()
    assert data.beside() == ["dataset"]


def test_three_images_are_shown_as_they_were_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With their captions, the same three in whatever order; control characters written out, long captions cut."""
    data = DataSet(tmp_path / "data", images=5)
    for n in range(7):
        data.add(
            f"{n}.png", picture(n), ['said\x1b[31m "so",\n twice ', "w" * 101, *(f"caption {i}" for i in range(5))]
        )
    shown = []
    for _ in range(2):
        data.write()
        data.run(overwrite=True)
        lines = capsys.readouterr().err.splitlines()
        shown.append(lines[1:])
        data.rows = [row for name in sorted(dict(data.rows), reverse=True) for row in data.rows if row[0] == name]
    wanted = sorted({name for name, _ in data.rows}, key=hash_int)[:3]
    expected = []
    for name in wanted:
        expected.append(f"  {name}")
        if name.startswith("00"):
            expected += [f"    a picture called {name}", "    waves, and colours ."]
        else:
            expected += ['    said\\x1b[31m "so",\\n twice', "    " + "w" * 98 + " …"]
            expected += ["    caption 0", "    caption 1", "    caption 2", "    … and 2 more"]
    assert any(not name.startswith("00") for name in wanted)
    assert [line for line in shown[0] if line.startswith("  ")][: len(expected)] == expected
    assert [line for line in shown[1] if line.startswith("  ")][: len(expected)] == expected


# ---- splits ---------------------------------------------------------------------------------------------------------


def splits_of(data: DataSet) -> dict[str, str]:
    cache = open_cache(data.out)
    return {path: split for split in cache for path in cache[split].column("path")}


def test_copies_of_a_picture_fall_in_one_split(tmp_path: Path) -> None:
    data = DataSet(tmp_path / "data", images=0)
    for i in range(10):
        for suffix in ("bmp", "png", "tif"):
            data.add(f"{i}.{suffix}", picture(i))
        shutil.copy(data.images / f"{i}.png", data.images / f"{i}-copy.png")
        data.add(f"{i}-copy.png", None)
    data.write()
    data.run()
    splits = splits_of(data)
    assert len(splits) == 40
    assert len(set(splits.values())) == 3
    for i in range(10):
        assert len({split for path, split in splits.items() if path.split(".")[0].split("-")[0] == str(i)}) == 1


def test_more_images_move_none(data: DataSet) -> None:
    data.run()
    before = splits_of(data)
    for i in range(100, 107):
        data.add(f"{i}.png", picture(i))
    data.rows.reverse()
    data.write()
    data.run()
    after = splits_of(data)
    assert len(after) == 19
    assert {path: after[path] for path in before} == before


def write_lists(data: DataSet, **names: list[str]) -> dict[str, Path]:
    lists = {}
    for split, images in names.items():
        lists[f"{split}_list"] = data.root / f"{split}.txt"
        lists[f"{split}_list"].write_text("".join(f"{name}\n" for name in images))
    return lists


def test_splits_of_the_source_are_kept(data: DataSet) -> None:
    lists = write_lists(data, train=["000.jpg", "001.png"], val=["002.png"], test=["003.jpg", "004.png"])
    summary = data.run(**lists)
    assert splits_of(data) == {
        "000.jpg": "train", "001.png": "train", "002.png": "validation", "003.jpg": "test", "004.png": "test",
    }  # fmt: skip
    assert summary.values["left_out"] == 7
    assert "7 images are in no list and were left out" in summary.text
    lists["train_list"].write_text("000.jpg\n005.png\n")
    data.run(**lists)
    assert splits_of(data)["005.png"] == "train"
    assert "001.png" not in splits_of(data)


def test_a_list_for_test_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is train, and validation is drawn from it by content: copies of a picture stay together."""
    data = DataSet(tmp_path / "data", images=0)
    for i in range(30):
        for suffix in ("bmp", "png"):
            data.add(f"{i}.{suffix}", picture(i))
    data.write()
    summary = data.run(**write_lists(data, test=["0.bmp", "0.png", "1.bmp"]))
    said = capsys.readouterr().err
    assert "images in no list, taken for train, which has no list: 57 (1.png, 2.bmp, 2.png, ...)" in said
    assert "validation has no list: it is drawn from train by --val-fraction 0.25" in said
    splits = splits_of(data)
    assert {path for path, split in splits.items() if split == "test"} == {"0.bmp", "0.png", "1.bmp"}
    drawn = {i for i in range(2, 30) if splits[f"{i}.bmp"] == "validation"}
    assert 2 < len(drawn) < 14
    assert {i for i in range(2, 30) if splits[f"{i}.png"] == "validation"} == drawn
    # The same images as a split by content would draw: by hash and seed alone.
    hashes = {i: pixel_hash(read_image(data.images / f"{i}.png")) for i in range(2, 30)}
    assert drawn == {i for i, value in hashes.items() if hash_int(f"42:{value}") / 2**64 < 0.25}
    # The copy of a listed test image is train's (or validation's), and a leak as ever.
    assert summary.values["leaked"] == 1
    assert f"1.png in {splits['1.png']}, 1.bmp in test" in summary.text
    assert summary.values["splits"] == Counter(splits.values())
    assert summary.values["warnings"] == []
    assert "up to date" in data.run(test_list=data.root / "test.txt").text


def test_a_list_for_train_alone(data: DataSet) -> None:
    names = ["000.jpg", "001.png", "002.png", "004.png", "005.png", "006.jpg"]
    summary = data.run(**write_lists(data, train=names), val_fraction=0.5)
    splits = splits_of(data)
    assert sorted(splits) == names
    assert set(splits.values()) == {"train", "validation"}
    assert summary.values["left_out"] == 6


def test_a_list_for_validation_alone(data: DataSet) -> None:
    data.run(**write_lists(data, val=["003.jpg", "007"]))
    splits = splits_of(data)
    assert {path for path, split in splits.items() if split == "validation"} == {"003.jpg", "007.png"}
    assert set(splits.values()) == {"train", "validation"}
    assert len(splits) == 12


def test_lists_that_name_no_image(data: DataSet) -> None:
    """They gave a split by content, or an empty one, and said nothing of it."""
    lists = write_lists(data, train=["000.jpg"], test=["x/000000.jpg", "b.jpg"])
    assert error_of(data, **lists) == (
        "test.txt: none of the names in it (2) is an image of captions.txt, whose images are called 000.jpg, not "
        "x/000000.jpg; name the list that belongs to these images."
    )
    assert "none of the names in it (2)" in error_of(data, test_list=lists["test_list"])
    for content in ("", "\n  \n", "\ufeff"):
        lists["test_list"].write_text(content)
        assert error_of(data, **lists) == (
            "test.txt: names no image, so no image would be in test; write the names there, one per line, or leave this "
            "list out."
        )
    assert data.beside() == []


@pytest.mark.parametrize(
    ("options", "lists", "warnings"),
    [
        ({}, {}, []),
        (
            {"val_fraction": 0.0},
            {},
            ["no validation images, so `toolkit finetune` can neither choose its best checkpoint nor stop early; "
             "set --val-fraction above 0."],
        ),
        (
            {"val_fraction": 0.0},
            {"test": ["000.jpg"]},
            ["no validation images, so `toolkit finetune` can neither choose its best checkpoint nor stop early; "
             "name some with --val-list, or set --val-fraction above 0."],
        ),
        (
            {"val_fraction": 1e-9},
            {"test": ["000.jpg"]},
            ["no validation images, so `toolkit finetune` can neither choose its best checkpoint nor stop early; "
             "raise --val-fraction."],
        ),
        (
            {"val_fraction": 0.0, "test_fraction": 0.99999},
            {},
            ["no training images, so `toolkit finetune` can't train on this cache; "
             "lower --val-fraction and --test-fraction.",
             "no validation images, so `toolkit finetune` can neither choose its best checkpoint nor stop early; "
             "set --val-fraction above 0."],
        ),
        (
            {},
            {"val": [f"{i:03d}" for i in range(12)]},
            ["no training images, so `toolkit finetune` can't train on this cache; name some with --train-list."],
        ),
    ],
)  # fmt: skip
def test_splits_that_a_training_would_lack(
    data: DataSet, options: dict[str, Any], lists: dict[str, list[str]], warnings: list[str]
) -> None:
    options = {**options, **write_lists(data, **lists)}
    for _ in range(2):  # also when it is up to date
        summary = data.run(**options)
        assert summary.values["warnings"] == warnings
        assert [line[11:] for line in summary.text.splitlines() if line.startswith("  warning: ")] == warnings


def test_a_cache_of_an_earlier_reading(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens, and the next run reads the annotations anew, without decoding an image."""
    data.run()
    before = tree(data.out)
    manifest = json.loads(before["manifest.json"])
    del manifest["inputs"]["reading"], manifest["splits"]
    (data.out / "manifest.json").write_text(json.dumps(manifest))
    assert len(open_cache(data.out)["train"]) == manifest["counts"]["splits"]["train"]
    calls = decoded(monkeypatch)
    assert data.run().text.startswith(f"{data.out}: done.")
    assert calls == []
    assert tree(data.out) == before


def test_leaks_of_the_source_are_reported(data: DataSet) -> None:
    with Image.open(data.images / "000.jpg") as image:
        image.save(data.images / "copy.bmp")
    data.add("copy.bmp", None)
    data.write()
    lists = write_lists(data, train=["000.jpg", "001.png"], val=["002.png"], test=["copy.bmp"])
    assert "1 images are in two splits (first: 000.jpg in train, copy.bmp in test)" in error_of(
        data, strict_splits=True, **lists
    )
    summary = data.run(**lists)
    assert summary.values["leaked"] == 1
    assert "000.jpg in train, copy.bmp in test" in summary.text
    manifest = json.loads((data.out / "manifest.json").read_text())
    assert manifest["leaks"] == [{"train": ["000.jpg"], "test": ["copy.bmp"]}]
    assert "are in two splits" in error_of(data, strict_splits=True, **lists)  # though it is up to date


# ---- what is done again ---------------------------------------------------------------------------------------------


def test_a_run_without_change_writes_nothing(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    before = states(data.root)
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", None)
    summary = data.run(num_workers=2)
    assert "up to date" in summary.text
    assert summary.values["images"] == 12
    assert states(data.root) == before


def test_a_cache_from_before_an_option_is_up_to_date(data: DataSet) -> None:
    data.run()
    manifest = json.loads((data.out / "manifest.json").read_text())
    for name in ("image_column", "caption_column", "split_column", "split_map"):
        del manifest["options"][name]
    (data.out / "manifest.json").write_text(json.dumps(manifest))
    before = states(data.root)
    assert "up to date" in data.run().text
    assert states(data.root) == before
    assert "done" in data.run(image_column="image").text


def fresh(data: DataSet, **options: Any) -> dict[str, bytes]:
    """The cache of a build from scratch."""
    out = data.root / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    data.run(out=out, **options)
    return tree(out)


def counted(summary: Any) -> tuple[int, int]:
    return summary.values["reused"], summary.values["decoded"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_reruns_say_what_was_reused(data: DataSet, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (data.images / "001.png").write_bytes(b"no image at all")
    options = {"num_workers": num_workers, "max_rejected": 0.2}
    first = data.run(**options)
    assert counted(first) == (0, 11)
    assert "reused" not in first.text
    again = data.run(**options)
    assert counted(again) == (11, 0)
    assert "up to date, nothing to do." in again.text
    other = data.run(max_length=30, **options)
    assert counted(other) == (11, 0)
    assert "  pixels of all 11 images reused, none decoded\n" in other.text
    data.add("100.png", picture(100))
    data.rows = data.rows[-2:] + data.rows[:-2]  # in front: every shard shifts
    data.add("101.png", picture(101))
    picture(55).save(data.images / "003.jpg")
    data.write()
    calls = decoded(monkeypatch)
    more = data.run(**options)
    assert counted(more) == (10, 3)
    assert num_workers > 1 or len(calls) == 4, "one of them in vain"
    assert "  pixels of 10 images reused, 3 images decoded\n" in more.text


def test_only_new_images_are_decoded(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    data.add("100.png", picture(100))
    data.rows = data.rows[-2:] + data.rows[:-2]  # in front: every shard shifts
    data.add("101.png", picture(101))
    data.write()
    calls = decoded(monkeypatch)
    data.run()
    assert len(calls) == 2
    assert tree(data.out) == fresh(data)
    assert data.beside() == ["dataset"]


@pytest.mark.parametrize("options", [{"max_length": 30}, {"seed": 7}, {"val_fraction": 0.0}, {"test_fraction": 0.5}])
def test_other_labels_and_splits_decode_nothing(
    data: DataSet, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    data.run()
    calls = decoded(monkeypatch)
    data.run(**options)
    assert calls == []
    assert tree(data.out) == fresh(data, **options)


def test_another_caption_or_tokenizer_decodes_nothing(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    calls = decoded(monkeypatch)
    data.rows[3] = (data.rows[3][0], "something else")
    data.write()
    data.run()
    assert calls == []
    assert tree(data.out) == fresh(data)
    calls.clear()

    def other(encoder: str, decoder: str, preset: str | None, directory: Path) -> Any:
        found = stored_processors(encoder, decoder, preset, directory)
        file = directory / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true'))
        return found

    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", other)
    data.run(seed=3)
    assert calls == []
    assert tree(data.out) == fresh(data, seed=3)


def test_another_image_size_decodes_everything(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()

    def other(encoder: str, decoder: str, preset: str | None, directory: Path) -> Any:
        settings, *others = stored_processors(encoder, decoder, preset, directory)
        return {**settings, "size": {"height": 24, "width": 40}}, *others

    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", other)
    (data.root / "another").mkdir()
    data.run(preset=None, encoder=str(data.root / "another"), decoder=str(data.root / "another"))
    assert open_cache(data.out).shape == (3, 24, 40)
    assert open_cache(data.out)["train"][0]["pixel_values"].shape == (3, 24, 40)


def test_an_image_that_changed_is_rebuilt(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    picture(77).save(data.images / "005.png")
    calls = decoded(monkeypatch)
    data.run()
    assert len(calls) == 1
    assert tree(data.out) == fresh(data)


def test_an_image_that_was_only_touched_is_not_decoded(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    os.utime(data.images / "005.png", ns=(1, 1))
    calls = decoded(monkeypatch)
    data.run()
    assert calls == []
    assert tree(data.out) == fresh(data)


@pytest.mark.parametrize("name", ["train/data-000001.arrow", "index/000001.arrow", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied"])
def test_a_damaged_cache_is_mended(data: DataSet, name: str, damage: str) -> None:
    data.run()
    first, file = tree(data.out), data.out / name
    content = file.read_bytes()
    file.unlink()  # it may be linked elsewhere
    if damage != "deleted":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    data.run()
    assert tree(data.out) == first


def test_a_removed_image_leaves(data: DataSet) -> None:
    data.run()
    data.rows = [row for row in data.rows if row[0] != "002.png"]
    data.write()
    data.run()
    assert "002.png" not in splits_of(data)
    assert tree(data.out) == fresh(data)


def test_images_in_containers(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(names: list[str]) -> None:
        images = [{"bytes": (data.images / name).read_bytes(), "path": name} for name in names]
        captions = [[c for n, c in data.rows if n == name] for name in names]
        pq.write_table(pa.table({"image": images, "captions": captions}), data.root / "set.parquet")

    names = sorted({name for name, _ in data.rows})
    write(names[:9])
    options = {"annotations": data.root / "set.parquet", "val_fraction": 0, "test_fraction": 0}
    data.run(**options)
    before = states(data.root)
    assert "up to date" in data.run(**options).text
    assert states(data.root) == before
    write(names)
    calls = decoded(monkeypatch)
    data.run(**options)
    assert len(calls) == 3
    assert tree(data.out) == fresh(data, **options)
    contained = open_cache(data.out)["train"]
    data.run(out=data.root / "files", val_fraction=0, test_fraction=0)
    plain = open_cache(data.root / "files")["train"]
    for a, b in zip(contained, plain, strict=True):
        assert np.array_equal(a["pixel_values"], b["pixel_values"])
        assert np.array_equal(a["labels"], b["labels"])


def test_a_cache_within_the_folder_of_its_images(data: DataSet) -> None:
    """`--annotations .` with the default `--out`: the cache is no part of its own source."""
    for name, caption in data.rows:
        (data.images / name).with_suffix(".txt").write_text(caption)
    options = {"annotations": data.images, "format": "sidecar", "out": data.images / "cache" / "dataset"}
    data.run(**options)
    before = states(data.images)
    assert "up to date" in data.run(**options).text
    assert states(data.images) == before
    picture(55).save(data.images / "055.png")
    (data.images / "055.txt").write_text("one more")
    assert data.run(**options).values["images"] == 13


# ---- a hostile folder -----------------------------------------------------------------------------------------------


def test_a_hostile_folder(hostile_dir: Path, tmp_path: Path) -> None:
    import resource

    options = PreprocessOptions(
        hostile_dir / "captions.txt",
        hostile_dir / "Images",
        tmp_path / "dataset",
        preset="tiny",
        max_rejected=1,
        num_workers=2,
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with hostile.within():
        summary = toolkit.commands.preprocess.preprocess(options)
    rejected = [json.loads(line) for line in (options.out / "rejected.jsonl").read_text().splitlines()]
    reasons = {row["path"]: row["reason"] for row in rejected}
    assert summary.exit_code == 3
    assert summary.values["images"] == 12 + 200
    assert len(rejected) + sum(summary.values["splits"].values()) == 212
    assert all(0 < len(reason) < 120 and "\n" not in reason for reason in reasons.values())
    expected = {**hostile.REASONS, **hostile.REASONS_OF_NAMES}
    assert {name: reasons.get(name) for name in expected} == expected
    assert not set(hostile.GOOD) & set(reasons)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after < max(before, 1_500_000)  # KiB, of children that were forked from this whole test process
    assert "up to date" in toolkit.commands.preprocess.preprocess(options).text
