"""What a new cache may replace: the earlier one's files and no other, whenever it is killed."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preprocessing import DataSet, decoded, picture, tree

import toolkit.cache.staging
import toolkit.cache.workspace
import toolkit.commands.preprocess
from toolkit.cache.schema import is_cache_file, open_cache
from toolkit.cache.workspace import CACHE, foreign
from toolkit.errors import InputError, OutputError
from toolkit.runtime.swap import clear

FOREIGN = {
    "model/model.safetensors": b"weights",
    "model/checkpoints/checkpoint-1/config.json": b"{}",
    "features/0123/4567.bin": b"hours of work",
    "notes.txt": b"mine",
    "train/cache-0123.arrow": b"a result of datasets' map",
    "train/data-1.arrow": b"not a name that we give",
    "index/README": b"mine too",
    ".hidden": b"",
}


pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path / "data")


def put(folder: Path, files: dict[str, bytes] = FOREIGN) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def kept(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The foreign files that are in their place, with their inodes: they were never moved or copied."""
    return {n: ((folder / n).stat().st_ino, (folder / n).read_bytes()) for n in FOREIGN if (folder / n).is_file()}


def ours(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name not in FOREIGN}


def shorter(data: DataSet) -> None:
    """Other captions and two shards fewer, so that files of every kind are replaced, taken over and removed."""
    data.rows = [(name, f"now {caption}") if i > 8 else (name, caption) for i, (name, caption) in enumerate(data.rows)]
    data.rows = [row for row in data.rows if row[0] < "007"]
    data.write()


# ---- foreign files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [None, "manifest", "shard"])
def test_what_is_not_of_the_cache_stays(data: DataSet, damage: str | None) -> None:
    data.run()
    put(data.out)
    before = kept(data.out)
    (data.out / "empty").mkdir()
    (data.out / "link").symlink_to("model")
    shorter(data)
    if damage == "manifest":
        (data.out / "manifest.json").write_bytes(b"{")
    if damage == "shard":
        (data.out / "train" / "data-000000.arrow").unlink()
    data.run(overwrite=damage == "manifest")
    assert kept(data.out) == before
    assert len(before) == len(FOREIGN)
    assert (data.out / "link").readlink() == Path("model")
    assert (data.out / "empty").is_dir()
    (data.out / "link").unlink()
    data.run(out=data.root / "fresh")
    assert ours(data.out) == tree(data.root / "fresh")
    assert data.beside() == ["dataset"]


def test_a_manifest_from_elsewhere_deletes_nothing(data: DataSet) -> None:
    """It may list anything."""
    data.run()
    put(data.out)
    (data.root / "thesis.tex").write_text("mine")
    manifest = json.loads((data.out / "manifest.json").read_text())
    bait = [*FOREIGN, "../../thesis.tex", str(data.root / "thesis.tex"), "tokenizer/../../../thesis.tex", "", ".", 7]
    manifest["files"] |= dict.fromkeys(map(str, bait), 4)
    (data.out / "manifest.json").write_text(json.dumps(manifest))
    before = kept(data.out)
    shorter(data)
    data.run()
    assert kept(data.out) == before
    assert (data.root / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("suffix", [".partial", ".stale", ".old"])
@pytest.mark.parametrize("kind", ["notes", "folder", "names", "link", "file"])
def test_folders_beside_it_that_are_somebody_elses(
    data: DataSet, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused where they are needed, and never touched."""
    beside = data.out.with_name("dataset" + suffix)
    beside.parent.mkdir()
    if kind == "file":
        beside.write_bytes(b"mine")
    elif kind == "link":
        put(data.root / "elsewhere", {"index/000000.arrow": b"mine"})
        beside.symlink_to(data.root / "elsewhere")
    else:
        put(beside, {"notes": {"notes.txt": b"mine"}, "folder": {"a/b/manifest.json": b"mine"},
                     "names": {"train/data-000000.arrow": b"mine", "train/x": b"mine"}}[kind])  # fmt: skip
    before = tree(data.out.parent)
    if suffix == ".partial":
        with pytest.raises(
            OutputError, match=r"dataset\.partial\S* is in the way of the build, and no earlier build wrote it"
        ):
            data.run()
        assert tree(data.out.parent) == before
        assert data.beside() == ["dataset.partial"]
        return
    data.run()
    data.run(seed=2)
    shorter(data)
    data.run(seed=2)
    after = {name: content for name, content in tree(data.out.parent).items() if not name.startswith("dataset/")}
    assert after == before
    assert beside.is_symlink() == (kind == "link")
    assert data.beside() == ["dataset", "dataset" + suffix]


def test_an_unfinished_build_is_not_set_aside_over_something_else(data: DataSet) -> None:
    unfinished(data)
    stale = data.out.with_name("dataset.stale")
    put(stale, {"notes.txt": b"mine"})
    with pytest.raises(OutputError, match=r"dataset\.stale/notes\.txt is in the way of the build"):
        data.run(max_length=30)
    assert tree(stale) == {"notes.txt": b"mine"}
    data.run()  # which needs no such folder
    assert tree(stale) == {"notes.txt": b"mine"}


def unfinished(data: DataSet) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolkit.commands.preprocess, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(toolkit.commands.preprocess.ToolkitError, match="stopped"):
            data.run()
    assert data.beside() == ["dataset.partial"]


def test_a_note_within_an_unfinished_build_stays(data: DataSet) -> None:
    unfinished(data)
    partial = data.out.with_name("dataset.partial")
    put(partial, {"notes.txt": b"mine", ".DS_Store": b"file manager"})
    with pytest.raises(OutputError, match=r"dataset\.partial/notes\.txt is in the way of the build"):
        data.run()
    (partial / "notes.txt").unlink()
    data.run()
    assert ".DS_Store" in tree(data.out)  # with its folder, which was renamed
    put(data.out.with_name("dataset.partial"), {".DS_Store": b"file manager"})
    data.run(seed=3)
    assert tree(data.out.with_name("dataset.partial")) == {".DS_Store": b"file manager"}


def test_a_file_in_the_way_is_refused(data: DataSet) -> None:
    data.run()
    before = tree(data.out)
    for i in range(100, 110):
        data.add(f"{i}.png", picture(i))
    data.write()
    put(data.out, {"index/000003.arrow": b"mine"})
    with pytest.raises(OutputError, match=r"index/000003\.arrow, which the earlier run did not write, is in the way"):
        data.run()
    assert tree(data.out) == {**before, "index/000003.arrow": b"mine"}
    (data.out / "index/000003.arrow").unlink()
    calls = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        calls = decoded(patch)
        data.run()
    assert calls == []
    data.run(out=data.root / "fresh")
    assert tree(data.out) == tree(data.root / "fresh")


def test_the_working_folder_is_refused(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.root)
    before = tree(data.root)
    for out in (".", "..", str(data.root), "/", str(Path.home()), "Images", "captions.txt"):
        with pytest.raises(OutputError, match=r"^--out "):
            data.run(out=Path(out))
    assert tree(data.root) == before


def test_a_part_of_the_cache_on_another_disk(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    shutil.move(data.out / "train", data.root / "big")
    (data.out / "train").symlink_to(data.root / "big")
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).resolve().parent == data.root / "big" and Path(source).parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        data.run(max_length=30)
    assert (data.out / "train").is_symlink()
    data.run(out=data.root / "fresh", max_length=30)
    assert {p.name: p.read_bytes() for p in (data.root / "big").iterdir()} == {
        p.name: p.read_bytes() for p in (data.root / "fresh" / "train").iterdir()
    }


def test_what_the_manifest_promises_is_on_the_disk(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = set[int](), os.fsync

    def fsync(file: int) -> None:
        if not (data.out.with_name("dataset.partial") / "manifest.json").exists():
            synced.add(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    data.run()
    files = json.loads((data.out / "manifest.json").read_text())["files"]
    assert {(data.out / name).stat().st_ino for name in files} <= synced


def test_whose_a_name_is(tmp_path: Path) -> None:
    assert all(
        map(is_cache_file, ("train/data-000000.arrow", "index/1000000.arrow", "tokenizer/a/b", "rejected.jsonl"))
    )
    names = ("train/data-00000-of-00001.arrow", "manifest.json", "tokenizer", "tokenizer/../x", "x/train/state.json")
    assert not any(map(is_cache_file, names))
    put(tmp_path / "x", {"index/000000.arrow.0123abcd.tmp": b"", "records/000000.arrow": b"", "manifest.json": b""})
    assert foreign(tmp_path / "x") is None
    assert foreign(tmp_path / "none") is None
    clear(tmp_path / "x", CACHE)
    assert not (tmp_path / "x").exists()


# ---- killed -----------------------------------------------------------------------------------------------------------

STEPS = ("rename", "replace", "remove", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, function: str, step: int) -> None:
    """Raises within a function of the workspace at one of its changes of the file system."""
    left, real = [step], getattr(toolkit.cache.workspace, function)

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    def killed(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, counted(getattr(os, name)))
            return real(*args)

    monkeypatch.setattr(toolkit.cache.workspace, function, killed)
    if hasattr(toolkit.commands.preprocess, function):
        monkeypatch.setattr(toolkit.commands.preprocess, function, killed)


def opens(out: Path) -> bool:
    """Whether `datasets` or we take it for a cache; if so, it is a whole one."""
    import datasets

    loaded, found = None, None
    try:
        loaded = datasets.load_from_disk(str(out))
    except Exception:
        with pytest.raises(InputError):
            open_cache(out)
        return False
    try:
        found = open_cache(out)
    except InputError:
        return False
    manifest = found.manifest
    for name, size in manifest["files"].items():
        assert (out / name).stat().st_size == size, name
    assert {split: len(loaded[split]) for split in loaded} == manifest["counts"]["splits"]
    return True


@pytest.mark.parametrize("other", ["rerun", pytest.param("other options", marks=pytest.mark.slow), "killed again"])
def test_killed_at_each_step_of_the_swap(data: DataSet, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    data.run()
    put(data.out)
    shutil.copytree(data.out, data.root / "first", copy_function=os.link)
    old_rows = open_cache(data.out)["train"]
    old = [row["pixel_values"] for row in old_rows]
    before_rows = [pixels.copy() for pixels in old]
    shorter(data)
    last = {"max_length": 33} if other == "other options" else {}
    data.run(out=data.root / "undisturbed", **last)
    step, opened, met = 0, 0, 0
    while True:
        shutil.rmtree(data.out.parent)
        data.out.parent.mkdir()
        shutil.copytree(data.root / "first", data.out, copy_function=os.link)
        before = kept(data.out)
        with monkeypatch.context() as patch:
            kill_at(patch, "swap", step)
            try:
                data.run()
                break
            except Killed:
                met += 1
        assert kept(data.out) == before, f"step {step}"
        opened += opens(data.out)
        if other == "killed again":
            with monkeypatch.context() as patch, suppress(Killed):
                kill_at(patch, "take_place", step % 7)
                data.run()
            assert kept(data.out) == before, f"step {step}"
        data.run(**last)
        assert kept(data.out) == before, f"step {step}"
        assert ours(data.out) == tree(data.root / "undisturbed"), f"step {step}"
        assert data.beside() == ["dataset"], f"step {step}"
        step += 1
    assert met > 20
    assert 0 < opened < met
    assert all(np.array_equal(a, b) for a, b in zip(old, before_rows, strict=True))  # still mapped
