"""Defaults from a file: the same values whichever way they come, one sentence for a slip, and what only a person may set."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from toolkit.arguments import config
from toolkit.arguments.parser import COMMON
from toolkit.cli import COMMANDS, app, main
from toolkit.errors import InputError
from toolkit.options.fields import flat

CLASSES = {name: kind for name, (kind, _) in COMMANDS.items()}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUM_WORKERS", raising=False)


def read(text: str, command: str = "finetune", name: str = config.NAME, found: bool = True) -> config.Config:
    Path(name).write_text(text, encoding="utf-8")
    return config.read(Path(name), found, command, CLASSES, COMMON)


def origins(*arguments: str) -> dict[str, tuple[object, str]]:
    """Value and origin of each option that has another value than the one built in."""
    call = app(list(arguments), standalone_mode=False)
    summary = call._summary() if call.print_options else None
    assert summary is not None
    return {
        name: (shown["value"], shown.get("name", shown["source"]))
        for name, shown in summary.values.items()
        if shown["source"] != "default"
    }


# ---- what counts ----------------------------------------------------------------------------------------------------


def test_the_command_line_then_the_environment_then_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(config.NAME).write_text(
        "seed = 1\nbatch_size = 16\n[finetune]\nlr = 1e-4\nepochs = 5\nmax-steps = 7\nfreeze_encoder = true\n[caption]\nseed = 2\n"
    )
    monkeypatch.setenv("TOOLKIT_FINETUNE_EPOCHS", "6")
    monkeypatch.setenv("TOOLKIT_FINETUNE_MAX_STEPS", "8")
    assert origins("finetune", "--print-options", "--max-steps", "9", "--no-freeze-encoder") == {
        "max_steps": (9, "command line"),
        "freeze_encoder": (False, "command line"),
        "epochs": (6.0, "TOOLKIT_FINETUNE_EPOCHS"),
        "lr": (1e-4, "toolkit.toml [finetune] lr"),
        "batch_size": (16, "toolkit.toml batch_size"),
        "seed": (1, "toolkit.toml seed"),
    }
    given = {
        "batch_size": ("16", "toolkit.toml batch_size"),
        "seed": (1, "toolkit.toml seed"),
        "sample": (True, "command line"),
    }
    assert origins("batch-caption", "--print-options", "--sample") == given
    assert origins("finetune", "--print-options", "--config", "none").keys() == {"epochs", "max_steps"}


def test_a_table_counts_before_what_is_for_all_commands() -> None:
    assert read("seed = 1\n[finetune]\nseed = 2\n").values == {"seed": 2}
    assert read("[finetune]\nseed = 2\n", "evaluate").values == {}


def test_a_named_file_is_read_instead() -> None:
    Path(config.NAME).write_text("seed = 1\n")
    Path("run.YAML").write_text("finetune:\n  learning_rate: 1e-4\n  report_to: none\n")
    given = origins("finetune", "--print-options", "--config", "run.YAML")
    assert given == {
        "lr": (1e-4, "run.YAML [finetune] learning_rate"),
        "report_to": ("none", "run.YAML [finetune] report_to"),
    }


def test_yaml_and_toml_say_the_same() -> None:
    """Also what PyYAML takes for a text (1e-4) or for true (on)."""
    toml = 'num_workers = 2\n[inspect]\nnear_duplicates = "on"\nsplit_map = ["a=val", "b=test"]\nimages = "x"\n[finetune]\nlr = 1e-4\nepochs = 3\n'
    yaml = "num-workers: 2\ninspect: {near-duplicates: on, split_map: [a=val, b=test], images: x, format: null}\nfinetune:\n  lr: 1e-4\n  epochs: 3\n"
    for command in ("inspect", "finetune", "preprocess"):
        assert read(toml, command).values == read(yaml, command, "c.yaml").values
    assert read(toml).values == {"num_workers": 2, "lr": 1e-4, "epochs": 3.0}


@pytest.mark.parametrize("command", COMMANDS)
def test_printed_options_are_a_file_that_gives_the_same_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option of each command, through the parser, TOML and back."""
    more = {
        "batch-caption": ["a b", "--prefix", 'say "\\\u00e9 \u202e\n'],
        "finetune": ["--lr", "1e-05", "--trainer-arg", "optim=sgd"],
    }
    first = app([command, "--print-options", *more.get(command, [])], standalone_mode=False)
    first.run()
    text = capsys.readouterr().out
    assert text.isprintable() or set(text) - set("\n") <= {c for c in text if c.isprintable()}
    Path("again.toml").write_text(text, encoding="utf-8")
    assert set(tomllib.loads(text)[command]) <= {option.name for option in flat(CLASSES[command])}
    second = app([command, "--print-options", "--config", "again.toml"], standalone_mode=False)
    values = [call._summary().values for call in (first, second)]
    assert {name: shown["value"] for name, shown in values[0].items()} == {
        n: shown["value"] for n, shown in values[1].items()
    }
    written = {name for name, shown in values[0].items() if shown["value"] is not None}
    assert {name for name, shown in values[1].items() if shown["source"] == "config file"} == written


def test_what_a_run_has_no_use_for_is_left_out() -> None:
    """As with a variable: a file is for many runs."""
    Path(config.NAME).write_text("[batch-caption]\nseed = 3\ntop_k = 5\n")
    assert origins("batch-caption", "--print-options") == {}
    assert origins("batch-caption", "--print-options", "--sample").keys() == {"sample", "seed", "top_k"}


# ---- slips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[finetune]\nepohcs = 3", "toolkit.toml [finetune] epohcs: there is no such option; did you mean epochs?"),
        ("[fintune]\nepochs = 3", "toolkit.toml [fintune]: there is no such command; did you mean finetune?"),
        ("epohcs = 3", "toolkit.toml epohcs: no command has such an option; did you mean epochs?"),
        ("[tool.x]\ny = 3", "toolkit.toml [tool]: there is no such command; remove it."),
        ("[evaluate]\nepochs = 3", "toolkit.toml [evaluate] epochs: there is no such option; remove it."),  # of another command
        ("finetune = 3", "toolkit.toml finetune = 3: is a command; write its options below [finetune]."),
        ("[finetune]\nepochs = 'three'", 'toolkit.toml [finetune] epochs = "three": must be a number.'),
        ("[finetune]\nepochs = true", "toolkit.toml [finetune] epochs = true: must be a number."),
        ("[finetune]\nseed = 1.5", "toolkit.toml [finetune] seed = 1.5: must be a whole number."),
        ("seed = '1'", 'toolkit.toml seed = "1": must be a whole number.'),
        ("[finetune]\nflip = 1", "toolkit.toml [finetune] flip = 1: must be true or false."),
        ("[finetune]\nprecision = ['bf16']", 'toolkit.toml [finetune] precision = ["bf16"]: must be a text, in quotes.'),
        ("[finetune]\noutput_dir = {}", "toolkit.toml [finetune] output_dir = {}: must be the name of a file or folder"),
        ("[finetune]\ntrainer_arg = [['a=1']]", "must be a text or a list of texts."),
        ("[finetune.lr]\nx = 1", 'toolkit.toml [finetune] lr = {"x": 1}: must be a number.'),
        ("[finetune]\nlr = 1\nlearning-rate = 1", "toolkit.toml [finetune] learning-rate: toolkit.toml [finetune] lr says it already"),
        ("lr = 1\nlearning_rate = 1", "toolkit.toml learning_rate: toolkit.toml lr says it already; leave one of the two out."),
        ("[finetune]\nbf16 = true", "toolkit.toml [finetune] bf16: is --precision bf16 here."),
        ("per_device_train_batch_size = 8", "toolkit.toml per_device_train_batch_size: counts captions there, and here images"),
        ("[finetune]\nlr =\n", "toolkit.toml: is no TOML (Invalid value (at line 2, column 5)); correct it, or add --config none."),
        ("[finetune]\nlr = 1\nlr = 2", "toolkit.toml: is no TOML (Cannot overwrite a value (at line 3, column 7))"),
    ],
)  # fmt: skip
def test_slips_in_toml(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("finetune:\n  lr: 1\n  lr: 2", "run.yaml: is no YAML (lr is there twice, line 3); correct it, or add --config none."),
        ("finetune: [", "run.yaml: is no YAML (expected the node content, but found '<stream end>', line 1)"),
        ("finetune: !!python/object/apply:os.getcwd []", "run.yaml: is no YAML (could not determine a constructor for the tag"),
        ("? [a]\n: 3", "run.yaml: is no YAML (a key is no text, line 1)"),
        ("- lr", "run.yaml: holds no options; write NAME: VALUE, a line for each."),
        ("finetune:\n  flip: yes", 'run.yaml [finetune] flip = "yes": must be true or false.'),
        ("1: 2", "run.yaml 1: no command has such an option; remove it."),
    ],
)  # fmt: skip
def test_slips_in_yaml(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read(text, name="run.yaml")
    assert sentence in str(error.value)
    assert read("", name="run.yaml").values == {}


def test_files_that_cannot_be_read() -> None:
    for named, sentence in (
        ("no.toml", "no.toml: can't be read (No such file or directory); give --config another file, or none."),
        ("run.json", "--config run.json: name a file that ends in .toml, .yaml, .yml, or none to read no file."),
    ):
        with pytest.raises(InputError) as error:
            app(["finetune", "--config", named], standalone_mode=False)
        assert str(error.value) == sentence
    Path(config.NAME).write_bytes(b"seed = 1 # \xff")
    with pytest.raises(InputError, match=r"toolkit.toml: is not UTF-8 \(byte 11\)"):
        app(["finetune"], standalone_mode=False)
    assert app(["finetune", "--help"], standalone_mode=False) == 0
    Path(config.NAME).unlink()
    Path(config.NAME).mkdir()
    with pytest.raises(InputError, match=r"toolkit.toml: can't be read \(Is a directory\)"):
        app(["finetune"], standalone_mode=False)


def test_a_value_that_no_run_can_work_with_is_told_by_its_place() -> None:
    Path(config.NAME).write_text("lr = -1\n")
    with pytest.raises(InputError, match=r"^toolkit.toml lr -1.0: must be at least 0"):
        app(["finetune"], standalone_mode=False).run()


# ---- what only a person may set -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "text", "what"),
    [
        ("finetune", "overwrite = true", "is taken only from the command line"),
        ("finetune", "[finetune]\nresume = false", "is taken only from the command line"),
        ("finetune", "[finetune]\noutput_dir = '../m'", "is outside the working folder"),
        ("finetune", "[finetune]\noutput_dir = '~/m'", "is outside the working folder"),
        ("finetune", "[finetune]\noutput_dir = 'link/m'", "is outside the working folder"),
        ("preprocess", "[preprocess]\nout = 's3://bucket/cache'", "is outside the working folder"),
        ("preprocess", "[preprocess]\nray_address = 'head:6379'", "is taken only from the command line"),
        ("batch-caption", "[batch-caption]\nendpoint = 'http://example.org/v1'", "is taken only from the command line"),
        ("batch-caption", "[batch-caption]\nexisting = 'overwrite'", "is taken only from the command line"),
        ("batch-caption", "[batch-caption]\nformat = 'txt'", "is taken only from the command line"),  # written beside the images
        ("batch-caption", "[batch-caption]\ngallery = '/g.html'", "is outside the working folder"),
        ("evaluate", "[evaluate]\npage = '/p.html'", "is outside the working folder"),
        ("review", "[review]\nhost = '0.0.0.0'", "is taken only from the command line"),
        ("sample", "[sample]\ndirectory = '/s'", "is outside the working folder"),
    ],
)  # fmt: skip
def test_a_file_that_was_only_found_may_not(command: str, text: str, what: str) -> None:
    Path("link").symlink_to("/tmp")
    Path(config.NAME).write_text(text)
    with pytest.raises(InputError) as error:
        app([command, "--print-options"], standalone_mode=False)
    assert str(error.value).startswith("toolkit.toml ")
    assert what in str(error.value)
    assert str(error.value).endswith("; remove it, or say --config toolkit.toml.")
    key = next(iter(config.read(Path(config.NAME), True, command, CLASSES, COMMON).values))
    assert key in app([command, "--print-options", "--config", config.NAME], standalone_mode=False).given
    other = "demo"  # which has none of these
    app([other, "--print-options"], standalone_mode=False)


def test_it_may_where_it_changes_nothing() -> None:
    """The default itself, an output below the working folder, and what the command line says otherwise."""
    Path(config.NAME).write_text("overwrite = false\n[finetune]\noutput_dir = 'inner/../m'\nresume = false\n")
    given = origins("finetune", "--print-options", "--resume")
    assert given["output_dir"][0] == "inner/../m"
    assert given["resume"] == (True, "command line")


def test_the_page_names_what_only_a_person_may_set() -> None:
    text = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    for name, options_class in CLASSES.items():
        for option in flat(options_class):
            if option.metadata.get("by_hand"):
                assert f"`{option.name}`" in text or f"`{option.name} = " in text, (name, option.name)


def test_every_output_and_every_option_that_overwrites_is_marked() -> None:
    for name, options_class in CLASSES.items():
        for option in flat(options_class):
            if "overwrite" in option.name or option.name in ("endpoint", "ray_address", "host", "push_to_hub"):
                assert option.metadata.get("by_hand"), (name, option.name)
            if option.name in ("out", "output", "output_dir", "page", "sheet", "per_image", "export", "directory"):
                assert option.metadata.get("output"), (name, option.name)


# ---- what is said ---------------------------------------------------------------------------------------------------


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["toolkit", *arguments])
    with pytest.raises(SystemExit):
        main()
    found = capsys.readouterr()
    return found.out, found.err


def test_a_file_that_was_found_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(config.NAME).write_text("[sample]\nimages = 3\nseed = 5\n")
    out, err = said(["sample", "s", "--json"], monkeypatch, capsys)
    assert err == "toolkit.toml: found here, and sets --images, --seed\n"
    assert json.loads(out)["images"] == 3
    out, err = said(["sample", "t", "--config", "toolkit.toml", "--json"], monkeypatch, capsys)
    assert (json.loads(out)["images"], err) == (3, "")
    Path(config.NAME).write_text("quiet = true\n[sample]\nimages = 3\n")
    assert said(["sample", "u"], monkeypatch, capsys) == ("", "")
    out, err = said(["sample", "--print-options"], monkeypatch, capsys)  # without the folder that a run would need
    assert out.splitlines()[:2] == ["[sample]", "# directory =                            # default"]
    assert "images = 3                               # toolkit.toml [sample] images" in out
    shown = json.loads(said(["sample", "--print-options", "--json"], monkeypatch, capsys)[0])
    assert shown["images"] == {"value": 3, "source": "config file", "name": "toolkit.toml [sample] images"}
    assert shown["seed"] == {"value": 42, "source": "default"}
    assert sorted(path.name for path in Path().iterdir()) == ["s", "t", "toolkit.toml", "u"]
