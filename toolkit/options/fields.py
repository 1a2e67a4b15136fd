"""What the option classes share: a field with its help text, and checks of values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from toolkit.errors import InputError, UnusedOption

ENGINES = ("local", "ray")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CAPTION_PRECISIONS = (*PRECISIONS, "int8")
DEVICES = ("auto", "cpu", "cuda", "mps")  # some of them
TOKENIZE = ("auto", "ptb", "intl", "char")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its help text.

    Args:
        metadata: `positional=True` makes it an argument of the command; `output=True` says that it names what is written,
            `path=True` that a string may be the name of a file or folder; `choices` are all its values, checked before
            `validate` is called, `suggested` some, which a shell completes; `aliases` are names that other programs have for
            the same; `by_hand` are values that a `toolkit.toml` which was only found may not set, True for every one.
    """
    return field(default=default, metadata={"help": help, **metadata})


def nested(default: Any, names: tuple[str, ...], help: Callable[[str, str], str] = lambda name, text: text) -> Any:
    """A field that holds options of its own; those of `names` are options of the command, and nothing else is.

    Args:
        help: from an option's name and help text to the text that this command shows.
    """
    return field(default=default, metadata={"nested": names, "help": help})


Groups = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Option:
    """An option as the command line has it. `within` is the field that it is nested in."""

    name: str
    kind: Any
    default: Any
    metadata: Any
    within: str | None = None

    def value(self, options: Any) -> Any:
        return getattr(getattr(options, self.within) if self.within else options, self.name)


def flat(options_class: type) -> list[Option]:
    """All options of a command, the nested ones in place of the field that holds them."""
    hints, found = get_type_hints(options_class), []
    for f in fields(options_class):
        if "nested" in f.metadata:
            inner = {option.name: option for option in flat(hints[f.name])}
            for name in f.metadata["nested"]:
                default, metadata = getattr(f.default, name), inner[name].metadata
                metadata = {**metadata, "help": f.metadata["help"](name, metadata["help"])}
                found.append(Option(name, inner[name].kind, default, metadata, f.name))
        else:
            found.append(Option(f.name, hints[f.name], None if f.default is MISSING else f.default, f.metadata))
    return found


def from_flat(options_class: Any, values: dict[str, Any]) -> Any:
    """The options of a command from values by name, as the command line gives them."""
    inner: dict[str, dict[str, Any]] = {}
    values = dict(values)
    for option in flat(options_class):
        if option.within and option.name in values:
            inner.setdefault(option.within, {})[option.name] = values.pop(option.name)
    hints = get_type_hints(options_class)
    return options_class(**values, **{name: hints[name](**given) for name, given in inner.items()})


class Options:
    """Base of the option classes: gives each value the type that its field declares, then calls `validate`.

    Attributes:
        groups: the options by heading, as `--help` shows them: what people need first comes first.
        refused: options that other programs have and that are another thing here, with what to do.
    """

    groups: ClassVar[Groups] = {}
    refused: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, f.name, _as_declared(getattr(self, f.name), hints[f.name], f.metadata))
        _fill_nested(self)
        _check_nested(self)
        for f in fields(self):  # type: ignore[arg-type]
            if "choices" in f.metadata and (getattr(self, f.name) is not None or f.default is not None):
                check_choice(f.name, getattr(self, f.name), f.metadata["choices"])
        self.validate()

    def validate(self) -> None:
        """Raises `InputError` for a value that no run could work with."""


def _as_declared(value: Any, kind: Any, metadata: Any) -> Any:
    """Strings as paths, paths as strings, lists as tuples; `~` at the start of a path is the home folder, which a shell
    leaves alone in `--out=~/x`, quotes and variables."""
    if get_origin(kind) is tuple:
        values = [] if value is None else [value] if isinstance(value, (str, Path)) else value
        return tuple(_as_declared(each, get_args(kind)[0], metadata) for each in values)
    if isinstance(value, list):
        return tuple(value)
    if type(value) not in (str, type(Path())):  # also a path of a class of its own: a local copy of what is at a URL
        return value
    if Path in (kind, *get_args(kind)):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(os.fspath(value)) if metadata.get("path") else value


def _fill_nested(options: Any) -> None:
    """A None of a nested option is the command's own default, where it has one."""
    for f in fields(options):
        if "nested" in f.metadata:
            held = getattr(options, f.name)
            missing = {name: getattr(f.default, name) for name in f.metadata["nested"] if getattr(held, name) is None}
            if any(value is not None for value in missing.values()):
                object.__setattr__(options, f.name, replace(held, **missing))


def _check_nested(options: Any) -> None:
    """Refuses what a nested field holds beyond the options that this command has."""
    for f in fields(options):
        if "nested" in f.metadata:
            held = getattr(options, f.name)
            others = tuple(inner.name for inner in fields(held) if inner.name not in f.metadata["nested"])
            check_unused(held, others, "is not an option of this command; leave it out")


def default_workers() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(condition: bool, name: str, value: Any, remedy: str) -> None:
    if not condition:
        raise InputError(f"--{name.replace('_', '-')} {value}: {remedy}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"choose one of {', '.join(choices)}")


def check_at_least(options: Any, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        finite = value is None or minimum <= value < float("inf")
        check(finite, name, value, f"must be at least {minimum}" + (", and finite" if value == float("inf") else ""))


def check_seed(options: Any) -> None:
    check(0 <= options.seed < 2**32, "seed", options.seed, "must be a whole number from 0 to 4294967295")


SPLIT_TARGETS = ("train", "validation", "val", "test")


def check_split_map(options: Any) -> None:
    for given in options.split_map:
        name, _, split = given.partition("=")
        check(bool(name.strip()) and split in SPLIT_TARGETS, "split_map", given,
              f"is the source's name, =, and one of {', '.join(SPLIT_TARGETS)}, as eval=validation")  # fmt: skip
        twice = sum(other.partition("=")[0] == name for other in options.split_map)
        check(twice == 1, "split_map", given, f"{name} is given {twice} times; give it once")


def check_unused(options: Any, names: tuple[str, ...], why: str, defaults: Any = None) -> None:
    """Refuses options that would be ignored: those of `names` that differ from their default, or from `defaults`."""
    for f in fields(options):
        value = getattr(options, f.name)
        if f.name in names and value != (f.default if defaults is None else getattr(defaults, f.name)):
            raise UnusedOption(f"--{f.name.replace('_', '-')} {value}: {why}.", f.name)


def check_engine(options: Any) -> None:
    check(options.engine == "local" or find_spec("ray") is not None, "engine", options.engine,
          "Ray is not installed; pip install 'captioning-toolkit[ray]', on each node")  # fmt: skip
    address = options.ray_address
    check(address is None or options.engine == "ray", "ray_address", address,
          "only applies with --engine ray; add that")  # fmt: skip
    check(not (address or "").startswith("ray://"), "ray_address", address,
          "is an address of Ray's client, which sees no shared storage; run the command on a node, with --ray-address auto")  # fmt: skip


def to_json(options: Any) -> dict[str, Any]:
    """An options dataclass as plain JSON values, nested options beside the others; paths as strings with "/"."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return value.as_posix()
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return {option.name: plain(option.value(options)) for option in flat(type(options))}
