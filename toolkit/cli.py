"""The command line, made from the option classes; heavy modules are imported inside each command."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import sys
import traceback
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit import __version__, progress
from toolkit import options as o
from toolkit.errors import SaidElsewhere, ToolkitError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

COMMANDS: dict[str, tuple[type, str]] = {
    "preprocess": (o.PreprocessOptions, "Read images and captions once, into a cache ready for training."),
    "finetune": (o.FinetuneOptions, "Fine-tune a captioner on a cache."),
    "batch-caption": (o.BatchCaptionOptions, "Write a caption for every image below the given folders."),
    "caption": (o.CaptionOptions, "Say what a model sees in one image or a few; writes nothing."),
    "evaluate": (o.EvaluateOptions, "Captions against references: the COCO metrics, with what it takes to trust them."),
    "inspect": (o.InspectOptions, "Say what is in an annotation set, a cache, a model or a run; writes nothing."),
    "sample": (o.SampleOptions, "Draw a small captioned data set to try things with."),
    "demo": (o.DemoOptions, "The whole path on a drawn sample: draw, preprocess, finetune, caption, look."),
}


def _parameter(command: str, name: str, kind: Any, default: Any, metadata: Any) -> inspect.Parameter:
    """One field of an option class as a typer parameter."""
    prefix = command.upper().replace("-", "_")
    variables = [f"TOOLKIT_{prefix}_{name.upper()}"] + (["NUM_WORKERS"] if name == "num_workers" else [])
    common = {"help": metadata["help"], "envvar": variables, "show_envvar": False}
    optional = type(None) in typing.get_args(kind)
    kind = next((a for a in typing.get_args(kind) if a is not type(None)), kind) if optional else kind
    many = typing.get_origin(kind) is tuple
    if many:
        kind = list[str]
    if metadata.get("positional"):
        info = typer.Argument(metavar=name.upper(), show_default=not metadata.get("required"), **common)
    else:
        flag = f"--{name.replace('_', '-')}"
        declared = [flag] if kind is not bool or metadata.get("flag") else [f"{flag}/--no-{name.replace('_', '-')}"]
        shown = metadata.get("show_default", default is not None and not metadata.get("flag"))
        info = typer.Option(*declared, show_default=shown, **common)
    parameter_default = inspect.Parameter.empty if metadata.get("required") else default
    annotation = Annotated[kind | None if optional else kind, info]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=parameter_default)


def _at_home(value: Any, metadata: Any) -> Any:
    """A path with the home folder for its `~`, which a shell leaves alone in `--out=~/x`, quotes and variables."""
    if isinstance(value, list):
        return tuple(_at_home(each, metadata) for each in value)
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) and metadata.get("path") else value


def _command(command: str, options_class: type, help: str) -> Callable[..., None]:
    module = command.replace("-", "_")

    def run(json_output: bool, quiet: bool, **given: Any) -> None:
        progress.quiet = quiet
        given = {f.name: _at_home(given[f.name], f.metadata) for f in fields(options_class)}
        options = options_class(**given)  # before the import: a wrong value answers at once
        summary = getattr(import_module(f"toolkit.{module}"), module)(options)
        if summary.said_elsewhere:
            pass
        elif json_output:
            # Half a character, from a name that is no UTF-8, is valid in JSON only as its escape.
            text = json.dumps(summary.values, ensure_ascii=False)
            print(re.sub("[\ud800-\udfff]", lambda half: ascii(half[0])[1:-1], text))
        elif not quiet and summary.text:
            print(progress.printable(summary.text, lines=True))
        raise typer.Exit(summary.exit_code)

    hints = typing.get_type_hints(options_class)
    parameters = [
        _parameter(command, f.name, hints[f.name], None if f.default is MISSING else f.default, f.metadata)
        for f in fields(options_class)
    ]
    for name, flag, text in (
        ("json_output", "--json", "Print the summary as one JSON object."),
        ("quiet", "--quiet", "Print nothing but errors."),
    ):
        info = typer.Option(flag, help=text, show_default=False, envvar=f"TOOLKIT_{module.upper()}_{flag[2:].upper()}",
                            show_envvar=False)  # fmt: skip
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[bool, info], default=False)
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = help
    return run


for _name, (_class, _help) in COMMANDS.items():
    app.command(_name, help=_help)(_command(_name, _class, _help))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"toolkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a folder of captioned images to a fine-tuned captioner, and captions for the rest of your folders."""


def main() -> None:
    """Runs a command; a user's mistake is one sentence on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's way of saying Ctrl-C
    try:
        app()
    except SaidElsewhere:
        sys.exit(1)
    except ToolkitError as error:
        print(f"Error: {progress.printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `toolkit ... | head`
        sys.stderr.close()
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        print(
            "Error: this is a mistake in toolkit, not one of yours; please report it, with the lines above.",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending; torchrun's would be a traceback
