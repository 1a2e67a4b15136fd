"""Where the value of each option is from, and `--print-options`, which shows it.

The command line counts before the environment, that before a config file, and that before what is built in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arguments.config import Config
from toolkit.options.fields import to_json

SOURCES = {
    "COMMANDLINE": "command line",
    "ENVIRONMENT": "environment",
    "DEFAULT_MAP": "config file",
    "DEFAULT": "default",
}


@dataclass(frozen=True)
class Origin:
    """Where a value is from.

    Attributes:
        source: one of `SOURCES`' values.
        name: the variable, or the place in the file; "" for the others.
    """

    source: str
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.source


def origins(ctx: Any, config: Config | None) -> dict[str, Origin]:
    """By option, as typer's context has it."""
    found = {}
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name)
        kind, name = SOURCES.get(getattr(source, "name", ""), "default"), ""
        if kind == "environment":
            name = next(variable for variable in parameter.envvar if os.environ.get(variable))
        elif kind == "config file" and config is not None:
            name = config.keys[parameter.name]
        found[parameter.name] = Origin(kind, name)
    return found


def blamed(message: str, options: Any, where: Mapping[str, Origin]) -> str:
    """The message with the variable, or the place in the file, for each option that one has set: nobody typed it."""
    for name, origin in where.items():
        if not origin.name:
            continue
        place = str(origin).replace("\\", r"\\")  # of a replacement
        message = re.sub(rf"--{name.replace('_', '-')}(?![\w-])", place, message)
        value = getattr(options, name, None)
        if isinstance(value, (str, Path)) and message.startswith(f"{value}: "):  # a positional one has no name there
            message = f"{origin} {message}"
    return message


def options_text(command: str, options: Any, where: Mapping[str, Origin]) -> str:
    """The options as a config file, which --config reads back, each with where its value is from."""
    lines = []
    for name, value in to_json(options).items():
        setting = f"# {name} =" if value is None else f"{name} = {_toml(value)}"
        lines.append(f"{setting:<40} # {where[name]}")
    return "\n".join([f"[{command}]", *lines])


def options_values(options: Any, where: Mapping[str, Origin]) -> dict[str, dict[str, Any]]:
    """The same for --json: of each option value, source and, where there is one, the name of that."""
    return {
        name: {"value": value, "source": where[name].source} | ({"name": where[name].name} if where[name].name else {})
        for name, value in to_json(options).items()
    }


def _toml(value: Any) -> str:
    """A value of an option as TOML writes it, which for texts and lists of texts is as JSON does."""
    return re.sub(
        r"[^ -~]",
        lambda c: c[0] if c[0].isprintable() else f"\\U{ord(c[0]):08x}",
        json.dumps(value, ensure_ascii=False),
    )
