"""Typer's commands, made from the option classes: each when it is asked for, its help in groups.

The parser of a command takes 10 to 30 ms to make; all of them would be most of the time that `toolkit --help` takes.
"""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from toolkit.errors import InputError
from toolkit.options.fields import Option, flat

# Typer brings a click of its own, or uses the package: of one of the two.
CLICK_ERROR: Any = typer.BadParameter.__mro__[2]
# What every command has besides its own options.
COMMON = (
    Option("json", bool, False, {"help": "Print the summary as one JSON object.", "flag": True}),
    Option("quiet", bool, False, {"help": "Print nothing but errors.", "flag": True}),
)
PRINT_OPTIONS = "--print-options"
LAST = "Every command"


def variables(command: str, name: str) -> list[str]:
    """The environment variables of an option, the one that counts first."""
    own = f"TOOLKIT_{command.upper().replace('-', '_')}_{name.upper()}"
    return [own, "NUM_WORKERS"] if name == "num_workers" else [own]


def flag(name: str) -> str:
    """An option as it is typed: "--num-beams" for num_beams."""
    return f"--{name.replace('_', '-')}"


def make(command: str, options_class: type, help: str, result: Callable[..., Any], more: list[Any]) -> Command:
    """The parser of a command.

    Args:
        result: called with typer's context and the values by name; what it returns is what the parser does.
        more: parameters besides the options.
    """

    def call(ctx: typer.Context, **given: Any) -> Any:
        return result(ctx, command, given)

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *more, *(_parameter(command, option) for option in (*flat(options_class), *COMMON))]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command(command, cls=Command, help=help)(call)
    made: Any = typer.main.get_command(single)
    made.options_class = options_class
    return made


def _parameter(command: str, option: Option) -> inspect.Parameter:
    """An option as a typer parameter."""
    name, kind, default, metadata = option.name, option.kind, option.default, option.metadata
    common: dict[str, Any] = {"help": metadata["help"], "envvar": variables(command, name), "show_envvar": False}
    optional = type(None) in typing.get_args(kind)
    kind = next((a for a in typing.get_args(kind) if a is not type(None)), kind) if optional else kind
    many = typing.get_origin(kind) is tuple
    if many:
        kind = list[str]
    if metadata.get("positional"):
        info = typer.Argument(metavar=name.upper(), show_default=not metadata.get("required"), **common)
    else:
        words = metadata.get("choices") or metadata.get("suggested")
        if words:
            common["autocompletion"] = lambda incomplete: [word for word in words if word.startswith(incomplete)]
        # That a flag can be switched off again, help need not say: only a config file can have switched it on.
        names = [f"{flag(name)}/--no-{flag(name)[2:]}"] if kind is bool else [flag(name)]
        shown = metadata.get("show_default", default is not None and not metadata.get("flag"))
        info = typer.Option(*names, *map(flag, metadata.get("aliases", ())), show_default=shown, **common)
    parameter_default = inspect.Parameter.empty if metadata.get("required") else default
    annotation = Annotated[kind | None if optional else kind, info]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=parameter_default)


class Command(TyperCommand):
    """A command whose help has the options in groups, without the names that are there for a habit's sake."""

    options_class: Any

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        needed = [parameter for parameter in self.params if parameter.required and PRINT_OPTIONS in args]
        for parameter in needed:  # what has to be there for a run, has not to be shown what else is
            parameter.required = False
        try:
            return super().parse_args(ctx, args)
        except CLICK_ERROR as error:
            name = str(getattr(error, "option_name", ""))
            why = self.options_class.refused.get(name.lstrip("-").replace("-", "_"))
            if why is not None:
                raise InputError(f"{name}: {why}.") from None
            raise
        finally:
            for parameter in needed:
                parameter.required = True

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records: dict[str, tuple[str, str]] = {}
        options = {option.name: option for option in (*flat(self.options_class), *COMMON)}
        for parameter in self.get_params(ctx):
            shown: Any = copy.copy(parameter)
            if parameter.name in options:
                shown.opts = shown.opts[:1]
                if options[parameter.name].metadata.get("flag"):
                    shown.secondary_opts = []
            record = shown.get_help_record(ctx)
            if record is not None and parameter.name is not None:
                records[parameter.name] = record
        positional = [name for name, option in options.items() if option.metadata.get("positional")]
        common = [name for name in records if name not in options or options[name] in COMMON]
        groups = {"Arguments": positional, **self.options_class.groups}
        rest = [name for name in records if name not in {*common, *(n for names in groups.values() for n in names)}]
        for title, names in {**groups, "Other options": rest, LAST: common}.items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([records[name] for name in names])


class Parsers(Mapping[str, Command]):
    """The parsers by command, each made when it is first asked for."""

    def __init__(self, helps: Mapping[str, str], make: Callable[[str], Command]) -> None:
        self.helps, self._make, self._made = helps, make, dict[str, Command]()

    def __getitem__(self, command: str) -> Command:
        if command not in self._made:
            if command not in self.helps:
                raise KeyError(command)
            self._made[command] = self._make(command)
        return self._made[command]

    def __iter__(self) -> Iterator[str]:
        return iter(self.helps)

    def __len__(self) -> int:
        return len(self.helps)


class Group(TyperGroup):
    """`toolkit` itself; a subclass says what its commands are."""

    parsers: Parsers

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = self.parsers

    def get_help_option(self, ctx: Any) -> Any:
        made = super().get_help_option(ctx)
        if made is not None:
            made.default = False  # with None, typer imports pydantic to see that it is no bool: 100 ms
        return made

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.parsers)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.parsers.helps.items()))
