"""The command line: help, usage, one sentence for a mistake, environment variables, JSON."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from preprocessing import picture
from typer.testing import CliRunner

from toolkit import __version__
from toolkit.cli import COMMANDS, app, main
from toolkit.errors import InputError
from toolkit.options.fields import flat
from toolkit.runtime import progress

README = Path(__file__).parents[1] / "README.md"


def toolkit(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolkit", *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    for field in flat(COMMANDS[command][0]):
        name = field.name.upper() if field.metadata.get("positional") else "--" + field.name.replace("_", "-")
        assert name in result.output
    assert "--json" in result.output
    assert "Returns:" not in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_names_every_command(command: str) -> None:
    assert f"toolkit {command}" in README.read_text(encoding="utf-8")


def test_the_page_of_the_architecture_names_every_folder() -> None:
    text = (README.parent / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {path.name for path in (README.parent / "toolkit").iterdir() if (path / "__init__.py").exists()}
    assert {name for name in folders if f"{name}/ " not in text} == set()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, toolkit.cli; print([m for m in ('torch', 'datasets', 'pandas', 'PIL', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"toolkit {__version__}\n"


def test_usage_errors_are_2(tmp_path: Path) -> None:
    assert toolkit("preprocess", "--no-such-option", cwd=tmp_path).returncode == 2
    assert toolkit("batch-caption", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["preprocess"], "captions.txt"),
        (["preprocess", "--max-length", "1"], "--max-length 1: must be at least 2."),
        (["preprocess", "--val-fraction", "0.9", "--test-fraction", "0.2"], "nothing is left to train on"),
        (["preprocess", "--format", "csv"], "--format csv: choose one of auto, flickr8k"),
        (["preprocess", "--preset", "huge"], "--preset huge: the only preset is tiny"),
        (
            ["preprocess", "--preset", "tiny", "--decoder", "gpt2"],
            "--decoder gpt2: --preset tiny has its own; leave one",
        ),
        (["preprocess", "--preset", "tiny", "--encoder", "google/vit-base-patch16-224"], "--preset tiny has its own"),
        (["preprocess", "--preset", "tiny", "--max-length", "65"], "--max-length 65: the decoder of --preset tiny has"),
        (["finetune"], "cache/dataset: no such folder; run `toolkit preprocess` first"),
        (["finetune", "--lr", "-1"], "--lr -1.0: must be at least 0"),
        (["finetune", "--captions-per-image", "some"], "must be all, or a number"),
        (["batch-caption", "nothing"], "nothing: no such file or folder"),
        (["batch-caption", ".", "--num-beams", "4", "--num-captions", "5"], "needs as many beams"),
        (["sample", "s", "--images", "0"], "--images 0: must be at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = toolkit(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("Error: ")
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_our_own_mistake_is_a_traceback_and_a_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import toolkit.commands.sample
    from toolkit.cli import main

    monkeypatch.setattr(toolkit.commands.sample, "sample", lambda options: options.no_such_option)
    monkeypatch.setattr(sys, "argv", ["toolkit", "sample", "s"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert said[0] == "Traceback (most recent call last):"
    assert "AttributeError" in said[-2]
    assert said[-1] == "Error: this is a bug in toolkit, not a mistake of yours; please report it with the lines above."


def test_environment_sets_options(tmp_path: Path) -> None:
    done = toolkit("sample", "s", cwd=tmp_path, TOOLKIT_SAMPLE_IMAGES="3", TOOLKIT_SAMPLE_JSON="1")
    assert json.loads(done.stdout)["images"] == 3
    wrong = toolkit("preprocess", cwd=tmp_path, NUM_WORKERS="0")
    assert "NUM_WORKERS 0: must be at least 1" in wrong.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tilde_is_the_home_folder(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every option that names files or folders, and in no other."""
    import toolkit.cli as cli

    class Seen(Exception):
        pass

    def module(name: str) -> Any:
        def run(options: Any) -> None:
            seen.append(options)
            raise Seen

        return SimpleNamespace(**{name.removeprefix("toolkit.commands."): run})

    monkeypatch.setattr(cli, "import_module", module)
    monkeypatch.setenv("HOME", "/home/somebody")
    options_class, seen = COMMANDS[command][0], list[Any]()
    paths = {"encoder", "decoder", "init_from", "model", "paths", "images", "idf"}
    # What a value must look like, where not everything will do; and what can't be given together.
    endings = {"per_image": ".csv", "page": ".html", "sheet": ".html", "gallery": ".html"}
    tried = 0
    for field in flat(options_class):
        is_path = "Path" in str(field.kind) or (field.name in paths and "str" in str(field.kind))
        if not (is_path or field.name in ("prefix", "suffix", "report_to", "ray_address")):
            continue
        value = f"~/a b{endings.get(field.name, '')}"
        arguments = [] if field.metadata.get("positional") else [f"--{field.name.replace('_', '-')}"]
        names = [f.name for f in flat(options_class) if f.metadata.get("required")]
        at = names.index(field.name) if field.name in names else len(names)
        required, rest = ["x"] * at, ["x"] * (len(names) - at - 1)
        needs = {"ray_address": ["--engine", "ray"], "bad_words": ["--model", "m"] if command == "evaluate" else []}
        needs["captions_from"] = ["--prompt", "{caption}"]
        more = needs.get(field.name, [])
        seen.clear()
        with suppress(Seen):
            try:
                app([command, *required, *more, *arguments, value, *rest], standalone_mode=False).run()
            except InputError:
                if field.name == "ray_address":  # Ray is not installed
                    continue
                raise
        assert len(seen) == 1, field.name
        found = field.value(seen[0])
        found = str(found[0] if isinstance(found, tuple) else found)
        assert found == (value.replace("~", "/home/somebody") if is_path else value), field.name
        tried += 1
    assert tried >= 1


def test_json_alone_on_stdout(tmp_path: Path) -> None:
    done = toolkit("sample", "s", "--images", "4", "--json", cwd=tmp_path)
    values = json.loads(done.stdout)
    assert values["directory"] == "s"
    assert values["train"] + values["validation"] + values["test"] == 4
    quiet = toolkit("sample", "t", "--images", "4", "--quiet", cwd=tmp_path)
    assert (quiet.stdout, quiet.stderr) == ("", "")


# ---- control characters ---------------------------------------------------------------------------------------------

EVIL = (
    "a\x1b[31m\n\x9b2J\u202egpj.jpg"  # turns a terminal red, breaks the line, wipes the screen, reads "jpg" backwards
)
TAMED = "a\\x1b[31m\\n\\x9b2J\\u202egpj.jpg"


def test_printable() -> None:
    assert progress.printable(EVIL) == TAMED
    assert progress.printable("a\udcff.jpg\n\ta") == "a\\udcff.jpg\\n\\ta"  # a name that is no UTF-8
    assert progress.printable("1\t2\n\x07", lines=True) == "1\t2\n\\x07"
    plain = "é 犬 ไทย 👩‍👩‍👧 नमस्ते a\u00a0b"
    assert progress.printable(plain) == plain


def printed(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the program prints on standard output, in this process."""
    monkeypatch.setattr(sys, "argv", ["toolkit", *arguments])
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().out


def test_control_characters_never_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In errors, messages and summaries; JSON keeps them as JSON does."""
    (tmp_path / "Images").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "Images" / f"{number}.jpg", "JPEG")
    shutil.copy(tmp_path / "Images/0.jpg", tmp_path / "Images" / EVIL)
    with open(tmp_path / "captions.txt", "w", newline="", encoding="utf-8") as file:
        names = [EVIL, *(f"{number}.jpg" for number in range(3))]
        csv.writer(file).writerows(
            [("image", "caption"), *((name, f"a {name}") for name in names), (EVIL, f"a {EVIL}")]
        )
    monkeypatch.chdir(tmp_path)
    error = toolkit("preprocess", "--annotations", EVIL, cwd=tmp_path).stderr
    assert error.startswith(f"Error: {TAMED}: no such file")
    shutil.copy("captions.txt", b"\xff.txt")
    inspect = ["inspect", os.fsdecode(b"\xff.txt"), "--num-workers", "1"]
    found = printed(inspect, monkeypatch, capsys)
    assert found.startswith("\\udcff.txt: annotations in flickr8k form")
    assert f"\n  note              repeated captions of an image kept: 1 ({TAMED})\n" in found
    assert f"{TAMED} = 0.jpg\n" in found
    for text in (error, found):
        assert not set(text) & set("\x1b\x9b\u202e\udcff")
    values = json.loads(printed([*inspect, "--json"], monkeypatch, capsys))
    assert values["path"] == "\udcff.txt"
    assert values["duplicates"]["examples"] == [[EVIL, "0.jpg"]]


@pytest.mark.parametrize(
    ("command", "given", "found"),
    [
        ("finetune cache --epochs 1", {}, "PASSIVE"),
        pytest.param("finetune cache --epochs 1", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", marks=pytest.mark.slow),
        pytest.param("caption a.jpg --model .", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", marks=pytest.mark.slow),
    ],
)
def test_waiting_threads_sleep(command: str, given: dict[str, str], found: str, tmp_path: Path) -> None:
    """What OpenMP says that it found when torch was loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *command.split()],
        capture_output=True, text=True, env={**environment, **given, "OMP_DISPLAY_ENV": "TRUE"}, cwd=tmp_path,
    )  # fmt: skip
    assert f"OMP_WAIT_POLICY = '{found}'" in done.stderr
