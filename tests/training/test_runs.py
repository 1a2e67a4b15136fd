"""The folder of a training run: what is left alone, what is gone on with, and how a new model takes its place."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from stopping import stops

import toolkit.reports.finished_run
import toolkit.training.run_folder
from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, ModelError, OutputError, RunError
from toolkit.options import EvaluateOptions, FinetuneOptions, GenerationOptions, PreprocessOptions
from toolkit.runtime.files import finishing
from toolkit.training.callbacks import TrainingLog, warmup_warning
from toolkit.training.checkpoints import last_checkpoint
from toolkit.training.run_folder import holding
from toolkit.training.trainer import CaptionTrainer


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of its contents, links with where they lead."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def short(cache_dir: Path, tmp_path: Path) -> FinetuneOptions:
    """A run of two updates."""
    return FinetuneOptions(
        cache=cache_dir,
        output_dir=tmp_path / "model",
        max_steps=2,
        batch_size=8,
        generation=GenerationOptions(num_beams=1),
    )


@pytest.fixture(scope="module")
def made(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `short` makes."""
    out = tmp_path_factory.mktemp("made") / "model"
    finetune(
        FinetuneOptions(
            cache=cache_dir, output_dir=out, max_steps=2, batch_size=8, generation=GenerationOptions(num_beams=1)
        )
    )
    return out


@pytest.fixture
def finished(made: Path, short: FinetuneOptions) -> Path:
    shutil.copytree(made, short.output_dir)
    return short.output_dir


# ---- what is not ours -----------------------------------------------------------------------------------------------

NO_RUNS = ['{"a": 1}', "[]", "no JSON", '{"options": {}, "cache": {}}', '{"options": [], "cache": null}', "[" * 100_000]


@pytest.mark.parametrize("content", NO_RUNS)
def test_another_programs_options(content: str, short: FinetuneOptions) -> None:
    out = short.output_dir
    out.mkdir()
    (out / "options.json").write_text(content)
    (out / "thesis.tex").write_text("years of work")
    before = tree(out.parent)
    for options in (short, replace(short, overwrite=True), replace(short, resume=False)):
        with pytest.raises(OutputError, match=r"model: holds files that no run wrote; name another folder\.$"):
            finetune(options)
    assert tree(out.parent) == before


@pytest.mark.parametrize("linked", [False, True])
def test_places_that_are_no_place_for_a_model(
    linked: bool, short: FinetuneOptions, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "above" / "home"
    work = tmp_path / "works" / "work"
    for folder in (home, work):
        folder.mkdir(parents=True)
        shutil.copytree(made, folder, dirs_exist_ok=True)  # ours, for all that
    shutil.copytree(short.cache, tmp_path / "cache")
    captioner = tmp_path / "held" / "captioner"
    shutil.copytree(made, captioner)
    short = replace(short, cache=tmp_path / "cache", init_from=str(captioner))
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    places = {
        work: "is the working folder",
        work.parent: "holds the working folder",
        Path("/"): "holds the working folder",
        home: "is your home folder",
        home.parent: "holds your home folder",
        tmp_path / "cache": "is an input of this command",
        tmp_path / "cache" / "train": "is inside the cache",
        captioner: "is an input of this command",
        captioner.parent: "holds .*, which this command reads",
    }
    before = tree(tmp_path)
    for number, (place, sentence) in enumerate(places.items()):
        out = place
        if linked:
            out = tmp_path.parent / f"{tmp_path.name}-links" / str(number)
            out.parent.mkdir(exist_ok=True)
            out.symlink_to(place)
        with pytest.raises(OutputError, match=rf"^--output-dir {out}: {sentence}.*name another folder\.$"):
            finetune(replace(short, output_dir=out, overwrite=True))
        assert tree(tmp_path) == before
    with pytest.raises(OutputError, match="is inside the cache"):
        finetune(replace(short, output_dir=tmp_path / "cache" / "new" / "model"))
    shutil.copytree(tmp_path / "cache", tmp_path / "other")
    with pytest.raises(OutputError, match="other: is a cache; name another folder"):
        finetune(replace(short, output_dir=tmp_path / "other", overwrite=True))
    os.rename(captioner, tmp_path / "m.partial")
    with pytest.raises(
        OutputError, match=r"would be made in .*/m\.partial, where this command reads .*; name another folder\.$"
    ):
        finetune(replace(short, output_dir=tmp_path / "m", init_from=str(tmp_path / "m.partial"), overwrite=True))


def test_init_from_the_model_that_is_replaced(short: FinetuneOptions, finished: Path) -> None:
    before = tree(finished)
    with pytest.raises(OutputError, match="model: is an input of this command; name another folder"):
        finetune(replace(short, init_from=str(finished), overwrite=True))
    assert tree(finished) == before


@pytest.mark.parametrize("content", ["notes", "link"])
def test_another_folder_where_the_run_would_live(content: str, short: FinetuneOptions, tmp_path: Path) -> None:
    partial = tmp_path / "model.partial"
    if content == "link":
        (tmp_path / "elsewhere").mkdir()
        partial.symlink_to(tmp_path / "elsewhere")
    else:
        partial.mkdir()
        (partial / "notes").write_text("mine")
    before = tree(tmp_path)
    for options in (short, replace(short, overwrite=True)):
        with pytest.raises(
            OutputError, match=r"model\.partial is the folder of the unfinished run, .* that no run wrote"
        ):
            finetune(options)
    assert tree(tmp_path) == before


def test_two_runs_on_one_folder(short: FinetuneOptions, tmp_path: Path) -> None:
    with holding(short), pytest.raises(OutputError, match="model: another run is training there; wait for it"):
        finetune(short)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.lock").write_text("of another program")
    with pytest.raises(OutputError, match=r"needs model\.lock beside it, which toolkit did not write"):
        finetune(short)
    assert tree(tmp_path).keys() == {"model.lock"}


# ---- replacing ------------------------------------------------------------------------------------------------------


def test_a_model_is_replaced_and_nothing_else(
    short: FinetuneOptions, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also through a link, which stays one."""
    foreign = ["thesis.tex", "checkpoints/notes", "checkpoints/checkpoint-2/notes", "sub/model.safetensors"]
    for name in foreign:
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_text(name)
    (finished / "README.md").write_text("my own words")
    (finished / "tokenizer.json").unlink()
    (finished.parent / "mine.txt").write_text("mine")
    summary = json.loads((finished / "finetune.json").read_text())
    summary["files"] |= {"../mine.txt": None, str(finished.parent / "mine.txt"): None}
    (finished / "finetune.json").write_text(json.dumps(summary))
    before = tree(finished)
    (finished.parent / "link").symlink_to("model")
    options = replace(short, output_dir=finished.parent / "link", overwrite=True, seed=7)
    with pytest.raises(
        OutputError, match=r"link: holds a run with other settings \(--seed 42, now 7\); use those again"
    ):
        finetune(replace(options, overwrite=False))
    assert tree(finished) == before
    finetune(options)
    assert "changed since the last run wrote it, and kept as README.md.old" in capsys.readouterr().err
    after = tree(finished)
    assert (finished / "README.md.old").read_text() == "my own words"
    assert after.keys() - {"README.md.old"} == before.keys() | {"tokenizer.json"}
    assert {name for name in foreign if after[name] != before[name]} == set()
    assert after["model.safetensors"] != before["model.safetensors"]
    assert json.loads((finished / "options.json").read_text())["options"]["seed"] == 7
    assert sorted(path.name for path in finished.parent.iterdir()) == ["link", "mine.txt", "model"]


def test_a_mistake_leaves_the_model(short: FinetuneOptions, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(finished.parent)
    with pytest.raises(ModelError, match="has 64 positions"):
        finetune(replace(short, overwrite=True, generation=GenerationOptions(max_length=500)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="LoRA needs peft"):
        finetune(replace(short, overwrite=True, lora_rank=2))
    assert tree(finished.parent) == before


def test_the_model_stays_until_the_new_one_is_whole(
    short: FinetuneOptions, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from toolkit.commands.inspect import inspect
    from toolkit.options import InspectOptions

    before, partial = tree(finished), finished.with_name("model.partial")
    options = replace(short, overwrite=True, max_steps=-1, epochs=2)
    with monkeypatch.context() as patch:
        stops(patch, 7)
        with pytest.raises(RunError, match="stopped; run the same command again to go on"):
            finetune(options)
    assert tree(finished) == before
    assert inspect(InspectOptions(path=partial)).values["run"]["steps"] == 5
    capsys.readouterr()
    finetune(options)
    assert f"resuming from {partial / 'checkpoints' / 'checkpoint-5'}" in capsys.readouterr().err
    assert not partial.exists()
    finetune(replace(options, output_dir=finished.with_name("other")))
    assert (
        load_file(finished / "model.safetensors").keys()
        == load_file(finished.with_name("other") / "model.safetensors").keys()
    )
    assert tree(finished)["model.safetensors"] == tree(finished.with_name("other"))["model.safetensors"]
    shutil.rmtree(finished)
    with monkeypatch.context() as patch:
        stops(patch, 7)
        with pytest.raises(RunError):
            finetune(options)
    assert inspect(InspectOptions(path=finished)).values["run"]["steps"] == 5, "found where it lives meanwhile"


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Within the swap: every change of the file system but the first `step` ends the program."""
    left = [step]

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise SystemExit("killed")
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    take_place = toolkit.training.run_folder.take_place

    def cut(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "rename"), (Path, "unlink"), (Path, "rmdir")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            return take_place(*args)

    monkeypatch.setattr("toolkit.training.run_folder.take_place", cut)


def test_killed_at_each_moment_of_the_swap(
    short: FinetuneOptions, finished: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rerun ends it: the new model, the foreign file and the edited one are all there, and nothing else."""
    options = replace(short, overwrite=True, seed=7)
    (finished / "notes").write_text("mine")
    (finished / "README.md").write_text("my own words")
    shutil.copytree(finished, finished.with_name("start"))
    whole = []
    monkeypatch.setattr(
        toolkit.reports.finished_run, "replace_model", lambda partial, place, out: whole.append(partial)
    )
    finetune(options)
    monkeypatch.undo()
    shutil.copytree(whole[0], finished.with_name("whole"))
    expected: dict[str, str] = {}
    for step in range(200):
        for name, source in (("model", "start"), ("model.partial", "whole")):
            shutil.rmtree(finished.with_name(name), ignore_errors=True)
            shutil.copytree(finished.with_name(source), finished.with_name(name))
        with monkeypatch.context() as patch:
            killed_at(patch, step)
            try:
                finetune(replace(options, overwrite=False))
                done = True
            except SystemExit:
                done = False
        assert "finished already" in finetune(replace(options, overwrite=False)).text
        after = tree(finished)
        expected = expected or after
        assert after == expected, f"killed after {step} steps"
        assert (finished / "README.md.old").read_text() == "my own words"
        assert not finished.with_name("model.partial").exists()
        if done:
            break
    assert 30 < step < 199
    assert expected.keys() == tree(made).keys() | {"notes", "README.md.old"}


def test_something_in_the_way(short: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    out = short.output_dir
    real = toolkit.reports.finished_run.replace_model

    def late(*args: Any) -> None:
        out.mkdir()
        (out / "README.md").write_text("somebody else's")
        real(*args)

    monkeypatch.setattr(toolkit.reports.finished_run, "replace_model", late)
    with pytest.raises(
        OutputError,
        match=r"README\.md, which the earlier run did not write, is in the way; move that, and run the same",
    ):
        finetune(short)
    assert tree(out).keys() == {"README.md"}
    os.rename(out / "README.md", out / "mine.md")
    assert "finished already" in finetune(short).text
    assert (out / "mine.md").read_text() == "somebody else's"


# ---- going on -------------------------------------------------------------------------------------------------------


def test_a_run_that_lives_in_the_folder_itself(
    model_dir: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As toolkits before this one began it: options.json, training.jsonl and checkpoints that are marked by sizes alone."""
    options = FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=8)
    with monkeypatch.context() as patch:
        stops(patch, 7)
        with pytest.raises(RunError):
            finetune(options)
    os.rename(tmp_path / "model.partial", tmp_path / "model")
    for mark in (tmp_path / "model").rglob("whole.json"):
        mark.write_text(json.dumps({name: size for name, (size, _) in json.loads(mark.read_text()).items()}))
    (tmp_path / "model" / "notes").write_text("mine")
    with pytest.raises(OutputError, match=r"other settings \(--epochs 2, now 3\)"):
        finetune(replace(options, epochs=3))
    with monkeypatch.context() as patch:
        stops(patch, 2)  # the second step after the checkpoint
        with pytest.raises(RunError):
            finetune(options)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes"]
    finetune(options)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    rows = [json.loads(line) for line in (tmp_path / "model" / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "eval_loss" in row] == [1, 2]


def test_a_finished_run_of_an_older_toolkit(short: FinetuneOptions, finished: Path) -> None:
    """It does not list its files."""
    summary = json.loads((finished / "finetune.json").read_text())
    files = summary.pop("files")
    (finished / "finetune.json").write_text(json.dumps(summary))
    (finished / "notes").write_text("mine")
    assert finetune(short).values == summary
    finetune(replace(short, overwrite=True, seed=7))
    assert tree(finished).keys() == {*files, "finetune.json", "notes"}


def test_a_finished_run_that_lacks_its_model(short: FinetuneOptions, finished: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    assert "finished already" in finetune(short).text
    (finished / "model.safetensors").unlink()
    with pytest.raises(
        OutputError, match=r"its model\.safetensors is missing; put it back, or train .* --overwrite\.$"
    ):
        finetune(short)
    (finished / "finetune.json").write_text("[]")
    with pytest.raises(OutputError, match=r"its finetune\.json is damaged; train the model again with --overwrite\.$"):
        finetune(short)
    finetune(replace(short, overwrite=True))
    assert "finished already" in finetune(short).text


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint(
    file: str, model_dir: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One bit of it, the size as before: the run goes on from the one before, to the same weights."""
    options = FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=8)
    shutil.copytree(model_dir / "checkpoints", tmp_path / "model.partial" / "checkpoints")
    for name in ("options.json", "training.jsonl"):
        shutil.copy(model_dir / name, tmp_path / "model.partial")
    folder = tmp_path / "model.partial" / "checkpoints"
    newest, before = folder / "checkpoint-10", folder / "checkpoint-5"
    assert last_checkpoint(folder) == newest
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    assert last_checkpoint(folder) == before
    finetune(options)
    told = capsys.readouterr().err
    assert f"note: {newest} is not used ({file} is damaged)" in told
    assert f"resuming from {before}" in told
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()


# ---- a finished run goes on -----------------------------------------------------------------------------------------


def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each update."""
    found: list[float] = []
    real = CaptionTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(self.optimizer.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CaptionTrainer, "training_step", training_step)
    return found


def test_a_finished_run_is_extended(
    model_dir: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two epochs of five updates, then two more on the schedule of four."""
    out = tmp_path / "model"
    shutil.copytree(model_dir, out)
    before = tree(out)
    options = FinetuneOptions(cache=cache_dir, output_dir=out, epochs=4, batch_size=8)
    with pytest.raises(OutputError, match=r"holds a run with other settings \(--epochs 2, now 1"):
        finetune(replace(options, epochs=1))
    with pytest.raises(OutputError, match=r"--epochs 2, now 4; --lr"):
        finetune(replace(options, lr=1e-4))
    with pytest.raises(OutputError, match=r"--epochs 2, now 4"):
        finetune(replace(options, resume=False))
    with monkeypatch.context() as patch:
        stops(patch, 8)  # in the fourth epoch
        with pytest.raises(RunError):
            finetune(options)
    told = capsys.readouterr().err
    assert (
        f"{out}: finished after 2 epochs (10 updates); going on to 4 epochs from checkpoint-10, on the schedule of"
        in told
    )
    assert tree(out) == before, "the finished model stays"
    with pytest.raises(
        OutputError, match=r"model\.partial holds an unfinished run with other settings \(--epochs 4, now 5\)"
    ):
        finetune(replace(options, epochs=5))
    finetune(options)
    assert "resuming from" in capsys.readouterr().err
    assert "finished already" in finetune(options).text
    # the same at one go
    whole = tmp_path / "whole"
    shutil.copytree(model_dir, whole)
    seen = rates(monkeypatch)
    summary = finetune(replace(options, output_dir=whole))
    warmup = 2  # ceil(0.06 * 20)
    assert seen == [1.5e-3 * max(0.0, (20 - step) / (20 - warmup)) for step in range(10, 20)]
    assert tree(whole)["model.safetensors"] == tree(out)["model.safetensors"]
    assert summary.values["steps"] == 20
    assert summary.values["extended"] == [{"epochs": 2, "max_steps": -1, "steps": 10}]
    rows = [json.loads(line) for line in (whole / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "eval_loss" in row] == [1, 2, 3, 4]
    assert "trained for 2 epochs first" in (whole / "README.md").read_text()
    # anew it is another model, though of the same options
    finetune(replace(options, overwrite=True))
    assert tree(out)["model.safetensors"] != tree(whole)["model.safetensors"]
    assert "extended" not in json.loads((out / "options.json").read_text())


def test_without_a_checkpoint_there_is_no_going_on(short: FinetuneOptions, finished: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    before = tree(finished.parent)
    with pytest.raises(
        OutputError, match=r"no undamaged checkpoint of the finished run is left, so it can't be extended"
    ):
        finetune(replace(short, max_steps=4))
    assert tree(finished.parent) == before


def test_a_finished_run_is_evaluated_with_other_beams(
    model_dir: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.commands.evaluate import evaluate

    out = tmp_path / "model"
    shutil.copytree(model_dir, out)
    (out / "notes").write_text("mine")
    before = tree(out)
    trained = rates(monkeypatch)
    options = FinetuneOptions(
        cache=cache_dir,
        output_dir=out,
        epochs=2,
        batch_size=8,
        generation=GenerationOptions(num_beams=1, max_length=12),
    )
    summary = finetune(options)
    assert summary.text.startswith(f"{out}: evaluated again, not trained.\n  on validation: loss ")
    assert trained == []
    after = tree(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "README.md", "report.html", "generation_config.json", "training.jsonl", "options.json", "finetune.json"
    }  # fmt: skip
    assert after.keys() == before.keys()
    asked = EvaluateOptions(
        model=str(out),
        references=cache_dir,
        split="validation",
        resamples=10,
        generation=GenerationOptions(num_beams=1, max_length=12),
    )
    metrics = evaluate(asked).values["metrics"]
    for name in ("cider", "bleu_4", "rouge_l"):
        assert metrics[name]["score"] == pytest.approx(summary.values["validation"][name], abs=1e-9)
    first = json.loads((model_dir / "finetune.json").read_text())
    assert summary.values["validation"]["loss"] == pytest.approx(first["validation"]["loss"], abs=1e-6)
    settings = json.loads((out / "generation_config.json").read_text())
    assert (settings["num_beams"], settings["max_length"]) == (1, 12)
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [row.get("generation", {}).get("num_beams") for row in rows if "eval_loss" in row] == [None, None, 1]
    assert "finished already" in finetune(options).text
    assert finetune(replace(options, generation=GenerationOptions())).values["validation"]["cider"] == pytest.approx(
        first["validation"]["cider"], abs=1e-9
    )


# ---- told -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def no_validation(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toolkit.commands.preprocess import preprocess

    out = tmp_path_factory.mktemp("novalidation") / "cache"
    shutil.copy(sample_dir / "captions.txt", out.parent)  # without the lists of splits beside it
    preprocess(
        PreprocessOptions(
            annotations=out.parent / "captions.txt", images=sample_dir / "Images", out=out, preset="tiny", num_workers=1,
            val_fraction=0.0,
        )
    )  # fmt: skip
    return out


def test_patience_without_validation(short: FinetuneOptions, no_validation: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--early-stopping-patience 2: .* has no validation images"):
        finetune(replace(short, cache=no_validation, early_stopping_patience=2))
    with pytest.raises(InputError, match=r"^--eval-images 2: .* has no validation images to evaluate; leave it out"):
        finetune(replace(short, cache=no_validation, eval_images=2))
    assert list(tmp_path.iterdir()) == []


def test_a_warm_up_that_never_ends(short: FinetuneOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert warmup_warning(0, 1) is None
    assert warmup_warning(1, 2) is None
    assert warmup_warning(1, 0) is None
    assert "the learning rate reaches 50% of its peak" in (warmup_warning(4, 3) or "")
    finetune(replace(short, max_steps=1))  # the preset's share of one update is one
    assert "warning: a warm-up of 1 of the 1 updates: the learning rate stays at zero" in capsys.readouterr().err
    finetune(replace(short, max_steps=1, warmup_steps=0, output_dir=short.output_dir.with_name("other")))
    assert "warm-up" not in capsys.readouterr().err


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, str], None]]:
    """Files may not grow beyond 100 bytes while a function runs."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def during(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def full(*args: Any, **kwargs: Any) -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            try:
                return real(*args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        monkeypatch.setattr(owner, name, full)

    yield during
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("owner", "name", "sentence"),
    [
        ("toolkit.training.run_folder", "write_json", r"--output-dir .*model: can't be written \(File too large\)"),
        (TrainingLog, "on_log", r"training\.jsonl: the log can't be written \(.*File too large.*\); make room"),
        (
            "toolkit.reports.finished_run",
            "save_captioner",
            r"model\.partial: the model can't be written \(.+\); make room, and run the same",
        ),
        (
            "toolkit.reports.finished_run",
            "write_training_report",
            r"model\.partial: the model can't be written \(.*File too large",
        ),
    ],
)
def test_a_full_disk(
    owner: Any, name: str, sentence: str, short: FinetuneOptions, made: Path, full_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import importlib

    monkeypatch.setattr("toolkit.runtime.progress.quiet", True)
    full_disk(importlib.import_module(owner) if isinstance(owner, str) else owner, name)
    with pytest.raises((OutputError, RunError), match=sentence):
        finetune(short)
    assert not short.output_dir.exists()
    monkeypatch.undo()
    finetune(short)
    assert tree(short.output_dir)["model.safetensors"] == tree(made)["model.safetensors"]


def test_a_finished_file_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contents before the name, and the name before anything else happens."""
    order: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def replaced(source: Any, target: Any) -> None:
        order.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    with finishing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert order == [str(tmp_path / "a.tmp"), "rename", str(tmp_path)]


def test_names_in_a_model_card(tmp_path: Path) -> None:
    """Each shows as it is: a CommonMark reader gives it back as text, and the table keeps its cells."""
    from markdown_it import MarkdownIt

    from toolkit.reports.html import markdown

    for name in (
        "a`b`.jpg", "<img src=x onerror=alert(1)>", "[a](http://b)", "![a](b)", "# a", "- a", "1. a", "a|b", "*a* _b_ ~~c~~",
        "&lt;", "https://a.b", "a\\*b", "***", "---", "> a", "$a$", "    a",
    ):  # fmt: skip
        reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        (inline,) = [token for token in reader.parse(f"- x {markdown(name)}") if token.type == "inline"]
        assert {token.type for token in inline.children or []} <= {"text", "text_special"}, name
        shown = "".join(token.content for token in inline.children or [])
        assert shown.split() == f"x {name}".split(), name
        table = f"| a | b |\n| --- | --- |\n| x | {markdown(name)} |\n"
        assert sum(token.type == "td_open" for token in reader.parse(table)) == 2, name
    assert markdown("a\x1b[31m\n# b") == "a\\\\x1b\\[31m\\\\n\\# b"
