"""Every option that names an output, given what it must not replace: nothing foreign changes, and inputs are refused.

A world of a data set, a cache, a model, captions and other people's files is made once; each case runs the command in
this process and compares the whole world, byte by byte and link by link, with what it was.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from preprocessing import stored_processors

from toolkit import cli
from toolkit.errors import ToolkitError
from toolkit.options.fields import from_flat

# Paths that are read. One that is neither here nor marked with `output=True` fails the first test.
INPUTS = {
    ("preprocess", "annotations"), ("preprocess", "images"), ("preprocess", "reviewed"), ("preprocess", "train_list"), ("preprocess", "val_list"),
    ("preprocess", "test_list"), ("finetune", "cache"), ("evaluate", "hypotheses"), ("evaluate", "references"),
    ("evaluate", "against"), ("evaluate", "images"), ("inspect", "path"), ("inspect", "images"), ("push", "path"),
    ("review", "path"), ("review", "images"), ("review", "references"), ("review", "gallery"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An option that names an output.

    Attributes:
        given: the other options.
        suffix: what a file's name has to end in; None for a folder.
        inputs: what the command reads.
        may_add: names that --overwrite may replace in a folder.
    """

    command: str
    option: str
    given: dict[str, Any]
    suffix: str | None
    inputs: tuple[str, ...]
    may_add: Callable[[str], bool] = lambda name: False

    @property
    def name(self) -> str:
        return f"{self.command} --{self.option} {self.given.get('format', '')}{self.suffix or ''}".strip()


READ = {"annotations": Path("data/captions.txt"), "images": Path("data/Images"), "num_workers": 1, "preset": "tiny"}
CAPTION = {"paths": ("data/Images",), "model": "model", "num_beams": 1, "max_length": 4, "num_workers": 1}
JUDGE = {
    "hypotheses": Path("said.csv"),
    "references": Path("cache"),
    "split": "all",
    "resamples": 1,
    "metrics": "rouge_l",
}
LOOK = {"path": Path("data/captions.txt"), "near_duplicates": "off", "num_workers": 1}
CASES = [
    Case("preprocess", "out", READ, None, ("data/captions.txt", "data/Images", "data")),
    Case("finetune", "output_dir", {"cache": Path("cache"), "max_steps": 0, "epochs": 0.0, "num_beams": 1}, None, ("cache",)),
    Case("finetune", "output_dir", {"cache": Path("cache"), "init_from": "model", "max_steps": 0, "epochs": 0.0,
                                    "num_beams": 1}, None, ("cache", "model")),
    *(Case("batch-caption", "output", {**CAPTION, "format": form}, suffix, ("model", "data/Images/one.jpg"))
      for form, suffix in (("jsonl", ".jsonl"), ("csv", ".csv"), ("parquet", ".parquet"), ("coco", ".json"))),
    Case("batch-caption", "output", {**CAPTION, "format": "txt"}, None, (), lambda name: name.endswith(".txt")),
    Case("batch-caption", "output", {**CAPTION, "format": "imagefolder"}, None, (), lambda name: name == "metadata.jsonl"),
    Case("batch-caption", "gallery", {**CAPTION, "output": Path("new.jsonl")}, ".html", ("data/Images/one.jpg", "model")),
    Case("evaluate", "per_image", JUDGE, ".csv", ("said.csv", "cache")),
    Case("evaluate", "per_image", JUDGE, ".parquet", ("said.csv", "cache")),
    Case("evaluate", "page", JUDGE, ".html", ("said.csv", "cache")),
    Case("inspect", "sheet", LOOK, ".html", ("data/captions.txt", "data")),
    Case("inspect", "page", {"path": Path("model")}, ".html", ("model",)),
    *(Case("review", "export", {"path": Path("said.csv")}, suffix, ("said.csv",))
      for suffix in (".jsonl", ".csv", ".parquet", ".json")),
    Case("review", "export", {"path": Path("said.csv"), "format": "txt"}, None, (), lambda name: name.endswith(".txt")),
    Case("export", "directory", {"model": "model"}, None, ("model",)),
    Case("sample", "directory", {"images": 10}, None, ()),
    Case("demo", "directory", {"images": 10}, None, ()),
]  # fmt: skip


def test_every_output_has_a_case() -> None:
    outputs, others = set(), set()
    for command, (options, _) in cli.COMMANDS.items():
        hints = typing.get_type_hints(options)
        for field in fields(options):
            if field.metadata.get("output"):
                outputs.add((command, field.name))
            elif "Path" in str(hints[field.name]):
                others.add((command, field.name))
    assert outputs == {(case.command, case.option) for case in CASES}
    assert others == INPUTS


# ---- the world ------------------------------------------------------------------------------------------------------

FOREIGN = (
    "captions.txt", "scenes.jsonl", "options.json", "run.json", "manifest.json", "config.json", "demo.json", "README.md",
    "thesis.tex", "metadata.jsonl", "one.txt", "page.html", "dataset_dict.json", "train/notes", "checkpoints/notes",
    "Images/one.jpg", "gallery.html", "training.jsonl", "finetune.json", "cache/notes", "data/notes", "model/notes",
)  # fmt: skip
SUFFIXES = (".jsonl", ".csv", ".parquet", ".json", ".html")
BESIDE = (".lock", ".tmp", ".state", ".partial", ".old", ".pieces")


def foreign(folder: Path) -> None:
    for name in FOREIGN:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")


@pytest.fixture(scope="module")
def world(
    sample_dir: Path, cache_dir: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("sweep") / "world"
    (root / "data" / "Images").mkdir(parents=True)
    shutil.copytree(cache_dir, root / "cache")
    shutil.copytree(model_dir, root / "model", ignore=shutil.ignore_patterns("checkpoints"))
    for name, image in zip(("one", "two"), sorted((sample_dir / "Images").glob("*.jpg")), strict=False):
        shutil.copy(image, root / "data" / "Images" / f"{name}.jpg")
    (root / "data" / "captions.txt").write_text("image,caption\none.jpg,a dog\ntwo.jpg,a cat\n")
    lines = (sample_dir / "captions.txt").read_text().splitlines()[1::5]
    (root / "said.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    for folder in ("foreign", "home", "work", "cache/mine", "model/mine"):
        foreign(root / folder)
    for suffix in SUFFIXES:
        (root / f"foreign{suffix}").write_text("mine")
        (root / "cache" / f"mine{suffix}").write_text("mine")
        for given in ("said.csv", "data/captions.txt", "data/Images/one.jpg"):  # an input under a name that fits
            os.link(root / given, root / f"input-{Path(given).stem}{suffix}")
        for more in BESIDE:  # what a command would put beside its output
            (root / f"beside{suffix}{more}").write_text("mine")
    for more in BESIDE:
        foreign(root / f"fresh{more}")
        for suffix in ("", *SUFFIXES):
            (root / f"only{more[1:]}{suffix}{more}").write_text("mine")
    shutil.copytree(root, root.with_name("copy"))
    return root, snapshot(root)


@cache
def _hash(path: Path, *state: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(root: Path) -> dict[str, Any]:
    """Each file, folder and link below a folder: its content, hashed, or where it leads."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            place = path.relative_to(root).as_posix()
            if path.is_symlink():
                found[place] = ("link", os.readlink(path))
            elif path.is_dir():
                found[place] = ("folder",)
            else:
                state = path.stat()  # a file of the same inode and ctime is the file that was hashed
                found[place] = ("file", _hash(path, state.st_ino, state.st_size, state.st_ctime_ns))
    return found


_guarded = False  # while a command runs
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree", "os.truncate"}


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Nothing is ever written directly in `/`: tests may run as root."""
    if not _guarded:
        return
    if event == "open":
        path, _, flags = arguments
        paths = [path] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else []
    else:
        paths = list(arguments[event in ("os.link", "os.symlink") :]) if event in WRITES else []
    for path in paths:
        if isinstance(path, (str, bytes)) and os.path.realpath(os.path.dirname(os.fsdecode(path)) or ".") == "/":
            raise RuntimeError(f"{event} {path!r}")


def targets(case: Case, root: Path) -> dict[str, Path]:
    """What stands at the output, by kind; those that begin with "input" have to be refused."""
    suffix = case.suffix
    found = {"input " + name: root / name for name in case.inputs}
    if suffix is not None:
        found |= {f"input {p.name}": p for name in case.inputs for p in [root / f"input-{Path(name).stem}{suffix}"]
                  if p.exists()}  # fmt: skip
    found |= {
        "input /": Path("/"),
        "foreign file": root / f"foreign{suffix or '.json'}",
        "foreign folder": root / "foreign",
        "working folder": Path("."),
        "home": root / "home",
        "the cache": root / "cache",
        "in the cache": root / "cache" / (f"mine{suffix}" if suffix else "mine"),
        "of the cache": root / "cache" / ("manifest.json" if suffix else "train"),
        "in the model": root / "model" / ("config.json" if suffix else "mine"),
        "beside": root / f"beside{suffix}" if suffix else root / "fresh",
        **{f"beside {more}": root / f"only{more[1:]}{suffix or ''}" for more in BESIDE},
    }
    return found


sys.addaudithook(_guard)


def run(case: Case, target: Path, overwrite: bool) -> ToolkitError | None:
    """The error that the command ends with. Anything but a ToolkitError is a failure of the test."""
    options_class = cli.COMMANDS[case.command][0]
    given = {case.option: target, **case.given}
    if overwrite:
        given["overwrite"] = True
    global _guarded
    _guarded = True
    try:
        module = case.command.replace("-", "_")
        getattr(import_module(f"toolkit.commands.{module}"), module)(from_flat(options_class, given))
    except ToolkitError as error:
        return error
    finally:
        _guarded = False
    return None


def has_overwrite(case: Case) -> bool:
    return "overwrite" in {field.name for field in fields(cli.COMMANDS[case.command][0])}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_foreign_changes(
    case: Case, world: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toolkit.commands.batch_caption
    import toolkit.commands.preprocess

    root, before = world
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", stored_processors)
    monkeypatch.setattr(
        toolkit.commands.batch_caption, "load_captioner", cache(toolkit.commands.batch_caption.load_captioner)
    )
    if case.command == "export":
        pytest.importorskip("onnxscript")
        monkeypatch.setattr("toolkit.commands.export.write_graphs", _write_graphs)
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.chdir(root / "work")
    case = replace(case, given={name: _moved(value, root) for name, value in case.given.items()})
    wrong: list[str] = []
    for kind, there in targets(case, root).items():
        for linked, overwrite in itertools.product((False, True), (False, True)[: 1 + has_overwrite(case)]):
            target = root / f"link{case.suffix or ''}" if linked else there
            if linked:
                target.symlink_to(there.absolute())
            what = f"{'a link to ' if linked else ''}{kind}{', --overwrite' if overwrite else ''}"
            error = None
            try:
                error = run(case, target, overwrite)
            except Exception as raised:
                wrong.append(f"{what}: {raised!r}")
            os.chdir(root / "work")
            if linked and not (target.is_symlink() and os.readlink(target) == str(there.absolute())):
                wrong.append(f"{what}: the link is gone")
            if target.is_symlink():
                target.unlink()
            after = snapshot(root)
            changed = {name for name, content in before.items() if after.get(name) != content}
            asked = set()
            if overwrite and not linked and case.suffix and not kind.startswith("input"):
                asked = {os.path.relpath(target, root)}  # named, and to be replaced
            if overwrite and case.command == "preprocess" and kind == "the cache":
                asked = {name for name in changed if name.startswith("cache/") and not name.startswith("cache/mine")}
            elif overwrite and case.suffix is None and there.is_dir():
                asked = {
                    name for name in changed if case.may_add(name) and (root / name).is_relative_to(there.resolve())
                }
            if changed - asked:
                wrong.append(f"{what}: changed {sorted(changed - asked)[:3]} ({error})")
            if kind.startswith("input") and error is None:
                wrong.append(f"{what}: was not refused")
            if error is not None and ("\n" in str(error) or not str(error).endswith(".")):
                wrong.append(f"{what}: no sentence: {error}")
            if after != before:
                restore(root, after, changed)
    assert not wrong, "\n".join(wrong)


def _write_graphs(model: Any, shape: tuple[int, ...], folder: Path, int8: bool) -> None:
    for name in ("encoder_model", "decoder_model_merged"):
        (folder / f"{name}.onnx").write_text("a graph")


def restore(root: Path, after: dict[str, Any], changed: set[str]) -> None:
    """The world as it was, from the copy beside it."""
    copy = root.with_name("copy")
    for name in sorted(after.keys() | changed, reverse=True):  # what is in a folder before the folder
        path = root / name
        if name in changed or not os.path.lexists(copy / name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for name in sorted(changed):
        path = root / name
        if (copy / name).is_dir():
            path.mkdir(exist_ok=True)
        elif not path.exists():
            shutil.copy(copy / name, path)


def _moved(value: Any, root: Path) -> Any:
    """A path of the world's, or several."""
    if isinstance(value, tuple):
        return tuple(_moved(each, root) for each in value)
    if isinstance(value, Path):
        return root / value
    return str(root / value) if value in ("model", "data/Images") else value
