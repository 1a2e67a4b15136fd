"""--limit and --dry-run of preprocess and batch-caption: what is done, what would be, and that nothing is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.cache.schema import open_cache
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.preprocess import preprocess
from toolkit.errors import InputError, OutputError
from toolkit.options import BatchCaptionOptions, PreprocessOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary


def everything(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every file and folder below, with its bytes and its time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def looked(folder: Path, run: Callable[[], Summary]) -> Summary:
    """The summary of a run that leaves a folder as it was."""
    before = everything(folder)
    summary = run()
    assert everything(folder) == before
    assert summary.values["dry_run"] is True
    assert "nothing was written" in summary.text
    return summary


# ---- batch-caption --------------------------------------------------------------------------------------------------


def test_captions(
    pictures: Callable[[int], Path], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pictures(7)
    names = sorted(path.name for path in folder.iterdir())

    def run(**more: Any) -> Summary:
        given = {"paths": (str(folder),), "model": str(model_dir), "num_beams": 2, "max_length": 8, **more}
        return batch_caption(from_flat(BatchCaptionOptions, given))

    first = looked(tmp_path, lambda: run(dry_run=True)).values
    assert (first["images"], first["captioned"], first["new"]) == (len(names), 0, len(names))
    assert first["first"] == names[:5]
    assert (first["output"], first["format"]) == ("captions.jsonl", "jsonl")

    done = run(limit=3)
    assert (done.values["images"], done.values["new"]) == (3, 3)
    rows = Path("captions.jsonl").read_text()
    assert [json.loads(line)["image"] for line in rows.splitlines()] == names[:3]
    assert first["settings"] == done.values["settings"]

    then = looked(tmp_path, lambda: run(dry_run=True)).values
    assert (then["captioned"], then["new"], then["first"]) == (3, len(names) - 3, names[3:8])
    assert looked(tmp_path, lambda: run(dry_run=True, limit=3)).values["new"] == 0
    assert looked(tmp_path, lambda: run(dry_run=True, existing="overwrite")).values["new"] == len(names)
    assert looked(tmp_path, lambda: run(dry_run=True, num_beams=1)).values["new"] == len(names)
    assert run().values["new"] == len(names) - 3
    assert Path("captions.jsonl").read_text().startswith(rows)


def test_captions_that_would_be_refused(pictures: Callable[[int], Path], model_dir: Path, tmp_path: Path) -> None:
    folder, output = pictures(2), tmp_path / "mine.jsonl"
    output.write_text("somebody's\n")
    before = everything(tmp_path)
    given = {"paths": (str(folder),), "model": str(model_dir), "output": output, "dry_run": True}
    with pytest.raises(OutputError, match=r"mine\.jsonl"):
        batch_caption(from_flat(BatchCaptionOptions, given))
    with pytest.raises(
        InputError, match=r"^--dry-run: writes nothing, and what is at memory://images would be copied here first"
    ):
        batch_caption(from_flat(BatchCaptionOptions, {**given, "paths": ("memory://images",)}))
    assert everything(tmp_path) == before


def test_a_journal_that_a_kill_has_left(pictures: Callable[[int], Path], model_dir: Path, tmp_path: Path) -> None:
    """Its rows count up to the last whole batch, and mending it is left to the run that goes on."""
    folder, output = pictures(2), tmp_path / "out.jsonl"
    given = {"paths": (str(folder),), "model": str(model_dir), "output": output, "num_beams": 1, "max_length": 6}
    batch_caption(from_flat(BatchCaptionOptions, given))
    state = Path(f"{output}.state")
    database = sqlite3.connect(state)
    database.execute("PRAGMA cache_size = 1")  # so that what is not committed is in the file
    database.execute("BEGIN IMMEDIATE")
    database.execute("DELETE FROM captions")
    database.executemany("INSERT INTO captions VALUES (?, '', ?)", ((str(i), "x" * 4000) for i in range(200)))
    cut = {path.name: path.read_bytes() for path in tmp_path.glob("out.jsonl.state*")}
    assert len(cut) == 2
    database.close()
    for name, data in cut.items():
        (tmp_path / name).write_bytes(data)
    found = looked(tmp_path, lambda: batch_caption(from_flat(BatchCaptionOptions, {**given, "dry_run": True})))
    assert found.values["new"] == 0


# ---- preprocess -----------------------------------------------------------------------------------------------------


def test_a_cache(sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(sample_dir)

    def run(**more: Any) -> Summary:
        given = {
            "annotations": sample_dir / "captions.txt",
            "images": sample_dir / "Images",
            "preset": "tiny",
            "num_workers": 1,
        }
        return preprocess(PreprocessOptions(**{**given, **more}))

    first = looked(tmp_path, lambda: run(dry_run=True, limit=9)).values
    assert (first["images"], first["format"], first["up_to_date"], first["missing"]) == (9, "flickr8k", False, 0)
    lines = [line.split(",")[0] for line in (sample_dir / "captions.txt").read_text().splitlines()[1:]]
    names = list(dict.fromkeys(lines))
    assert first["first"] == names[:5]
    assert first["settings"]["max_length"] == 50
    text = looked(tmp_path, lambda: run(dry_run=True, limit=9)).text
    assert "preset tiny, max_length 50" in text
    assert "gpt2" not in text
    assert list(tmp_path.iterdir()) == []

    assert sum(run(limit=9).values["splits"].values()) == 9
    cache = open_cache(Path("cache/dataset"))
    ids = {row for split in ("train", "validation", "test") for row in cache[split].column("image_id")}
    assert ids == {Path(name).name for name in names[:9]}
    assert run(limit=9).values["decoded"] == 0
    assert looked(tmp_path, lambda: run(dry_run=True, limit=9)).values["up_to_date"] is True
    more = looked(tmp_path, lambda: run(dry_run=True)).values
    assert (more["up_to_date"], more["images"]) == (False, len(names))
    whole = run(limit=12)
    assert (sum(whole.values["splits"].values()), whole.values["decoded"]) == (
        12,
        3,
    )  # the others' pixels are taken over
    assert everything(sample_dir) == before


def test_a_cache_that_would_be_refused(sample_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine.txt").write_text("x")
    given = {
        "annotations": sample_dir / "captions.txt",
        "images": sample_dir / "Images",
        "preset": "tiny",
        "dry_run": True,
    }
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="holds files that are not a cache"):
        preprocess(PreprocessOptions(**given, out=tmp_path / "cache"))
    with pytest.raises(InputError, match="are not there"):
        preprocess(PreprocessOptions(**{**given, "images": tmp_path / "cache"}, out=tmp_path / "new"))
    assert everything(tmp_path) == before
