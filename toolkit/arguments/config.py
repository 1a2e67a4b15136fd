"""Defaults from a file: `toolkit.toml` in the working folder, or the one that --config names.

    num_workers = 4          # of every command that has the option

    [finetune]               # of one command; "lr", "learning_rate" and "learning-rate" are the same
    epochs = 5
    lr = 1e-4

Everything in the file is checked whichever command reads it, so that a slip is told at once. What a file may set is what
the options tables have (toolkit/options/): nothing is listed here.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.options.fields import Option, flat

NAME = "toolkit.toml"
NONE = "none"  # --config none: no file
SUFFIXES = (".toml", ".yaml", ".yml")


@dataclass(frozen=True)
class Config:
    """What a file says for one command.

    Attributes:
        path: as the user knows it.
        found: whether it lay in the working folder, and nobody has named it.
        values: by option, each of the type that the option has.
        keys: by option, where it stands: "toolkit.toml [finetune] lr".
    """

    path: Path
    found: bool
    values: dict[str, Any]
    keys: dict[str, str]


def find(named: str | None) -> tuple[Path, bool] | None:
    """The file to read, and whether it was found rather than named; None if there is none.

    Raises:
        InputError: the named one is missing, or in no form that we read.
    """
    if named == NONE:
        return None
    if named is None:
        path = Path(NAME)
        return (path, True) if os.path.lexists(path) else None
    path = Path(os.path.expanduser(named))
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--config {named}: name a file that ends in {', '.join(SUFFIXES)}, or {NONE} to read no file."
        )
    return path, False


def read(path: Path, found: bool, command: str, classes: Mapping[str, Any], common: Iterable[Option]) -> Config:
    """
    Args:
        found: as in `Config`.
        command: whose options are wanted.
        classes: the options class of every command.
        common: the options of all commands.

    Raises:
        InputError: it can't be read, or names a command or option that there is not, or a value of another type.
    """
    tables = {name: _by_name([*flat(kind), *common]) for name, kind in classes.items()}
    refused = {name: why for kind in classes.values() for name, why in kind.refused.items()}
    own, shared = dict[str, tuple[Any, str]](), dict[str, tuple[Any, str]]()
    for key, value in _parsed(path).items():
        table, word = str(key).replace("_", "-"), _field(key)
        having = [name for name, options in tables.items() if word in options]
        if isinstance(value, dict) and table in tables:
            given = _table(f"{path} [{key}]", value, tables[table], refused)
            own = given if table == command else own
        elif isinstance(value, dict):
            raise InputError(f"{path} [{key}]: there is no such command{_near(table, tables)}")
        elif table in tables and not having:
            if value is not None:
                raise InputError(f"{path} {key} = {_shown(value)}: is a command; write its options below [{key}].")
        elif command in having:
            shared = _joined(shared, _table(str(path), {key: value}, tables[command], refused))
        elif not having:
            known = dict.fromkeys(name for options in tables.values() for name in options)
            why = refused.get(word)
            raise InputError(
                f"{path} {key}: {f'{why}.' if why else f'no command has such an option{_near(word, known)}'}"
            )
    both = {**shared, **own}
    values = {name: value for name, (value, _) in both.items()}
    return Config(path, found, values, {name: place for name, (_, place) in both.items()})


def check_unasked(config: Config, options: Iterable[Option]) -> None:
    """Refuses what a file that was only found may not set: it may have come with somebody else's folder.

    Args:
        options: those that count as the file says.

    Raises:
        InputError: one of them replaces files, speaks to a server, or writes outside the working folder.
    """
    if not config.found:
        return
    for option in options:
        value, asked = config.values[option.name], option.metadata.get("by_hand", ())
        what = None
        if value != option.default and (asked is True or value in asked):
            what = "is taken only from the command line or a file that --config names"
        elif option.metadata.get("output") and _is_outside(value):
            what = "is outside the working folder, which only the command line or a file that --config names may choose"
        if what:
            raise InputError(
                f"{config.keys[option.name]} = {_shown(value)}: {what}; remove it, or say --config {NAME}."
            )


# ---- the file -------------------------------------------------------------------------------------------------------


def _parsed(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8, or add --config {NONE}."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); give --config another file, or {NONE}.") from None
    try:
        content = _toml(text) if path.suffix.lower() == ".toml" else _yaml(text)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix.lower() == ".toml" else "YAML"
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{path}: is no {kind} ({reason}); correct it, or add --config {NONE}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no options; write NAME: VALUE, a line for each.")
    return content


def _toml(text: str) -> Any:
    import tomllib  # 10 ms, as yaml below, which a command without a file does without

    return tomllib.loads(text + "\n")  # so that it names the line


def _yaml(text: str) -> Any:
    """YAML, in which 1e-4 is a number and `on` a word, as in YAML 1.2 and unlike in PyYAML's 1.1; a key only once.

    Raises:
        ValueError: it is none.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+", list("-+0123456789")),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
    try:
        return yaml.load(text, Loader) or {}  # an empty file is None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ValueError(f"{error.problem}" + (f", line {line}" if line else "")) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


# ---- its entries ----------------------------------------------------------------------------------------------------


def _field(key: Any) -> str:
    return str(key).replace("-", "_")


def _by_name(options: Iterable[Option]) -> dict[str, Option]:
    """The options by every name that they have."""
    return {name: option for option in options for name in (option.name, *option.metadata.get("aliases", ()))}


def _table(
    where: str, table: dict[Any, Any], known: Mapping[str, Option], refused: Mapping[str, str]
) -> dict[str, tuple[Any, str]]:
    """Value and place of each option."""
    given = dict[str, tuple[Any, str]]()
    for key, value in table.items():
        option, place = known.get(_field(key)), f"{where} {key}"
        if option is None:
            why = refused.get(_field(key))
            raise InputError(f"{place}: {f'{why}.' if why else f'there is no such option{_near(_field(key), known)}'}")
        if value is not None:  # YAML's null: as if it were not there
            given = _joined(given, {option.name: (_value(option, value, place), place)})
    return given


def _joined(first: dict[str, tuple[Any, str]], second: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    for name in first.keys() & second.keys():
        raise InputError(f"{second[name][1]}: {first[name][1]} says it already; leave one of the two out.")
    return {**first, **second}


def _value(option: Option, value: Any, place: str) -> Any:
    """The value as the command line's parser takes it.

    Raises:
        InputError: it is of another type.
    """
    kinds = [kind for kind in (typing.get_args(option.kind) or (option.kind,)) if kind is not type(None)]
    if typing.get_origin(option.kind) is tuple:
        values = value if isinstance(value, list) else [value]
        if not any(isinstance(one, (list, dict, bool)) for one in values):
            return [_word(one) for one in values]
        wanted = "a text or a list of texts"
    elif bool in kinds:
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif int in kinds:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        wanted = "a whole number"
    elif float in kinds:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        wanted = "a number"
    else:
        if isinstance(value, (str, int, float)):
            return _word(value)
        wanted = "the name of a file or folder, in quotes" if Path in kinds else "a text, in quotes"
    raise InputError(f"{place} = {_shown(value)}: must be {wanted}.")


def _word(value: Any) -> str:
    """A text as it would be typed: `early_stopping = true` and `batch_size = 16` are texts for the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [*known], 1)
    return f"; did you mean {near[0]}?" if near else "; remove it."


def _is_outside(value: str) -> bool:
    """Whether a path leads out of the working folder, by name or by a link."""
    if ":/" in value:  # a URL
        return True
    return not Path(os.path.expanduser(value)).resolve().is_relative_to(Path.cwd().resolve())
