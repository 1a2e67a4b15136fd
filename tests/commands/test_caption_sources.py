"""batch-caption of everything that holds images: every source gives the captions that their files give."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from toolkit.cache.schema import open_cache
from toolkit.captioning.captioner import Captioner
from toolkit.commands.batch_caption import batch_caption
from toolkit.data.annotations import read_annotations
from toolkit.errors import InputError, ModelError, ToolkitError
from toolkit.options import BatchCaptionOptions, PreprocessOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary

FAST = {"num_beams": 1, "max_length": 8, "batch_size": "4", "num_workers": 2}
ROW = ("caption", "score", "ended", "error", "width", "height")


def run(model: Path, output: Path, *paths: Path | str, **more: Any) -> Summary:
    given = {"paths": tuple(map(str, paths)), "model": str(model), "output": output, **FAST, **more}
    return batch_caption(from_flat(BatchCaptionOptions, given))


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    return {(row := json.loads(line))["image"]: row for line in output.read_text(encoding="utf-8").splitlines()}


def said(rows: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """What was said, by the last part of the name."""
    return {name.rpartition("/")[2]: tuple(row[key] for key in ROW) for name, row in rows.items()}


def write_tar(path: Path, files: list[Path]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for file in files:
            for name, data in ((file.name, file.read_bytes()), (f"{file.stem}.txt", b"")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def sources(folder: Path, files: list[Path]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The same images without a caption as every kind of source."""
    rows = [{"id": i, "image": {"bytes": file.read_bytes(), "path": file.name}} for i, file in enumerate(files)]
    features, half = Features({"id": Value("int64"), "image": Image()}), len(files) // 2
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / "one.parquet", row_group_size=3)  # in no order of names
    (folder / "parquets").mkdir()
    for name, part in (("a", rows[:half]), ("b", rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / "parquets" / f"{name}.parquet")
    Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    DatasetDict(
        train=Dataset.from_list(rows[:half], features=features), test=Dataset.from_list(rows[half:], features=features)
    ).save_to_disk(folder / "splits")
    (folder / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "hub" / "train.parquet")
    write_tar(folder / "one.tar", files)
    (folder / "tars").mkdir()
    write_tar(folder / "tars" / "0.tar", files[:half])
    write_tar(folder / "tars" / "1.tar.gz", files[half:])
    found: dict[str, tuple[Path, dict[str, Any]]] = {
        name: (folder / name, {}) for name in ("one.parquet", "parquets", "saved", "splits", "one.tar", "tars")
    }
    return found | {"hub": (folder / "hub", {"source": "hub"})}


@pytest.fixture(scope="module")
def made(sample_dir: Path, cache_dir: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder, the images of a cache's test split as files, the sources made of them, and the captions of the files."""
    folder = tmp_path_factory.mktemp("sources")
    files = [sample_dir / "Images" / name for name in open_cache(cache_dir)["test"].column("path")]
    assert len(files) > 3
    run(model_dir, folder / "files.jsonl", *files)
    return folder, files, sources(folder / "sets", files), said(rows_of(folder / "files.jsonl"))


def test_every_source_gives_the_same_captions(made: Any, cache_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    _, files, found, expected = made
    assert set(expected) == {file.name for file in files}
    assert all(row[0] for row in expected.values())
    for name, (path, more) in found.items():
        summary = run(model_dir, tmp_path / f"{name}.jsonl", path, **more)
        rows = rows_of(tmp_path / f"{name}.jsonl")
        assert summary.values["new"] == len(files), name
        assert said(rows) == expected, name
        assert list(rows) == sorted(rows), name
        assert run(model_dir, tmp_path / f"{name}.jsonl", path, **more).values["new"] == 0, name
    assert {name.partition("/")[0] for name in rows_of(tmp_path / "splits.jsonl")} == {"train", "test"}
    # a cache has the model's pixels, and no size of the image
    run(model_dir, tmp_path / "cache.jsonl", cache_dir, split="test")
    rows = rows_of(tmp_path / "cache.jsonl")
    assert {name: row[:4] for name, row in said(rows).items()} == {name: row[:4] for name, row in expected.items()}
    assert {(row["width"], row["height"]) for row in rows.values()} == {(None, None)}


def test_ids_are_those_of_preprocess(made: Any, model_dir: Path, tmp_path: Path) -> None:
    """Also where names are missing, or mean several images, or one image has two rows."""
    _, files, _, expected = made
    data = [file.read_bytes() for file in files[:4]]
    names = [None, "x.jpg", "x.jpg", "/abs/y.jpg", "x.jpg"]
    rows = [
        {"image": {"bytes": each, "path": name}, "caption": "a dog", "split": "test"}
        for each, name in zip([*data, data[1]], names, strict=True)
    ]
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    theirs = [record.image_id for record in read_annotations(path, tmp_path).records]
    assert len(theirs) == 4
    run(model_dir, tmp_path / "out.jsonl", path, split="test")
    ours = rows_of(tmp_path / "out.jsonl")
    assert list(ours) == sorted(theirs)
    for name, file in zip(theirs, files, strict=False):
        assert ours[name]["caption"] == expected[file.name][0]


@pytest.mark.parametrize("name", ["one.parquet", "tars", "cache"])
def test_a_killed_run_goes_on(
    name: str, made: Any, cache_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, more = (cache_dir, {"split": "test"}) if name == "cache" else made[2][name]
    more = {**more, "batch_size": "2"}
    run(model_dir, tmp_path / "whole.jsonl", path, **more)
    real, calls = Captioner.generate, []

    def stop(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Captioner, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        run(model_dir, tmp_path / "out.jsonl", path, **more)
    monkeypatch.setattr(Captioner, "generate", real)
    assert run(model_dir, tmp_path / "out.jsonl", path, **more).values["new"] == len(made[1]) - 2
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_rows_without_an_image(made: Any, model_dir: Path, tmp_path: Path) -> None:
    files = made[1]
    images = [
        {"bytes": files[0].read_bytes(), "path": "a"},
        {"bytes": None, "path": "b"},
        {"bytes": b"no", "path": "c"},
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    names = pa.array([{"bytes": None, "path": path} for path in (f"{tmp_path}/gone.jpg", f"{files[1]}")])
    names = names.cast(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": names}), tmp_path / "set" / "train.parquet")
    summary = run(model_dir, tmp_path / "out.jsonl", tmp_path / "x.parquet", gallery=tmp_path / "page.html")
    assert summary.exit_code == 3
    errors = {name: row["error"] for name, row in rows_of(tmp_path / "out.jsonl").items()}
    assert errors == {"a": None, "b": "empty file", "c": "not an image"}
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 1
    run(model_dir, tmp_path / "out2.jsonl", tmp_path / "set", source="hub")  # images that a data set only names
    rows = rows_of(tmp_path / "out2.jsonl")
    assert (rows["gone.jpg"]["error"], rows[files[1].name]["caption"]) == ("missing", made[3][files[1].name][0])


def test_a_gallery_of_a_cache_and_the_first(made: Any, cache_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    more = {"split": "test", "limit": 3, "gallery": tmp_path / "page.html"}
    dry = run(model_dir, tmp_path / "out.jsonl", cache_dir, **more, dry_run=True)
    run(model_dir, tmp_path / "out.jsonl", cache_dir, **more)
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 3
    rows = rows_of(tmp_path / "out.jsonl")
    assert list(rows) == dry.values["first"] == sorted(open_cache(cache_dir)["test"].column("image_id"))[:3]
    path, _ = made[2]["one.parquet"]
    run(model_dir, tmp_path / "first.jsonl", path, limit=3)
    assert list(rows_of(tmp_path / "first.jsonl")) == sorted(file.name for file in made[1])[:3]


def test_texts_for_a_data_set(made: Any, model_dir: Path, tmp_path: Path) -> None:
    path, _ = made[2]["splits"]
    (tmp_path / "texts").mkdir()
    run(model_dir, tmp_path / "texts", path, format="txt")
    found = {p.relative_to(tmp_path / "texts").as_posix() for p in (tmp_path / "texts").rglob("*.txt")}
    half = len(made[1]) // 2
    parts = [("train", made[1][:half]), ("test", made[1][half:])]
    assert found == {f"{split}/{file.stem}.txt" for split, files in parts for file in files}


def broken(tmp_path: Path, made: Any, cache_dir: Path, model: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    found = {name: path for name, (path, _) in made[2].items()}
    (tmp_path / "cut.tar").write_bytes(found["one.tar"].read_bytes()[:1500])
    (tmp_path / "cut.parquet").write_bytes(found["one.parquet"].read_bytes()[:900])
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": ["x"]}), tmp_path / "names.parquet")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "none.parquet")
    images = pa.table({"image": [{"bytes": made[1][0].read_bytes(), "path": "../x"}], "split": ["eval"]})
    pq.write_table(images, tmp_path / "eval.parquet")
    (tmp_path / "other.jsonl").write_text("mine")

    def case(*paths: Any, **more: Any) -> Callable[[], Any]:
        return lambda: run(model, tmp_path / "out.jsonl", *paths, **more)

    return {
        "tar": (case(tmp_path / "cut.tar"), "cut.tar: not a whole tar"),
        "parquet": (case(tmp_path / "cut.parquet"), "cut.parquet: not a readable Parquet file"),
        "names": (case(tmp_path / "names.parquet"), "its column image holds names of files, not images"),
        "no images": (case(tmp_path / "none.parquet"), "no column of images (`image`) among its columns number"),
        "column": (case(found["one.parquet"], image_column="bild"), "--image-column bild: "),
        "no split": (case(found["one.parquet"], split="test"), "has no splits; leave it out"),
        "other split": (case(found["splits"], split="validation"), "has no image in it, but in test, train"),
        "files have no split": (case(made[1][0], split="test"), "--split test: only applies to data sets and caches"),
        "unknown split": (case(tmp_path / "eval.parquet"), "--split-map eval=validation"),
        "not there": (case(tmp_path / "nowhere", source="parquet"), "nowhere: no such file or folder; name a parquet"),
        "no cache": (case(found["saved"], source="cache"), "not a cache (no readable manifest.json)"),
        "no data set": (case(tmp_path / "empty", source="hub"), "`datasets` can't load it"),
        "images": (case(tmp_path / "empty"), "empty: no image here"),
        "twice": (case(found["one.parquet"], found["one.tar"]), "both would be reported as"),
        "imagefolder": (case(found["saved"], format="imagefolder"), "--format imagefolder: is written among image files"),
        "texts": (lambda: run(model, None, found["saved"], format="txt"), "name a folder for the texts with --output"),  # type: ignore[arg-type]
        "attention": (case(cache_dir, attention=True, gallery=tmp_path / "p.html"), "--attention: needs the whole images"),
        "overwriting": (
            lambda: run(model, found["one.parquet"], found["one.parquet"], format="jsonl", overwrite=True),
            "is one of the images; name another output",
        ),
        "overwriting a part": (
            lambda: run(model, found["saved"] / "state.json", found["saved"], format="jsonl", overwrite=True),
            "which this command reads",
        ),
    }  # fmt: skip


def test_mistakes_are_one_sentence(made: Any, cache_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    for name, (mistake, sentence) in broken(tmp_path, made, cache_dir, model_dir).items():
        with pytest.raises(ToolkitError) as error:
            mistake()
        assert sentence in str(error.value), name
        assert "\n" not in str(error.value), name
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(InputError, match=r"--source zip: choose one of auto"):
        run(model_dir, tmp_path / "out.jsonl", "x", source="zip")
    mapped = {"split_map": ("eval=test",), "split": "test"}
    assert run(model_dir, tmp_path / "out.jsonl", tmp_path / "eval.parquet", **mapped).values["images"] == 1


def test_a_cache_of_other_pixels(
    sample_dir: Path, cache_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(cache_dir, tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    manifest["pixels"]["resample"] = 0
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"prepares images differently from .*cache \(resample\)"):
        run(model_dir, tmp_path / "out.jsonl", tmp_path / "cache")


def test_a_copy_with_a_column(made: Any, cache_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    """The rows of the source in their order, and what its files are captioned with; `datasets` reads it."""
    _, files, found, expected = made
    one, saved, splits = (found[name][0] for name in ("one.parquet", "saved", "splits"))
    out = tmp_path / "out.parquet"
    run(model_dir, out, one, add_column="generated")
    source, copy = pq.read_table(one), pq.read_table(out)
    assert copy.drop_columns("generated").equals(source)
    names = [image["path"] for image in source["image"].to_pylist()]
    assert copy["generated"].to_pylist() == [expected[name][0] for name in names]
    before = out.stat().st_mtime_ns
    assert run(model_dir, out, one, add_column="generated").values["new"] == 0
    assert out.stat().st_mtime_ns == before
    run(model_dir, tmp_path / "saved.parquet", saved, add_column="generated")
    dataset = Dataset.from_parquet(str(tmp_path / "saved.parquet"), cache_dir=str(tmp_path / "hf"))
    assert dataset.features == Features({"id": Value("int64"), "image": Image(), "generated": Value("string")})
    assert list(dataset["generated"]) == [expected[file.name][0] for file in files]
    run(model_dir, tmp_path / "test.parquet", splits, add_column="generated", split="test")
    half = files[len(files) // 2 :]
    assert pq.read_table(tmp_path / "test.parquet")["generated"].to_pylist() == [expected[f.name][0] for f in half]
    for given, more, sentence in (
        (splits, {}, "has several splits, and a Parquet file holds one"),
        (one, {"add_column": "image"}, "has such a column already"),
        (one, {"format": "csv"}, "add --format parquet"),
        (files[0], {}, "copies the rows of one data set"),
        (cache_dir, {}, "copies the rows of one data set"),
    ):
        with pytest.raises(InputError, match=sentence):
            run(model_dir, tmp_path / "no.parquet", given, **{"add_column": "generated", **more})


@pytest.mark.slow
def test_fifty_images(model_dir: Path, tmp_path: Path) -> None:
    from toolkit.commands.preprocess import preprocess
    from toolkit.data.drawing import draw_sample

    draw_sample(tmp_path / "data", images=50, seed=11)
    files = sorted((tmp_path / "data" / "Images").iterdir())
    run(model_dir, tmp_path / "files.jsonl", tmp_path / "data" / "Images")
    expected = said(rows_of(tmp_path / "files.jsonl"))
    assert len(expected) == 50
    for name, (path, more) in sources(tmp_path / "sets", files).items():
        run(model_dir, tmp_path / f"{name}.jsonl", path, **more)
        assert said(rows_of(tmp_path / f"{name}.jsonl")) == expected, name
    preprocess(PreprocessOptions(
        annotations=tmp_path / "data" / "captions.txt", images=tmp_path / "data" / "Images", preset="tiny", num_workers=1,
        out=tmp_path / "cache",
    ))  # fmt: skip
    run(model_dir, tmp_path / "cache.jsonl", tmp_path / "cache")
    rows = said(rows_of(tmp_path / "cache.jsonl"))
    assert {name: row[:4] for name, row in rows.items()} == {name: row[:4] for name, row in expected.items()}
