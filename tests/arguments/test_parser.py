"""The parser: help in groups, the names of Trainer, what a shell completes, and that only what is asked for is made."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from toolkit.cli import COMMANDS, Toolkit, app
from toolkit.errors import InputError
from toolkit.options import FinetuneOptions
from toolkit.options.fields import flat


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_one_group(command: str) -> None:
    options_class = COMMANDS[command][0]
    grouped = [name for names in options_class.groups.values() for name in names]  # type: ignore[attr-defined]
    options = {option.name for option in flat(options_class) if not option.metadata.get("positional")}
    assert sorted(grouped) == sorted(options)


def test_help_begins_with_what_people_need_first() -> None:
    text = CliRunner().invoke(app, ["batch-caption", "--help"]).output
    assert [
        text.index(f"  {name} ") for name in ("PATHS", "--model", "--output", "--device", "--num-beams", "--json")
    ] == sorted(
        text.index(f"  {name} ") for name in ("PATHS", "--model", "--output", "--device", "--num-beams", "--json")
    )
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", *(f"{title}:" for title in COMMANDS["batch-caption"][0].groups), "Every command:"]  # type: ignore[attr-defined]
    text = CliRunner().invoke(app, ["finetune", "--help"]).output
    assert "--learning-rate" not in text
    assert "--no-overwrite" not in text
    assert "--resume / --no-resume" in text


def test_help_makes_one_parser_and_no_run() -> None:
    """Neither the other commands' parsers nor libraries that only a run needs."""
    code = (
        "import sys, toolkit.cli as c\n"
        "try: c.app(['finetune', '--help'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'datasets', 'numpy', 'tqdm', 'pydantic', 'yaml', 'tomllib', 'sqlite3', 'filelock', 'rich')\n"
        "print([m for m in heavy if m in sys.modules], list(c.Toolkit.parsers._made), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "[] ['finetune']\n"


# ---- Trainer's names ------------------------------------------------------------------------------------------------


def test_names_of_trainer() -> None:
    ours = {option.name for option in flat(FinetuneOptions)}
    aliases = [alias for option in flat(FinetuneOptions) for alias in option.metadata.get("aliases", ())]
    assert len({*aliases, *FinetuneOptions.refused, *ours}) == len(aliases) + len(FinetuneOptions.refused) + len(ours)
    typed = ["--learning-rate", "1e-4", "--num-train-epochs=2", "--label-smoothing-factor", "0.1", "--dataloader-num-workers", "1",
             "--metric-for-best-model", "loss", "--generation-num-beams", "2", "--generation-max-length", "30", "--torch-compile",
             "--activation-checkpointing"]  # fmt: skip
    given = app(["finetune", *typed], standalone_mode=False).given
    assert (given["lr"], given["epochs"], given["label_smoothing"], given["num_workers"]) == (1e-4, 2.0, 0.1, 1)
    assert (given["eval_metric"], given["num_beams"], given["max_length"]) == ("loss", 2, 30)
    assert given["compile"] is given["gradient_checkpointing"] is True


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--per-device-train-batch-size", "counts captions there, and here images with all their captions; give --batch-size"),
        ("--per-device-eval-batch-size", "counts captions there, and here images with all their captions; give --eval-batch-size"),
        ("--bf16", "is --precision bf16 here."),
        ("--max-grad-norm", "is given as --trainer-arg max_grad_norm=VALUE here."),
    ],
)  # fmt: skip
def test_names_of_trainer_that_are_another_thing_here(option: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        app(["finetune", option, "8"], standalone_mode=False)
    assert str(error.value).startswith(f"{option}: {sentence}")


# ---- completion -----------------------------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    """What bash would offer for a line that ends where the cursor is."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_TOOLKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; sys.argv = ['toolkit']; from toolkit.cli import app; app(prog_name='toolkit')"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.split()


def test_completion_of_commands_options_and_values() -> None:
    assert completed("toolkit pre") == ["preprocess"]
    assert completed("toolkit finetune --lora-t") == ["--lora-targets"]
    assert completed("toolkit finetune --precision ") == ["auto", "fp32", "bf16", "fp16"]
    assert completed("toolkit batch-caption x --device c") == ["cpu", "cuda"]


def test_completion_offers_every_choice() -> None:
    """In this process, of every option that has choices."""
    tried = 0
    for command, (options_class, _) in COMMANDS.items():
        parameters = {parameter.name: parameter for parameter in Toolkit.parsers[command].params}
        for option in flat(options_class):
            if "choices" in option.metadata:
                offered = parameters[option.name].shell_complete(None, "")  # type: ignore[arg-type]
                assert tuple(item.value for item in offered) == option.metadata["choices"], option.name
                tried += 1
    assert tried >= 20


def test_show_completion_prints_a_script() -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = CliRunner().invoke(app, ["--show-completion"], env=environment)
    assert shown.exit_code in (0, 1)  # 1 where typer can't tell which shell this is
