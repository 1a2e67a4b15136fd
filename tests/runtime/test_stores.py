"""Inputs and outputs at URLs: the bytes of local ones, seen anew when they change, finished by one put."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from toolkit.cache.uploads import Outbox, fetch_cache
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.caption import caption as look
from toolkit.commands.demo import demo
from toolkit.commands.evaluate import evaluate
from toolkit.commands.finetune import finetune
from toolkit.commands.inspect import inspect
from toolkit.commands.preprocess import preprocess
from toolkit.commands.sample import sample
from toolkit.data.images import read_image
from toolkit.data.sources import ImageSource, fetch_annotations, fetch_images, find_images
from toolkit.errors import ImageError, InputError, ModelError, OutputError, RunError, ToolkitError
from toolkit.evaluation.references import Source, read_references
from toolkit.options import (
    BatchCaptionOptions,
    CaptionOptions,
    DemoOptions,
    EvaluateOptions,
    FinetuneOptions,
    InspectOptions,
    PreprocessOptions,
    SampleOptions,
)
from toolkit.options.fields import from_flat
from toolkit.runtime import copies, remote
from toolkit.runtime.remote import url_of
from toolkit.runtime.variables import STORES_GB


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store in this process's memory; the working folder is empty too."""
    monkeypatch.chdir(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def upload(fs: Any, folder: Path, to: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{to}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def rows_of(cache: Path) -> dict[str, bytes]:
    """What of a cache may not depend on where the images lay: the data, its description, tokenizer and processor."""
    files = [p for p in cache.rglob("*") if p.is_file() and p.parent.name != "index" and p.name != "manifest.json"]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        (Path("s3://bucket/a/b/"), "s3://bucket/a/b"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        ("memory://x", "memory://x"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
        ("captions.txt", None),
        ("C:/images", None),
        (Path("/a/b:c/d"), None),
    ],
)
def test_what_is_a_url(given: str | Path, expected: str | None) -> None:
    assert url_of(given) == expected


def test_images_are_listed_and_the_rest_is_copied(memory: Any, sample_dir: Path) -> None:
    upload(memory, sample_dir, "/b/set")
    top = fetch_annotations("memory://b/set")
    assert (top / "captions.txt").read_bytes() == (sample_dir / "captions.txt").read_bytes()
    images = find_images([top])
    assert [image.name for image in images] == [image.name for image in find_images([sample_dir])]
    for image in images:
        source = sample_dir / image.name
        assert image.state()[0] == source.stat().st_size
        assert not image.path.exists()
        assert image.place == f"memory://b/set/{image.name}"
        there = pickle.loads(pickle.dumps(ImageSource.of(top / "Images")))  # as a worker has it
        data, state = there.read(image.name.removeprefix("Images/"))
        assert (data, state) == (source.read_bytes(), image.state())
        assert read_image(data).tobytes() == read_image(source).tobytes()


def test_what_changed_is_seen_from_the_listing(memory: Any) -> None:
    memory.pipe({"/b/a.png": b"one", "/b/c/d.txt": b"two", "/b/e.txt": b"three"})
    top = fetch_annotations("memory://b")
    image = ImageSource.of(top).state("a.png")
    before = {name: (top / name).stat() for name in ("c/d.txt", "e.txt")}
    assert fetch_annotations("memory://b") == top
    assert ImageSource.of(top).state("a.png") == image
    assert {name: (top / name).stat().st_ino for name in before} == {n: s.st_ino for n, s in before.items()}
    memory.pipe({"/b/a.png": b"eno", "/b/c/d.txt": b"owt"})  # the same sizes
    memory.rm("/b/e.txt")
    fetch_annotations("memory://b")
    assert ImageSource.of(top).state("a.png") != image
    assert (top / "c/d.txt").read_bytes() == b"owt"
    assert not (top / "e.txt").exists()


def test_an_image_gone_or_changed_since_the_listing(memory: Any) -> None:
    memory.pipe({"/b/a.png": b"one", "/b/c.png": b"two"})
    one, two = find_images(["memory://b"])
    memory.rm("/b/a.png")
    memory.pipe("/b/c.png", b"longer")
    with pytest.raises(ImageError, match=r"^missing$"):
        one.read()
    with pytest.raises(ImageError, match=r"^changed in the store$"):
        two.read()


def test_no_name_leads_outside(memory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.store["/b/../../../evil.png"] = _file(memory, "/b/../../../evil.png")
    memory.store["/b//x"] = _file(memory, "/b//x")
    memory.store["/b/x"] = _file(memory, "/b/x")
    top = copies.fetch_tree("memory://b")
    assert [p.name for p in top.rglob("*")] == ["x"]
    assert not list(tmp_path.rglob("evil.png"))
    assert "2 objects have names that no file here can have" in capsys.readouterr().err


def _file(memory: Any, path: str) -> Any:
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(memory, path, b"data")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/x", "memory://nowhere/x: no such object, folder or bucket; name one that is there."),
        ("zz://a/b", "zz://a/b: no such kind of store; s3://, gs://, hf:// and file:// are some."),
        ("file:///nowhere/x", "file:///nowhere/x: no such object, folder or bucket; name one that is there."),
    ],
)
def test_a_store_that_fails_is_one_sentence(memory: Any, url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        fetch_images(url)
    assert str(caught.value) == message


def test_a_missing_package_is_named(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(copies, "open_store", missing)
    with pytest.raises(InputError, match=r"^s3://b/x: the package for this store is missing; pip install s3fs\.$"):
        fetch_images("s3://b/x")


def test_a_full_disk_here_is_not_the_stores_fault(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/b/captions.txt", b"one")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", full)
        with pytest.raises(
            InputError, match=r"^memory://b: no space left on device, at \S+/cache/stores; make room there"
        ):
            fetch_annotations("memory://b")
    stores_folder = Path("cache/stores")
    denied = PermissionError(13, "Permission denied", str(stores_folder / "x"))
    written = pytest.raises(InputError, match=r"^memory://b: cache/stores/x, where a copy goes, can't be written")
    with written, remote.store_errors("memory://b"):
        raise denied
    with pytest.raises(InputError, match=r"^memory://b: the store denies access"), remote.store_errors("memory://b"):
        raise PermissionError("AccessDenied")


@pytest.mark.parametrize("kind", [TypeError, AttributeError, NameError, AssertionError])
def test_our_own_mistake_is_not_the_stores(memory: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise kind("a mistake in our call")

    memory.pipe("/b/captions.txt", b"one")
    monkeypatch.setattr(type(memory), "find", wrong)
    with pytest.raises(kind, match="a mistake in our call"):
        fetch_images("memory://b")


def test_data_that_looks_like_ours_is_read_as_it_is(memory: Any, tmp_path: Path, sample_dir: Path) -> None:
    """A folder in a downloaded data set is a folder, whatever its name and what lies in it."""
    memory.pipe({"/b/a.png": b"12"})
    (image,) = find_images(["memory://b"])
    place = tmp_path / "set" / "cache" / "stores" / Path(image.root).parent.name / "b"
    place.mkdir(parents=True)
    shutil.copy(Path(image.root).parent / "listing.sqlite", place.parent)
    (place / "a.png").write_bytes(b"123456")
    assert next(iter(find_images([place]))).read().data == b"123456"
    assert ImageSource.of(place).read("a.png").data == b"123456"


def test_a_failing_read_is_no_bad_image(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or an image without fault would be left out for good."""
    memory.pipe("/b/a.png", b"one")
    (image,) = find_images(["memory://b"])
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: (_ for _ in ()).throw(TimeoutError("timed out")))
    with pytest.raises(ToolkitError, match=r"^memory://b: the store can't be used \(timed out\)") as caught:
        image.read()
    assert not isinstance(caught.value, ImageError)


def test_placeholders_of_earlier_versions_go(memory: Any) -> None:
    memory.pipe({"/b/a.png": b"one", "/b/c.txt": b"two"})
    top = fetch_annotations("memory://b")
    (top / "a.png").write_bytes(b"\0\0\0")
    (top.parent / "store.json").write_text("{}")
    fetch_annotations("memory://b")
    assert sorted(path.name for path in top.parent.rglob("*")) == ["b", "c.txt", "listing.sqlite"]


def test_messages_name_the_url(memory: Any) -> None:
    memory.pipe({"/b/set/captions.txt": b"image,caption\na.png,A dog.\n", "/b/set/more/x.txt": b"x"})
    folder, file = fetch_annotations("memory://b/set"), fetch_annotations("memory://b/set/captions.txt")
    assert (f"{folder}", f"{folder / 'more' / 'x.txt'}") == ("memory://b/set", "memory://b/set/more/x.txt")
    assert f"{next(folder.rglob('x.txt'))}" == "memory://b/set/more/x.txt"
    assert f"{file}: empty" == "memory://b/set/captions.txt: empty"
    assert file.read_bytes().startswith(b"image")
    assert type(pickle.loads(pickle.dumps(file))) is type(Path())
    memory.pipe("/b/set/captions.txt", b"")
    with pytest.raises(InputError, match=r"^memory://b/set/captions.txt: the file is empty"):
        inspect(InspectOptions(path=Path("memory://b/set/captions.txt")))


def test_copies_not_used_for_longest_go_when_there_are_too_many(
    memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.pipe({f"/{name}/x.txt": bytes(10**6) for name in "abcd"})
    one, two = (copies.fetch_tree(f"memory://{name}").parent for name in "ab")
    for key in list(copies._in_use):  # as if another process had used them
        os.close(copies._in_use.pop(key))
    os.utime(two, (1, 1))
    monkeypatch.setenv(STORES_GB, "0.0025")
    three = copies.fetch_tree("memory://c").parent
    assert [path.is_dir() for path in (one, two, three)] == [True, False, True]
    assert f"{two}: removed, 0.00" in capsys.readouterr().err
    monkeypatch.setenv(STORES_GB, "0")
    four = copies.fetch_tree("memory://d").parent
    assert [path.is_dir() for path in (one, three, four)] == [False, True, True], "what this run uses stays"
    assert (three / "c" / "x.txt").is_file()
    monkeypatch.setenv(STORES_GB, "much")
    memory.pipe("/d/y.txt", b"1")
    with pytest.raises(InputError, match=r"^TOOLKIT_STORES_GB much: must be a number of gigabytes"):
        copies.fetch_tree("memory://d")


# ---- preprocess -----------------------------------------------------------------------------------------------------


def test_a_cache_from_urls_has_the_bytes_of_a_local_one(memory: Any, sample_dir: Path, cache_dir: Path) -> None:
    upload(memory, sample_dir, "/b/set")
    options = PreprocessOptions(
        annotations=Path("memory://b/set/captions.txt"), images=Path("memory://b/set/Images"), preset="tiny",
        num_workers=1,
    )  # fmt: skip
    summary = preprocess(options)
    assert rows_of(Path("cache/dataset")) == rows_of(cache_dir)
    assert "cache/stores" not in summary.text
    before = {p: p.stat() for p in Path("cache/dataset").rglob("*")}
    assert "up to date" in preprocess(options).text
    assert {p: p.stat().st_mtime_ns for p in before} == {p: s.st_mtime_ns for p, s in before.items()}
    name = sorted(p.name for p in (sample_dir / "Images").iterdir())[0]
    other = sorted(p for p in (sample_dir / "Images").iterdir())[1]
    memory.pipe_file(f"/b/set/Images/{name}", other.read_bytes())
    assert "done" in preprocess(options).text


def test_workers_read_the_store_themselves(memory: Any, sample_dir: Path, cache_dir: Path) -> None:
    url = f"file://{sample_dir}"
    preprocess(PreprocessOptions(annotations=Path(url), preset="tiny", num_workers=2))
    assert rows_of(Path("cache/dataset")) == rows_of(cache_dir)


def test_a_cache_goes_to_a_url_and_comes_back(memory: Any, sample_dir: Path, cache_dir: Path) -> None:
    options = PreprocessOptions(
        annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=Path("memory://out/cache"),
        preset="tiny", num_workers=1,
    )  # fmt: skip
    assert preprocess(options).text.startswith("memory://out/cache: done.")
    there = {name: memory.cat_file(name) for name in memory.find("/out")}
    local = {p.relative_to(cache_dir).as_posix() for p in cache_dir.rglob("*") if p.is_file()}
    assert {name.removeprefix("/out/cache/") for name in there} == local
    times = memory.find("/out", detail=True)
    preprocess(options)
    assert memory.find("/out", detail=True) == times  # nothing was put again
    fetched = fetch_cache("memory://out/cache")
    assert rows_of(fetched) == rows_of(cache_dir)
    assert fetch_cache("memory://out/cache") == fetched
    # elsewhere: what is in the store serves again, and nothing is sent
    shutil.rmtree("cache")
    assert "up to date" in preprocess(options).text
    assert memory.find("/out", detail=True) == times
    # a part that was lost in the store goes again, with the manifest last
    memory.rm("/out/cache/train/" + Path(next(n for n in times if "/train/" in n and n.endswith(".arrow"))).name)
    preprocess(options)
    assert {name: memory.cat_file(name) for name in memory.find("/out")} == there
    after = memory.find("/out", detail=True)
    assert max(after, key=lambda name: after[name]["created"]) == "/out/cache/manifest.json"


def test_a_cache_without_manifest_is_none(memory: Any, cache_dir: Path) -> None:
    upload(memory, cache_dir, "/c")
    memory.rm("/c/manifest.json")
    with pytest.raises(InputError, match=r"^memory://c: no finished cache here"):
        fetch_cache("memory://c")
    with pytest.raises(ToolkitError, match=r"^--out memory://c: holds files that are no finished cache"):
        preprocess(PreprocessOptions(annotations=cache_dir, out=Path("memory://c"), preset="tiny"))


def test_half_a_cache_is_not_used(memory: Any, cache_dir: Path) -> None:
    upload(memory, cache_dir, "/c")
    files = json.loads((cache_dir / "manifest.json").read_bytes())["files"]
    memory.rm("/c/" + sorted(files)[0])
    with pytest.raises(InputError, match=r"^memory://c: the cache is changing or not whole"):
        fetch_cache("memory://c")
    upload(memory, cache_dir, "/c")
    assert rows_of(fetch_cache("memory://c")) == rows_of(cache_dir)


@pytest.mark.parametrize("elsewhere", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_not_of_a_cache_in_a_store_stays(
    memory: Any, sample_dir: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool, stopped: bool
) -> None:
    upload(memory, cache_dir, "/c")
    foreign = {"/c/notes.txt": b"mine", "/c/model/model.safetensors": b"weights", "/c/train/cache-1.arrow": b"result",
               "/c/features/a/b.bin": b"states", "/c/index/README": b"mine too"}  # fmt: skip
    memory.pipe(foreign)
    times = {name: memory.info(name)["created"] for name in foreign}

    def run(**more: Any) -> Any:
        return preprocess(
            PreprocessOptions(annotations=sample_dir / "captions.txt", images=sample_dir / "Images", preset="tiny",
                              out=Path("memory://c"), num_workers=1, **more)
        )  # fmt: skip

    assert "up to date" in run().text
    fetched = {path.name for path in Path("cache/stores").rglob("*") if path.is_file()}
    assert not fetched & {name.rpartition("/")[2] for name in foreign}
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "put_file", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("reset")))
            with pytest.raises(OutputError, match="reset"):
                run(max_length=30)
        assert not memory.exists("/c/manifest.json")
    if elsewhere and not stopped:
        shutil.rmtree("cache")
    run(max_length=30)
    assert {name: memory.info(name)["created"] for name in foreign} == times
    there = {name.removeprefix("/c/") for name in memory.find("/c") if name not in foreign}
    manifest = json.loads(memory.cat_file("/c/manifest.json"))
    assert there == {*manifest["files"], "manifest.json"}
    assert manifest["options"]["max_length"] == 30


def test_an_object_in_a_caches_way_is_refused(memory: Any, sample_dir: Path) -> None:
    memory.pipe({"/c/rejected.jsonl": b"mine", "/d/notes.txt": b"mine"})
    for url in ("memory://c", "memory://d"):
        with pytest.raises(OutputError, match=rf"^--out {url}: holds files that are no finished cache; name another"):
            preprocess(PreprocessOptions(annotations=sample_dir / "captions.txt", images=sample_dir / "Images",
                                         preset="tiny", out=Path(url), num_workers=1))  # fmt: skip
    assert memory.cat_file("/c/rejected.jsonl") == memory.cat_file("/d/notes.txt") == b"mine"
    with Outbox("memory://e") as outbox:
        outbox.file.mkdir()
        (outbox.file / "rejected.jsonl").write_bytes(b"ours")
        (outbox.file / "manifest.json").write_text('{"files": {"rejected.jsonl": 4}}')
        memory.pipe({"/e/rejected.jsonl": b"mine"})
        with pytest.raises(
            OutputError, match=r"^--out memory://e: rejected\.jsonl is there, and does not belong to a cache"
        ):
            outbox.put_cache()
    assert memory.cat_file("/e/rejected.jsonl") == b"mine"


def test_one_run_at_a_time_writes_an_output(memory: Any) -> None:
    with Outbox("memory://o/captions.jsonl"), pytest.raises(OutputError, match="another run is writing it"):
        Outbox("memory://o/captions.jsonl")
    with Outbox("memory://o/captions.jsonl"):
        pass


# ---- captions -------------------------------------------------------------------------------------------------------


def caption(model_dir: Path, *paths: str, **options: Any) -> Any:
    options = {"num_beams": 1, "num_workers": 2, **options}
    return batch_caption(from_flat(BatchCaptionOptions, {"paths": paths, "model": str(model_dir), **options}))


def test_captions_of_urls_at_a_url(
    memory: Any, sample_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(memory, sample_dir / "Images", "/b/Images")
    caption(model_dir, str(sample_dir / "Images"), output=Path("local.jsonl"))
    out, url = Path("memory://out/captions.jsonl"), "/out/captions.jsonl"
    summary = caption(model_dir, "memory://b/Images", output=out)
    counts = {name: value for name, value in summary.values.items() if name != "settings"}
    assert counts == {"output": "memory://out/captions.jsonl", "images": 48, "new": 48, "errors": 0}
    assert memory.cat_file(url) == Path("local.jsonl").read_bytes()
    # again: nothing is captioned, nothing put
    before = memory.info(url)["created"]
    assert caption(model_dir, "memory://b/Images", output=out).values["new"] == 0
    assert memory.info(url)["created"] == before
    # elsewhere: the state beside the output says what is done
    shutil.rmtree("cache")
    assert caption(model_dir, "memory://b/Images", output=out).values["new"] == 0
    assert memory.info(url)["created"] == before
    # one image more; and a glob
    memory.pipe_file("/b/Images/zz.jpg", next((sample_dir / "Images").iterdir()).read_bytes()[:500])
    more = caption(model_dir, "memory://b/Ima*/*.jpg", output=out)
    there = [*(sample_dir / "Images").glob("*.jpg"), "zz.jpg"]
    assert (more.values["images"], more.values["new"], more.exit_code) == (len(there), 1, 3)
    said = capsys.readouterr().err
    assert "memory://out/captions.jsonl: 48 of 48 images are captioned already" in said
    assert "cache/stores" not in said


def test_somebody_elses_output_stays(memory: Any, sample_dir: Path, model_dir: Path) -> None:
    memory.pipe_file("/out/captions.jsonl", b"mine")
    with pytest.raises(
        OutputError, match=r"^--output memory://out/captions.jsonl: exists and is not what this command wrote"
    ):
        caption(model_dir, str(sample_dir / "Images"), output=Path("memory://out/captions.jsonl"))
    assert memory.cat_file("/out/captions.jsonl") == b"mine"


def text_of(fs: Any, folder: str) -> dict[str, bytes]:
    return {path.removeprefix(folder + "/"): fs.cat_file(path) for path in fs.find(folder) if path.endswith(".txt")}


@pytest.mark.parametrize("beside", [True, False])
def test_a_text_file_for_each_image(memory: Any, sample_dir: Path, model_dir: Path, beside: bool) -> None:
    """Among the images, or in another folder; the local ones' bytes."""
    names = sorted(path.name for path in (sample_dir / "Images").iterdir())[:6]
    for name in names:
        for fs, folder in ((memory, "/b/Images/deep"), (fsspec.filesystem("file"), "here/Images/deep")):
            fs.makedirs(folder, exist_ok=True)
            fs.pipe_file(f"{folder}/{name}", (sample_dir / "Images" / name).read_bytes())
    caption(model_dir, "here/Images", format="txt")
    local = {
        path.relative_to("here/Images").as_posix(): path.read_bytes() for path in Path("here/Images").rglob("*.txt")
    }
    output = {} if beside else {"output": Path("memory://t/out")}
    folder = "/b/Images" if beside else "/t/out"

    def run(**options: Any) -> Any:
        return caption(model_dir, "memory://b/Images", format="txt", **output, **options)

    counts = {name: value for name, value in run().values.items() if name != "settings"}
    assert counts == {"output": f"memory:/{folder}", "images": 6, "new": 6, "errors": 0}
    assert text_of(memory, folder) == local
    assert memory.exists(folder + ".state")
    # again, here and elsewhere: nothing is captioned, nothing put
    times = {path: info["created"] for path, info in memory.find("/", detail=True).items()}
    assert run().values["new"] == 0
    shutil.rmtree("cache")
    assert run().values["new"] == 0
    assert times == {path: info["created"] for path, info in memory.find("/", detail=True).items()}
    # one is removed, and is back; one is edited, and stays: as with local files
    first, second = sorted(local)[:2]
    memory.rm_file(f"{folder}/{first}")
    memory.pipe_file(f"{folder}/{second}", b"edited")
    assert (run().values["new"], run().values["kept"]) == (0, 1)
    assert text_of(memory, folder) == {**local, second: b"edited"}
    assert "kept" not in run(overwrite=True).values
    assert text_of(memory, folder) == local
    # an image is removed: its text stays, and is nobody's business
    memory.rm_file(f"/b/Images/deep/{names[0]}")
    assert run().values["images"] == 5
    assert text_of(memory, folder) == local


def test_somebody_elses_text_stays(memory: Any, sample_dir: Path, model_dir: Path) -> None:
    name = sorted(path.name for path in (sample_dir / "Images").iterdir())[0]
    memory.pipe_file(f"/b/{name}", (sample_dir / "Images" / name).read_bytes())
    memory.pipe_file(f"/b/{name[:-4]}.txt", b"mine")
    with pytest.raises(
        OutputError, match=rf"^--output memory://b/{name[:-4]}.txt: exists and is not what this command wrote"
    ):
        caption(model_dir, "memory://b", format="txt")
    assert memory.cat_file(f"/b/{name[:-4]}.txt") == b"mine"
    caption(model_dir, "memory://b", format="txt", overwrite=True)
    assert memory.cat_file(f"/b/{name[:-4]}.txt") != b"mine"
    assert not memory.exists("/b.state"), "that would be another bucket"
    assert memory.exists("/b/.state")


def test_an_image_folder(memory: Any, sample_dir: Path, model_dir: Path) -> None:
    upload(memory, sample_dir / "Images", "/b/Images")
    shutil.copytree(sample_dir / "Images", "here")
    caption(model_dir, "here", format="imagefolder")
    summary = caption(model_dir, "memory://b/Images", format="imagefolder")
    assert summary.values["output"] == "memory://b/Images/metadata.jsonl"
    assert memory.cat_file("/b/Images/metadata.jsonl") == Path("here/metadata.jsonl").read_bytes()
    assert (
        caption(model_dir, "memory://b/Images", format="imagefolder", output=Path("memory://b/Images")).values["new"]
        == 0
    )
    for more in ({"output": Path("memory://elsewhere")}, {"paths": ("memory://b/Images", "here")}):
        paths = more.pop("paths", ("memory://b/Images",))
        with pytest.raises(InputError, match=r"^--format imagefolder: writes among the images of one folder"):
            caption(model_dir, *paths, format="imagefolder", **more)


def test_a_model_at_a_url(memory: Any, sample_dir: Path, cache_dir: Path, model_dir: Path) -> None:
    upload(memory, model_dir, "/m/model")
    name = str(next((sample_dir / "Images").iterdir()))
    away, here = (look(CaptionOptions(images=(name,), model=model)) for model in ("memory://m/model", str(model_dir)))
    assert away.values == here.values
    copied = {path.name for path in Path("cache/stores").rglob("*") if path.is_file()}
    assert "model.safetensors" in copied
    assert "optimizer.pt" not in copied
    caption(Path("memory://m/model"), name, output=Path("away.jsonl"))
    caption(model_dir, name, output=Path("here.jsonl"))
    assert Path("away.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
    away, here = (
        evaluate(EvaluateOptions(model=model, references=cache_dir, split="test", idf=idf)).values["metrics"]
        for model, idf in (("memory://m/model", "memory://c/dataset"), (str(model_dir), str(cache_dir)))
        if upload(memory, cache_dir, "/c/dataset") is None
    )
    assert away == here
    options = FinetuneOptions(cache=cache_dir, output_dir=Path("more"), init_from="memory://m/model", max_steps=1)
    assert finetune(options).values["steps"] == 1
    memory.rm_file("/m/model/config.json")
    with pytest.raises(ModelError, match=r"^--model memory://m/model"):
        look(CaptionOptions(images=(name,), model="memory://m/model"))


@pytest.mark.parametrize(
    ("command", "options", "name"),
    [
        (finetune, FinetuneOptions(output_dir=Path("s3://b/x.html")), "output-dir"),
        (batch_caption, BatchCaptionOptions(paths=("x",), gallery=Path("s3://b/x.html")), "gallery"),
        (evaluate, EvaluateOptions(page=Path("s3://b/x.html")), "page"),
        (evaluate, EvaluateOptions(per_image=Path("s3://b/x.csv")), "per-image"),
        (inspect, InspectOptions(path=Path("x"), sheet=Path("s3://b/x.html")), "sheet"),
        (sample, SampleOptions(directory=Path("s3://b/x")), "directory"),
        (demo, DemoOptions(directory=Path("s3://b/x")), "directory"),
    ],
)
def test_what_must_be_local(command: Any, options: Any, name: str, memory: Any) -> None:
    with pytest.raises(OutputError, match=rf"^--{name} s3://b/x\S*: must be local; name a path here"):
        command(options)
    assert list(Path().iterdir()) == []


def test_the_finished_file_is_renamed_into_a_folder_of_files(memory: Any, sample_dir: Path, model_dir: Path) -> None:
    """A put there would show a file that grows."""
    name = sorted(p.name for p in (sample_dir / "Images").iterdir())[0]
    target = Path("there/deep/captions.csv").absolute()
    caption(model_dir, str(sample_dir / "Images" / name), output=Path(f"file://{target}"))
    assert sorted(p.name for p in target.parent.iterdir()) == ["captions.csv", "captions.csv.state"]
    assert name in target.read_text()


# ---- what reads a cache ---------------------------------------------------------------------------------------------


def test_a_cache_at_a_url_is_trained_on_and_looked_at(memory: Any, cache_dir: Path, model_dir: Path) -> None:
    upload(memory, cache_dir, "/c/dataset")
    url = Path("memory://c/dataset")
    finetune(FinetuneOptions(cache=url, output_dir=Path("model"), epochs=2, batch_size=8))
    assert Path("model/model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()
    local_text = inspect(InspectOptions(path=cache_dir)).text
    assert inspect(InspectOptions(path=url)).text == local_text.replace(str(cache_dir), "memory://c/dataset")
    rows = [
        {"image": name, "caption": "a red circle"} for name in read_references(Source(cache_dir), "test").paths.values()
    ]
    memory.pipe_file("/h/c.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    Path("c.jsonl").write_bytes(memory.cat_file("/h/c.jsonl"))
    local = evaluate(EvaluateOptions(hypotheses=Path("c.jsonl"), references=cache_dir))
    away = evaluate(EvaluateOptions(hypotheses=Path("memory://h/c.jsonl"), references=url))
    assert away.values["metrics"] == local.values["metrics"]


# ---- stopped half way -----------------------------------------------------------------------------------------------


def test_an_upload_that_fails_leaves_no_cache_and_goes_on(
    memory: Any, sample_dir: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PreprocessOptions(
        annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=Path("memory://o/cache"),
        preset="tiny", num_workers=1,
    )  # fmt: skip
    put, sent = type(memory).put_file, list[str]()

    def failing(self: Any, source: str, target: str, **more: Any) -> None:
        if len(sent) == 5:
            raise ConnectionError("reset by peer")
        sent.append(target)
        put(self, source, target, **more)

    monkeypatch.setattr(type(memory), "put_file", failing)
    with pytest.raises(OutputError, match=r"^memory://o/cache: the store can't be used \(reset by peer\)"):
        preprocess(options)
    assert len(memory.find("/o")) == 5
    assert not memory.exists("/o/cache/manifest.json")
    first = set(sent)
    sent.clear()
    monkeypatch.setattr(type(memory), "put_file", lambda *a, **k: (sent.append(a[2]), put(*a, **k)))
    preprocess(options)
    assert not first & set(sent)  # what went already does not go again
    assert sent[-1] == "/o/cache/manifest.json"
    assert rows_of(fetch_cache("memory://o/cache")) == rows_of(cache_dir)


def test_captioning_goes_on_when_the_store_is_back(
    memory: Any, sample_dir: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(memory, sample_dir / "Images", "/b/Images")
    cat, calls = type(memory).cat_file, list[str]()

    def failing(self: Any, path: str, **more: Any) -> Any:
        calls.append(path)
        if len(calls) > 30:
            raise TimeoutError("timed out")
        return cat(self, path, **more)

    out = Path("memory://out/captions.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", failing)
        with pytest.raises(RunError, match=r"^memory://b/Images: the store can't be used \(timed out\)"):
            caption(model_dir, "memory://b/Images", output=out, batch_size="4")
    assert not memory.exists("/out/captions.jsonl")
    summary = caption(model_dir, "memory://b/Images", output=out)
    assert 0 < summary.values["new"] < 48
    caption(model_dir, str(sample_dir / "Images"), output=Path("local.jsonl"))
    ours, local = (
        [json.loads(line) for line in content.splitlines()]
        for content in (memory.cat_file("/out/captions.jsonl"), Path("local.jsonl").read_bytes())
    )
    for one, other in zip(ours, local, strict=True):  # in batches of other images, whose sums round otherwise
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=2e-4)
    assert ours == local


def test_a_cache_brings_nothing_from_outside(memory: Any, cache_dir: Path, tmp_path: Path) -> None:
    upload(memory, cache_dir, "/c")
    memory.store["/c//evil"] = _file(memory, "/c//evil")
    with pytest.raises(InputError, match=r"^memory://c: /evil is listed there, outside of it"):
        fetch_cache("memory://c")
    assert not list(tmp_path.rglob("evil"))
