"""`--report-to` and `--run-name`: what is refused before a run, what reaches Trainer, what a reporter fails with."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError, RunError, UnusedOption
from toolkit.options import FinetuneOptions
from toolkit.training import reporters
from toolkit.training.setup import trainer_arguments


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"report_to": ""}, "--report-to '': is none, or names with commas between"),
        ({"report_to": "wandb,,trackio"}, "is none, or names with commas between"),
        ({"report_to": "wandb, wandb"}, "is none, or names with commas between"),
        ({"report_to": "none,wandb"}, "--report-to none,wandb: none and all stand alone; leave out the others."),
        ({"report_to": "wandb", "run_name": " "}, "--run-name ' ': is blank; leave it out."),
    ],
)
def test_what_names_no_reporter(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        FinetuneOptions(**given)
    assert sentence in str(error.value)


def test_a_name_that_nobody_would_use() -> None:
    for report_to in ("none", "tensorboard"):
        with pytest.raises(
            UnusedOption, match=r"^--run-name x: only applies with --report-to wandb, trackio, .* or all"
        ):
            FinetuneOptions(report_to=report_to, run_name="x")
    assert FinetuneOptions(report_to="tensorboard, trackio", run_name="x").reporters == ("tensorboard", "trackio")


def test_they_reach_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("toolkit.training.setup.Seq2SeqTrainingArguments", lambda **given: seen.update(given))
    options = replace(FinetuneOptions(), precision="fp32")
    for given, names in (("none", []), ("wandb,trackio", ["wandb", "trackio"])):
        name = "a run" if names else None
        trainer_arguments(replace(options, report_to=given, run_name=name), Path("x"), 1, None)
        assert (seen["report_to"], seen["run_name"]) == (names, name)


def test_one_that_is_broken_matters_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ModuleNotFoundError("No module named 'platformdirs'")

    monkeypatch.setattr(reporters, "get_available_reporting_integrations", broken)
    reporters.check_reporters(())
    with pytest.raises(InputError, match=r"can't be imported \(No module named 'platformdirs'\); repair it\.$"):
        reporters.check_reporters(("wandb",))


def test_what_a_reporter_raises_is_told_in_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    usage = type("UsageError", (Exception,), {"__module__": "wandb.errors"})

    def run(names: tuple[str, ...]) -> None:
        with reporters.reporting(names):
            print("wandb: hello")
            raise usage("No API key configured.\nUse `wandb login` to log in.")

    with pytest.raises(RunError) as error:
        run(("wandb",))
    assert str(error.value) == (
        "--report-to wandb: No API key configured. Use `wandb login` to log in; set wandb up, or leave it out, and run the "
        "same command again."
    )
    assert capsys.readouterr() == ("", "wandb: hello\n")
    with pytest.raises(usage):
        run(("trackio",))  # which it is not of
    with reporters.reporting(()):
        assert sys.stdout is not sys.stderr
