"""Evaluations every so many updates, on some of the validation images; the whole split is for the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import stops

from toolkit.cache.schema import open_cache
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.errors import InputError, RunError
from toolkit.options import FinetuneOptions, GenerationOptions, PreprocessOptions
from toolkit.training.setup import sampled


@pytest.fixture(scope="module")
def cache(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the scenes 31 for training and 17 for validation."""
    folder = tmp_path_factory.mktemp("cache")
    shutil.copy(sample_dir / "captions.txt", folder)  # without the lists of splits beside it
    options = PreprocessOptions(
        annotations=folder / "captions.txt", images=sample_dir / "Images", out=folder / "dataset", preset="tiny",
        num_workers=1, val_fraction=0.25, test_fraction=0.0,
    )  # fmt: skip
    preprocess(options)
    assert [len(open_cache(options.out)[split]) for split in ("train", "validation")] == [31, 17]
    return options.out


@pytest.fixture
def options(cache: Path, tmp_path: Path) -> FinetuneOptions:
    """Two epochs of eight updates with dropout; two evaluations, and one at the end, of two images."""
    return FinetuneOptions(
        cache=cache, output_dir=tmp_path / "model", epochs=2, batch_size=4, decoder_dropout=0.1, eval_steps=6,
        eval_images=2, eval_metric="loss", generation=GenerationOptions(num_beams=1),
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    timed = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    return [{k: v for k, v in row.items() if k not in timed} for row in found if "eval_loss" in row]


def test_a_sample_during_training_and_all_at_the_end(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within an epoch, the run goes on to the same weights and rows. At the end the best checkpoint has the
    metrics on the whole split that a run which always evaluates all of it finds at that update."""
    finetune(options)
    out = options.output_dir
    found, summary = rows(out), json.loads((out / "finetune.json").read_text())
    assert [row["step"] for row in found] == [6, 12, 16, 16]
    best = min(found[:-1], key=lambda row: row["eval_loss"])["step"]
    assert [row.get("final") for row in found] == [None] * 3 + [best]
    assert summary["best_step"] == best
    assert summary["validation"] == {
        name.removeprefix("eval_"): found[-1][name] for name in found[-1] if "eval_" in name
    }
    assert f"| loss | {found[-1]['eval_loss']:.4f} |" in (out / "README.md").read_text()

    other = replace(options, output_dir=out.with_name("other"))
    with monkeypatch.context() as patch:
        stops(patch, 15)
        with pytest.raises(RunError, match="the last checkpoint"):
            finetune(other)
    finetune(other)
    assert rows(other.output_dir) == found
    one, two = (load_file(folder / "model.safetensors") for folder in (out, other.output_dir))
    assert all(torch.equal(one[name], two[name]) for name in one)

    always = replace(options, output_dir=out.with_name("always"), eval_images=None)
    finetune(always)
    (row,) = [row for row in rows(always.output_dir) if row["step"] == best]
    assert {n: v for n, v in row.items() if "eval_" in n} == {n: v for n, v in found[-1].items() if "eval_" in n}
    assert found[0]["eval_loss"] != rows(always.output_dir)[0]["eval_loss"]


def test_patience_counts_evaluations(options: FinetuneOptions, capsys: pytest.CaptureFixture[str]) -> None:
    """At a learning rate of zero no evaluation is better than the first one: the third ends the run within an epoch.
    Evaluated again with other beams, the finished run is judged by the whole split."""
    options = replace(options, eval_steps=2, early_stopping_patience=2, lr=0.0)
    finetune(options)
    found, summary = rows(options.output_dir), json.loads((options.output_dir / "finetune.json").read_text())
    assert [(row["step"], row.get("final")) for row in found] == [(2, None), (4, None), (6, None), (6, 2)]
    assert [summary[name] for name in ("steps", "best_step")] == [6, 2]
    assert summary["validation"]["loss"] == found[-1]["eval_loss"] != found[0]["eval_loss"]
    again = finetune(replace(options, generation=GenerationOptions(num_beams=2))).values
    assert again["validation"]["loss"] == pytest.approx(summary["validation"]["loss"], rel=1e-6)
    last = rows(options.output_dir)[-1]
    assert last["generation"]["num_beams"] == 2
    assert len(last["captions"]) == len(found[0]["captions"]) == 2  # of the same images


def test_the_sample() -> None:
    """Seeded, in the order of the rows, none twice; no sample where it would be everything."""
    options = FinetuneOptions(eval_images=10)
    chosen = sampled(100, options)
    assert chosen == sampled(100, options) == sorted(set(chosen or []))
    assert len(chosen or []) == 10
    assert chosen != sampled(100, replace(options, seed=1))
    assert sampled(10, options) is None
    assert sampled(100, FinetuneOptions()) is None


@pytest.mark.parametrize("given", [{"eval_steps": 0}, {"eval_images": 0}])
def test_none_is_no_number(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        FinetuneOptions(**given)
