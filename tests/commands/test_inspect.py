"""Inspect on small data with every oddity it reports, on a cache of it, on a model and on runs: exact values, no writes."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from preprocessing import DataSet, picture, states, stored_processors

from toolkit.commands.inspect import inspect
from toolkit.errors import InputError, ModelError, OutputError
from toolkit.options import InspectOptions
from toolkit.records import Summary

LISTS = {"train": "a c d broken", "dev": "e", "test": "b f"}
LONG = "x" * 39  # with the EOS 40 tokens of a tokenizer whose every byte is one


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Seven images: b is a again as BMP and in another split, c nearly a, one broken; captions of 1 to 39 letters."""
    data = DataSet(tmp_path_factory.mktemp("odd"), images=0)
    a = picture(1, (80, 60))
    data.add("a.png", a, ["A dog .", "a DOG runs"])
    data.add("b.bmp", a, ["one", LONG])
    data.add("c.jpg", a.resize((160, 120)), ["a dog"])
    for name, seed in (("d", 2), ("e", 3), ("f", 4)):
        data.add(f"{name}.png", picture(seed, (80, 60)), ["a dog"])
    data.add("broken.png", None, ["nothing to see"])
    (data.images / "broken.png").write_bytes(b"<html>")
    data.write()
    for name, images in LISTS.items():
        (data.root / f"{name}Images.txt").write_text("\n".join(images.split()))
    return data


@pytest.fixture(scope="module")
def odd_cache(odd: DataSet) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.commands.preprocess.fetch_processors", stored_processors)
        odd.run(max_rejected=0.5, max_length=32)
    return odd.out


def look(path: Path, **options: Any) -> Summary:
    return inspect(InspectOptions(path=path, **options))


# ---- images with captions -------------------------------------------------------------------------------------------

CAPTIONS = {
    "count": 8,
    "distinct": 5,
    "per_image": {"min": 1, "median": 1, "max": 2},
    "words": {"min": 1, "median": 2, "max": 3},
    "tokens": {"min": 4, "median": 6, "max": 40},
    "tokenize": "ptb",
    "vocabulary": 5,
    "frequent": [["a", 6], ["dog", 6], ["one", 1], ["runs", 1], [LONG, 1]],
}
SAME = {"pictures": 1, "copies": 1, "examples": [["a.png", "b.bmp"]]}
LEAKS = {"pictures": 1, "examples": [{"train": ["a.png"], "test": ["b.bmp"]}]}
REJECTED = {
    "count": 1,
    "reasons": {"not an image": 1},
    "examples": [{"image_id": "broken.png", "path": "broken.png", "reason": "not an image"}],
}


def test_a_cache(odd_cache: Path) -> None:
    before = states(odd_cache.parent)
    summary = look(odd_cache)
    values = json.loads(json.dumps(summary.values))
    near = values.pop("near_duplicates")
    assert values.pop("bytes") == sum(p.stat().st_size for p in odd_cache.rglob("*") if p.is_file())
    assert values == {
        "kind": "cache",
        "path": str(odd_cache),
        "annotations": (odd_cache.parents[1] / "captions.txt").as_posix(),
        "encoder": None,
        "decoder": None,
        "preset": "tiny",
        "max_length": 32,
        "format": "flickr8k",
        "pixels": [3, 32, 32],
        "images": 6,
        "splits": {"train": 3, "validation": 1, "test": 2},
        "left_out": 0,
        "split": None,
        "tokenizer": "the cache's own",
        "captions": {
            **CAPTIONS,
            "truncated": {"16": 1, "20": 1, "24": 1, "32": 1, "40": 0, "50": 0, "64": 0},
        },
        "same_by": "pixels",
        "duplicates": SAME,
        "leaks": LEAKS,
        "rejected": REJECTED,
        "unusable_rows": {"count": 0, "examples": []},
        "notes": [],
    }
    assert (near["pairs"], near["images"], near["across_splits"]) == (1, 2, 0)
    assert near["nearest"][0]["images"] == ["a.png", "c.jpg"]
    assert summary.exit_code == 0
    assert states(odd_cache.parent) == before
    for line in (
        "captions          8, 5 distinct; per image 1 to 2, median 1",
        "are cut           1   1   1   1   0   0   0",
        "pixel-identical   1 image more than once, 1 redundant copy: a.png = b.bmp",
        "in two splits     1 image: a.png in train, b.bmp in test",
        "unreadable        not an image 1; first: broken.png (not an image)",
    ):
        assert f"\n  {line}\n" in summary.text + "\n"


def test_annotations_say_the_same_as_their_cache(odd: DataSet, odd_cache: Path) -> None:
    summary = look(odd.annotations, decoder=str(odd_cache))
    values = summary.values
    nothing = {"vocabulary": 8, "frequent": [*CAPTIONS["frequent"][:2], *([w, 1] for w in ("nothing", "one", "runs", "see", "to", LONG))]}  # fmt: skip
    assert {**values["captions"], "truncated": None} == {
        **CAPTIONS, **nothing, "count": 9, "distinct": 6, "truncated": None,
    }  # fmt: skip
    assert (values["duplicates"], values["leaks"], values["rejected"]) == (SAME, LEAKS, REJECTED)
    assert values["near_duplicates"]["nearest"][0]["images"] == ["a.png", "c.jpg"]
    assert values["splits"] == {"train": 4, "validation": 1, "test": 2}
    assert (values["format"], values["images"], values["same_by"]) == ("flickr8k", 7, "pixels")
    assert values["bytes"] == sum(p.stat().st_size for p in odd.images.iterdir() if p.name != "broken.png")
    assert summary.exit_code == 3


def test_rows_that_cant_be_used(odd: DataSet, tmp_path: Path) -> None:
    text = odd.annotations.read_text().replace("broken.png,nothing to see", "only.png")
    (tmp_path / "captions.txt").write_text(text)
    summary = look(tmp_path / "captions.txt", images=odd.images)
    assert summary.values["rejected"]["count"] == 0
    row = {
        "line": text[: text.index("only.png")].count("\n") + 1,
        "path": "only.png",
        "reason": "1 field for 2 columns",
    }
    assert summary.values["unusable_rows"] == {"count": 1, "examples": [row]}
    assert summary.exit_code == 3
    assert f"unusable rows     1; first: line {row['line']} (1 field for 2 columns)" in summary.text
    data = DataSet(tmp_path / "cached", images=40)
    with open(data.annotations, "a") as file:
        file.write("only.png\r\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.commands.preprocess.fetch_processors", stored_processors)
        data.run()
    row["line"] = 82
    assert look(data.out).values["unusable_rows"] == {"count": 1, "examples": [row]}


def test_named_columns(odd_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("pic,words,fold\nghost.png,a dog,eval\n")
    named = {"image_column": "pic", "caption_column": ("words",), "split_column": "fold", "split_map": ("eval=test",)}
    values = look(tmp_path / "c.csv", **named).values
    assert (values["captions"]["count"], values["splits"]["test"]) == (1, 1)
    for option, value in named.items():
        with pytest.raises(
            InputError, match=f"--{option.replace('_', '-')} .*is a cache, whose columns are known; leave"
        ):
            look(odd_cache, **{option: value})


def test_without_decoding(odd: DataSet, odd_cache: Path) -> None:
    summary = look(odd.root, near_duplicates="off")  # the folder stands for the captions.txt and Images/ in it
    assert summary.values["near_duplicates"] is None
    assert summary.values["same_by"] == "bytes"
    assert summary.values["duplicates"]["pictures"] == 0  # PNG and BMP
    assert summary.values["rejected"]["count"] == 0
    assert summary.exit_code == 0
    assert look(odd_cache, near_duplicates="off").values["near_duplicates"] is None


def test_words_alone_without_a_tokenizer(odd: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.commands.inspect._tokenizer_file", lambda decoder: None)
    summary = look(odd.annotations)
    assert (summary.values["tokenizer"], summary.values["captions"]["truncated"]) == (None, None)
    assert summary.values["captions"]["words"] == {"min": 1, "median": 2, "max": 3}
    assert "name a tokenizer with --decoder" in summary.text


def test_one_split(odd: DataSet, odd_cache: Path) -> None:
    for path in (odd_cache, odd.annotations):
        values = look(path, split="test", decoder=str(odd_cache)).values
        assert values["captions"]["count"] == 3
        assert values["captions"]["tokens"] == {"min": 4, "median": 6, "max": 40}
        assert values["leaks"] == LEAKS  # of images, all splits are looked at


def test_no_splits_and_missing_images(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,a dog\n")
    summary = look(tmp_path / "captions.txt")
    assert summary.values["splits"] is None
    assert summary.values["rejected"]["reasons"] == {"missing": 1}
    assert "all images are missing; name their folder with --images" in summary.text
    with pytest.raises(InputError, match=r"--split train: .* has no image in this split"):
        look(tmp_path / "captions.txt", split="train")


def test_names_that_lead_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    for n in range(3):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"Images/{n}.png")
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"x/{n}.PNG,a dog\n" for n in range(3)))
    values = look(tmp_path / "captions.txt").values
    assert values["rejected"]["count"] == 0
    assert values["notes"] == [
        "image names found without the folder x/, in other upper and lower case: 3 (x/0.PNG is 0.png, x/1.PNG is 1.png, "
        "x/2.PNG is 2.png)"
    ]
    (tmp_path / "captions.txt").write_text("image,caption\n0.png,a dog\n1.pgn,a dog\n")
    values = look(tmp_path / "captions.txt").values
    assert values["rejected"]["reasons"] == {"missing": 1}
    assert values["notes"] == ["images not found: 1.pgn, nearest 1.png"]


def test_a_sheet(odd: DataSet, odd_cache: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    assert str(sheet) in look(odd_cache, sheet=sheet).text
    page = sheet.read_text(encoding="utf-8")
    assert page.count('<img loading="lazy" src="data:image/jpeg;base64,') == 6 + 2  # and the pair
    assert f'<span>{"x" * 31} <span class="bad">… 8 tokens cut</span></span><small>32</small>' in page
    assert "<span>A dog .</span><small>8</small>" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    look(odd.annotations, sheet=sheet, split="train", decoder=str(odd_cache))
    page = sheet.read_text(encoding="utf-8")
    assert '<span class="bad">not an image</span>' in page
    assert "broken.png" in page
    assert "tokens cut" not in page
    assert list(tmp_path.iterdir()) == [sheet]


def test_annotations_that_hold_their_images(odd: DataSet, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": (odd.images / name).read_bytes(), "path": name} for name in ("a.png", "c.jpg")]
    pq.write_table(pa.table({"image": images, "text": ["a dog", "a <b>"]}), tmp_path / "data.parquet")
    values = look(tmp_path / "data.parquet", sheet=tmp_path / "sheet.html").values
    assert (values["format"], values["images_root"], values["near_duplicates"]["pairs"]) == ("parquet", None, 1)
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2
    assert "a &lt;b&gt;" in page


# ---- models and runs ------------------------------------------------------------------------------------------------


def write_weights(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of float32 zeros."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_weights(folder / "model.safetensors", {"encoder.x": [2, 3], "decoder.y": [4, 5], "enc_to_dec_proj.z": [1, 2]})
    contents = {
        "config.json": {
            "model_type": "vision-encoder-decoder",
            "encoder": {"model_type": "vit", "image_size": 64},
            "decoder": {"model_type": "gpt2", "vocab_size": 300},
        },
        "generation_config.json": {"num_beams": 4, "eos_token_id": 0, "transformers_version": "5.23.0"},
    }
    for name, value in contents.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_a_model(model: Path) -> None:
    summary = look(model)
    assert summary.values == {
        "kind": "model",
        "path": str(model),
        "encoder": "vit",
        "decoder": "gpt2",
        "parameters": {"total": 28, "encoder": 6, "decoder": 20, "dtypes": {"F32": 28}},
        "vocabulary": 300,
        "image_size": [64, 64],
        "generation": {"num_beams": 4, "eos_token_id": 0},
        "options": None,
        "summary": None,
        "run": None,
        "bytes": sum(p.stat().st_size for p in model.iterdir()),
    }
    assert "parameters        encoder 6, decoder 20; F32" in summary.text


def test_weights_in_several_files(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    write_weights(model / "model-2.safetensors", {"decoder.more": [10, 10]})
    names = {"encoder.x": "model-1.safetensors", "decoder.more": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert look(model).values["parameters"]["total"] == 128


RUN = [
    {"step": 10, "epoch": 0.5, "loss": 3.0, "learning_rate": 1e-3, "grad_norm": 2.0},
    {"step": 20, "epoch": 1.0, "eval_loss": 2.5, "eval_cider": 0.4},
    {"step": 30, "epoch": 1.5, "loss": 2.0, "learning_rate": 5e-4, "grad_norm": 1.0},
    {"step": 40, "epoch": 2.0, "eval_loss": 2.0, "eval_cider": 0.3},
]


def test_an_unfinished_run(tmp_path: Path) -> None:
    log = "".join(json.dumps(row) + "\n" for row in RUN) + '{"step": 50, "lo'
    (tmp_path / "training.jsonl").write_text(log)
    (tmp_path / "options.json").write_text(json.dumps({"options": {"eval_metric": "cider"}}))
    values = look(tmp_path).values
    assert values["kind"] == "run"
    assert values["run"] == {
        "steps": 40,
        "epoch": 2.0,
        "finished": False,
        "evaluations": 2,
        "metric": "cider",
        "best": {"step": 20, "epoch": 1.0, "loss": 2.5, "cider": 0.4},
        "last_evaluation": {"step": 40, "epoch": 2.0, "loss": 2.0, "cider": 0.3},
        "last": {"step": 30, "loss": 2.0, "learning_rate": 5e-4, "grad_norm": 1.0},
        "options": {"eval_metric": "cider"},
    }
    (tmp_path / "options.json").unlink()
    assert look(tmp_path).values["run"]["best"]["step"] == 40  # by loss
    (tmp_path / "training.jsonl").write_text("")
    assert look(tmp_path).values["run"]["steps"] == 0


def test_a_finished_run_is_a_model(model: Path) -> None:
    (model / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RUN))
    summary = {"steps": 40, "epochs": 2.0, "seconds": 9.5, "best_step": 40, "validation": {"loss": 2.0}}
    (model / "finetune.json").write_text(json.dumps(summary))
    found = look(model)
    assert (found.values["kind"], found.values["summary"], found.values["run"]["finished"]) == ("model", summary, True)
    assert "trained           40 steps, 2 epochs, 9.5 s" in found.text
    assert "best by loss      step 40, epoch 2, loss 2, CIDEr 30.0" in found.text


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three: finished, not finished, and in a folder of the first one's name."""
    folders = [tmp_path / "a", tmp_path / "b.partial", tmp_path / "other" / "a"]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        rows = [{**row, "seconds": 50.0 * (number + 1)} if "loss" in row else row for row in RUN]
        (folder / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[: 4 - number]))
        options: dict[str, Any] = {"eval_metric": "cider", "lr": 1e-3 * (number + 1), "init_from": None}
        options |= {} if number else {"augment": "off"}  # the others are older than this option
        (folder / "options.json").write_text(json.dumps({"options": options, "cache": {"validation": "v"}}))
    summary = {"steps": 40, "epochs": 2.0, "seconds": 9.5, "best_step": 20, "validation": {"loss": 2.5, "cider": 0.4}}
    (folders[0] / "finetune.json").write_text(json.dumps(summary))
    return [tmp_path / "a", tmp_path / "b", tmp_path / "other" / "a"]


def test_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "runs.html"
    found = look(runs[0], more_runs=runs[1:2], page=page)
    first = {
        "name": "a", "path": str(runs[0]), "finished": True, "steps": 40, "epoch": 2.0, "evaluations": 2,
        "metric": "cider", "seconds": 100.0, "best_step": 20, "validation": {"loss": 2.5, "cider": 0.4},
    }  # fmt: skip
    second = {
        "name": "b",
        "path": str(runs[1]),
        "finished": False,
        "steps": 30,
        "epoch": 1.5,
        "evaluations": 1,
        "seconds": 200.0,
    }
    assert found.values == {
        "kind": "runs", "runs": [first, {**first, **second}], "options": {"lr": [1e-3, 2e-3]}, "notes": [], "page": str(page),
    }  # fmt: skip
    assert found.text.split("\n") == [
        "2 runs; on validation, metrics times 100",
        "  run  steps      epochs  time     best step  loss   CIDEr",
        "  a    40         2       1.7 min  20         2.500  40.0",
        "  b    30 so far  1.5     3.3 min  20         2.500  40.0",
        "options that differ",
        "  option  a      b",
        "  lr      0.001  0.002",
        f"  {page}: the curves as a page",
    ]
    assert '<polyline points="0.00,' not in page.read_text()  # a step of 10 is not at the left end
    assert page.read_text().count('data-y="40.0|30.0"') == 3  # over steps, epochs and time
    names = [run["name"] for run in look(runs[0], more_runs=runs[1:]).values["runs"]]
    assert names == [f"{tmp_path.name}/a", f"{tmp_path.name}/b", "other/a"]
    page.unlink()
    assert look(runs[1], page=page).values["page"] == str(page)  # of one run that has no report yet
    assert "data-y" in page.read_text()


def test_runs_on_other_images(runs: list[Path]) -> None:
    options = json.loads((runs[0] / "options.json").read_text())
    (runs[0] / "options.json").write_text(json.dumps({**options, "cache": {"validation": "w"}}))
    (note,) = look(runs[0], more_runs=runs[1:]).values["notes"]
    assert note == "these runs were not validated on the same images: their metrics can't be compared"


def test_mistakes_about_runs(runs: list[Path], odd_cache: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "mine.html"
    foreign.write_text("mine")
    for given, error, sentence in (
        ({"more_runs": (odd_cache,)}, InputError, "is no run \\(it has no training.jsonl\\); name folders that finetune wrote"),
        ({"more_runs": (runs[0],)}, InputError, "a: is given twice; give each run once"),
        ({"more_runs": runs[1:], "split": "test"}, InputError, "--split test: only applies to one thing that is looked at"),
        ({"more_runs": runs[1:], "page": foreign}, OutputError, "--page .*mine.html: exists and is not what this command"),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            look(runs[0], **given)
    with pytest.raises(InputError, match=r"is no run"):
        look(odd_cache, page=tmp_path / "p.html")
    with pytest.raises(InputError, match=r"^--page a.txt: name a file that ends in .html"):
        InspectOptions(path=odd_cache, page=Path("a.txt"))


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(model: Path, odd: DataSet, odd_cache: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "gpt2"}')
    for path, options, error, sentence in (
        (
            tmp_path / "no",
            {},
            InputError,
            r"no: no such file or folder \(relative to the current directory\); name a cache, annotations, a model or a run.",
        ),
        (
            tmp_path,
            {},
            InputError,
            "neither a cache, a model nor a run .*; as annotations: no captions of a known format in this folder",
        ),
        (empty, {}, InputError, "empty: a model of type gpt2"),
        (model, {"near_duplicates": "3"}, InputError, "--near-duplicates 3: only applies to images with captions"),
        (odd_cache, {"images": tmp_path}, InputError, "--images .*: only applies to annotations, but .* is a cache"),
        (
            model,
            {"sheet": Path("a.html")},
            InputError,
            "--sheet a.html: only applies to images with captions, but .* a model",
        ),
        (odd.annotations, {"images": tmp_path / "no"}, InputError, "--images .*no: no such folder"),
        (odd_cache, {"decoder": str(empty)}, ModelError, "has no fast tokenizer"),
        (odd_cache, {"decoder": "nobody/nothing"}, ModelError, "--decoder nobody/nothing: .* could not be loaded"),
        (odd_cache, {"sheet": model / "config.json" / "a.html"}, OutputError, "there is no folder"),
    ):
        with pytest.raises(error, match=sentence) as caught:
            look(path, **options)
        assert "\n" not in str(caught.value)
    for wrong in ({"near_duplicates": "17"}, {"near_duplicates": "yes"}, {"split": "dev"}, {"sheet": Path("a.txt")}):
        with pytest.raises(InputError):
            InspectOptions(path=odd_cache, **wrong)  # type: ignore[arg-type]
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        look(model)
