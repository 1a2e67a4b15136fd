"""Every form of the captions is read back as the same rows, and none replaces what is not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from toolkit.captioning.captioner import Captioner
from toolkit.commands.batch_caption import batch_caption
from toolkit.data.annotations import read_annotations
from toolkit.errors import OutputError
from toolkit.evaluation.hypotheses import read_hypotheses
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat

NAMES = ["a.jpg", 'comma, "quote".jpg', "café.jpg", "line\nbreak.jpg", "sub/b.jpg"]
FORMS = ["jsonl", "csv", "parquet", "coco", "txt", "imagefolder"]


@pytest.fixture
def folder(sample_dir: Path, tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for name, path in zip(NAMES, sorted((sample_dir / "Images").iterdir()), strict=False):
        shutil.copy(path, root / name)
    return root


def options(folder: Path, model_dir: Path, output: Path | None, **more: object) -> BatchCaptionOptions:
    values = {
        "paths": (str(folder),),
        "model": str(model_dir),
        "output": output,
        "num_beams": 1,
        "max_length": 8,
        **more,
    }
    return from_flat(BatchCaptionOptions, values)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form: str, folder: Path, model_dir: Path, tmp_path: Path) -> None:
    batch_caption(options(folder, model_dir, tmp_path / "plain.jsonl"))
    wanted = {row.names[0]: row.caption for row in read_hypotheses(tmp_path / "plain.jsonl").rows}
    assert set(wanted) == set(NAMES)
    output = folder if form == "imagefolder" else tmp_path / f"out-{form}"
    batch_caption(options(folder, model_dir, output, format=form))
    found = read_hypotheses(output)
    ending = ".jpg" if form == "txt" else ""
    assert found.format == form
    assert {row.names[0] + ending: row.caption for row in found.rows} == wanted


READ_AS = {"jsonl": "lavis", "csv": "flickr8k", "txt": "sidecar"}


@pytest.mark.parametrize("form", FORMS)
def test_preprocess_reads_it_back(form: str, folder: Path, model_dir: Path, tmp_path: Path) -> None:
    """The same images with the same captions; what could not be read has none, and is not taken for one."""
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    output = None if form in ("txt", "imagefolder") else tmp_path / f"out.{'json' if form == 'coco' else form}"
    summary = batch_caption(options(folder, model_dir, output, format=form))
    assert (summary.exit_code, summary.values["errors"]) == (3, 1)
    plain = tmp_path / "plain.jsonl"
    batch_caption(options(folder, model_dir, plain))
    wanted = {row.names[0]: (row.caption,) for row in read_hypotheses(plain).rows if row.error is None}
    found = read_annotations(output or folder, folder)
    assert {record.path: record.captions for record in found.records} == wanted
    assert found.format == READ_AS.get(form, form)


@pytest.mark.parametrize("form", FORMS)
def test_several_captions(form: str, folder: Path, model_dir: Path, tmp_path: Path) -> None:
    """All of them are written, and read back; to judge there is the best."""
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    plain = tmp_path / "plain.jsonl"
    several = {"num_captions": 2, "num_beams": 3, "prefix": 'so, "', "suffix": "'s"}
    batch_caption(options(folder, model_dir, plain, **several))
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    wanted = {row["image"]: tuple(row["captions"]) for row in rows if row["error"] is None}
    assert {len(set(captions)) for captions in wanted.values()} == {2}
    output = None if form in ("txt", "imagefolder") else tmp_path / f"out.{'json' if form == 'coco' else form}"
    batch_caption(options(folder, model_dir, output, format=form, **several))
    found = read_annotations(output or folder, folder)
    assert {record.path: record.captions for record in found.records} == wanted
    judged = {row.names[0]: row.caption for row in read_hypotheses(output or folder).rows if row.error is None}
    ending = ".jpg" if form == "txt" else ""
    assert {name + ending: caption for name, caption in judged.items()} == {k: v[0] for k, v in wanted.items()}
    assert len(judged) == len([row for row in read_hypotheses(output or folder).rows if row.error is None])


def test_datasets_loads_an_imagefolder(folder: Path, model_dir: Path) -> None:
    import datasets

    batch_caption(options(folder, model_dir, None, format="imagefolder"))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    wanted = {row.names[0]: row.caption for row in read_hypotheses(folder / "metadata.jsonl").rows}
    assert sorted(loaded["text"]) == sorted(wanted.values())


def test_clean_up_captions_nothing_again(
    folder: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.csv"
    batch_caption(options(folder, model_dir, output))
    plain = [row.caption for row in read_hypotheses(output).rows]
    monkeypatch.setattr(Captioner, "generate", None)
    summary = batch_caption(options(folder, model_dir, output, prefix="sks, ", suffix="!", min_score=0.0))
    assert summary.values["new"] == 0
    assert summary.values["weak"] == len(NAMES)
    assert [row.caption for row in read_hypotheses(output).rows] == [f"sks, {text}!" for text in plain]


def test_a_sidecar_of_the_users_stays(folder: Path, model_dir: Path) -> None:
    (folder / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not what this command wrote"):
        batch_caption(options(folder, model_dir, None, format="txt"))
    assert (folder / "a.txt").read_text() == "mine"
    batch_caption(options(folder, model_dir, None, format="txt", overwrite=True))
    assert (folder / "a.txt").read_text() != "mine"
