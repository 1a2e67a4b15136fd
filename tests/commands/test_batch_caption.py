"""Folders in, rows out: order, bad images, going on, and what may be overwritten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from toolkit.captioning import pipeline
from toolkit.captioning.captioner import Captioner
from toolkit.commands import batch_caption as module
from toolkit.commands.batch_caption import batch_caption
from toolkit.data import sources
from toolkit.errors import ImageError, InputError, ModelError, OutputError, RunError
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat

FAST = {"num_beams": 2, "max_length": 16, "batch_size": "4", "num_workers": 2}


@pytest.fixture
def folder(sample_dir: Path, tmp_path: Path) -> Path:
    """Nine images in nested folders, three bad files among them."""
    root = tmp_path / "pictures"
    (root / "b" / "c").mkdir(parents=True)
    names = sorted((sample_dir / "Images").iterdir())[:9]
    for i, path in enumerate(names):
        shutil.copy(path, root / ("", "b", "b/c")[i % 3] / path.name)
    (root / "b" / "empty.jpg").write_bytes(b"")
    (root / "text.JPG").write_text("not a picture")
    cut = names[0].read_bytes()
    (root / "b" / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    return root


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(folder: Path, model_dir: Path, **more: object) -> BatchCaptionOptions:
    values = {"paths": (str(folder),), "model": str(model_dir), "output": folder.parent / "out.jsonl", **FAST, **more}
    return from_flat(BatchCaptionOptions, values)  # type: ignore[arg-type]


def test_rows(folder: Path, model_dir: Path) -> None:
    summary = batch_caption(options(folder, model_dir))
    rows = rows_of(folder.parent / "out.jsonl")
    assert summary.exit_code == 3
    assert {name: setting["from"] for name, setting in summary.values["settings"].items()} == {
        "num_beams": "option", "max_length": "option", "no_repeat_ngram_size": "model", "length_penalty": "model",
        "early_stopping": "model",
    }  # fmt: skip
    counts = {name: value for name, value in summary.values.items() if name != "settings"}
    assert counts == {"output": str(folder.parent / "out.jsonl"), "images": 12, "new": 12, "errors": 3}
    assert [row["image"] for row in rows] == sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.is_file()
    )
    for row in rows:
        assert list(row) == ["image", "caption", "score", "ended", "error", "width", "height"]
        if row["error"] is None:
            assert row["caption"]
            assert row["score"] < 0
            assert row["width"] > 0
        else:
            assert (row["caption"], row["score"], row["width"]) == (None, None, None)
    errors = {row["image"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"b/cut.jpg", "b/empty.jpg", "text.JPG"}
    assert errors["b/empty.jpg"] == "empty file"
    assert errors["text.JPG"] == "not an image"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["out.jsonl", "out.jsonl.state", "pictures"]


def test_a_rerun_captions_only_what_is_new_or_changed(
    folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_caption(options(folder, model_dir))
    output = folder.parent / "out.jsonl"
    first, before = output.read_bytes(), output.stat().st_mtime_ns
    assert batch_caption(options(folder, model_dir)).values["new"] == 0
    assert output.stat().st_mtime_ns == before
    seen: list[str] = []
    real = sources.read_file
    monkeypatch.setattr(sources, "read_file", lambda path: seen.append(path.name) or real(path))
    images = sorted(folder.glob("*.jpg"))
    shutil.copy(images[0], folder / "new.jpg")
    os.utime(images[1], ns=(1, 1))
    assert batch_caption(options(folder, model_dir)).values["new"] == 0  # a copy and a touched one: bytes known
    assert sorted(seen) == sorted(["new.jpg", images[1].name])
    (folder / "new.jpg").unlink()
    batch_caption(options(folder, model_dir))
    assert output.read_bytes() == first  # a row whose image is gone goes too
    assert batch_caption(options(folder, model_dir, num_beams=1)).values["new"] == 12  # other settings, other captions
    assert batch_caption(options(folder, model_dir, num_beams=1, existing="overwrite")).values["new"] == 12


def test_rows_of_other_images_are_told_of(folder: Path, model_dir: Path) -> None:
    output = folder.parent / "out.jsonl"
    batch_caption(options(folder, model_dir))
    first = output.read_bytes()
    summary = batch_caption(options(folder / "b" / "c", model_dir, output=output))
    assert (summary.values["left_out"], summary.values["new"], len(rows_of(output))) == (12, 0, 3)
    assert (
        f"12 rows that it had are of other images, and no longer in it; their captions stay in {output}.state"
        in summary.text
    )
    assert "left_out" not in batch_caption(options(folder / "b" / "c", model_dir, output=output)).values
    back = batch_caption(options(folder, model_dir))
    assert (back.values["new"], output.read_bytes()) == (0, first)


def test_a_killed_run_goes_on(folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_caption(options(folder, model_dir))
    output = folder.parent / "out.jsonl"
    whole = output.read_bytes()
    output.unlink()
    (folder.parent / "out.jsonl.state").unlink()
    real, calls = Captioner.generate, []

    def stop(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Captioner, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        batch_caption(options(folder, model_dir))
    assert not output.exists()
    monkeypatch.setattr(Captioner, "generate", real)
    assert batch_caption(options(folder, model_dir)).values["new"] == 4
    assert output.read_bytes() == whole


def test_an_image_that_is_replaced_while_it_is_read(
    sample_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the old picture's bytes is the old picture's, whenever the new one came."""
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "pictures" / "a.png"
    Image.new("RGB", (40, 30), "red").save(tmp_path / "old.png")
    Image.new("RGB", (50, 60), "blue").save(tmp_path / "new.png")
    shutil.copy(tmp_path / "old.png", path)
    real = pipeline.read_image

    def late(source: Any) -> Any:
        shutil.copy(tmp_path / "new.png", path)
        return real(source)

    monkeypatch.setattr(pipeline, "read_image", late)
    batch_caption(options(path.parent, model_dir))
    monkeypatch.setattr(pipeline, "read_image", real)
    widths = []
    for name in ("new.png", "old.png"):
        shutil.copy(tmp_path / name, path)
        batch_caption(options(path.parent, model_dir))
        widths.append(rows_of(tmp_path / "out.jsonl")[0]["width"])
    assert widths == [50, 40]


def test_a_reason_that_passes_is_not_kept(folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any) -> Any:
        raise ImageError("out of memory")

    real = pipeline.read_image
    monkeypatch.setattr(pipeline, "read_image", full)
    assert batch_caption(options(folder, model_dir)).values["errors"] == 12
    monkeypatch.setattr(pipeline, "read_image", real)
    assert batch_caption(options(folder, model_dir)).values["errors"] == 3


def test_the_gallery_is_escaped_and_self_contained(folder: Path, model_dir: Path) -> None:
    evil = "<img src=x onerror=alert(1)>.jpg"
    shutil.copy(next(folder.glob("*.jpg")), folder / evil)
    page = folder.parent / "gallery.html"
    batch_caption(options(folder, model_dir, gallery=page))
    text = page.read_text(encoding="utf-8")
    assert "\\u003cimg src=x onerror" in text
    assert "<img src=x" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/jpeg;base64,") == 10
    assert "not an image" in text


def test_mistakes(folder: Path, model_dir: Path, tmp_path: Path) -> None:
    output = folder.parent / "out.jsonl"
    with pytest.raises(InputError, match="no such file or folder"):
        batch_caption(options(tmp_path / "nowhere", model_dir))
    with pytest.raises(ModelError, match="not a model folder"):
        batch_caption(options(folder, folder))
    with pytest.raises(ModelError, match="no such folder"):
        batch_caption(options(folder, tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        batch_caption(options(folder, model_dir / "config.json"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="of type bert, not a vision-encoder-decoder"):
        batch_caption(options(folder, tmp_path / "bert"))
    with pytest.raises(ModelError, match="--device cuda:7: not on this machine"):
        batch_caption(options(folder, model_dir, device="cuda:7"))
    with pytest.raises(OutputError, match="there is no folder"):
        batch_caption(options(folder, model_dir, output=tmp_path / "no" / "out.jsonl"))
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(InputError, match="both would be reported as"):
        batch_caption(options(folder, model_dir, paths=(str(folder), str(tmp_path / "again"))))
    output.write_text("my own notes")
    with pytest.raises(OutputError, match="exists and is not what this command wrote"):
        batch_caption(options(folder, model_dir))
    assert output.read_text() == "my own notes"


def test_a_batch_that_does_not_fit_is_done_in_parts(
    folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = folder.parent / "plain.jsonl"
    batch_caption(options(folder, model_dir, output=plain))
    sizes, real = list[int](), Captioner.generate

    def small(captioner: Any, pixels: torch.Tensor, *more: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > limit:
            raise torch.OutOfMemoryError("no room")
        return real(captioner, pixels, *more)

    limit = 3
    monkeypatch.setattr(Captioner, "generate", small)
    batch_caption(options(folder, model_dir, batch_size="auto"))
    assert (folder.parent / "out.jsonl").read_bytes() == plain.read_bytes()
    assert sizes[:2] == [6, 3]  # of 8 files two are bad
    assert sum(size for size in sizes if size <= limit) == len([row for row in rows_of(plain) if not row["error"]])
    assert "a batch of 6 does not fit in memory: continuing with 3" in capsys.readouterr().err
    limit = 0
    with pytest.raises(RunError, match="1 images do not fit in the device's memory"):
        batch_caption(options(folder, model_dir, batch_size="auto", existing="overwrite"))


def test_two_runs_at_once(folder: Path, model_dir: Path) -> None:
    with (
        module.held("", folder.parent / "out.jsonl", ""),
        pytest.raises(OutputError, match="another run is writing it"),
    ):
        batch_caption(options(folder, model_dir))
    batch_caption(options(folder, model_dir))
