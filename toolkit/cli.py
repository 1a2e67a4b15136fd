"""The command line, made from the option classes; heavy modules are imported inside each command."""

from __future__ import annotations

import codecs
import difflib
import errno
import inspect
import json
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit import __version__
from toolkit import options as o
from toolkit.errors import SaidElsewhere, ToolkitError, UnusedOption
from toolkit.options.batch_caption import API_KEY
from toolkit.options.fields import Option, flat, from_flat
from toolkit.records import Summary
from toolkit.runtime import ending, progress
from toolkit.runtime.copies import LIMIT

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

COMMANDS: dict[str, tuple[type, str]] = {
    "preprocess": (o.PreprocessOptions, "Read images and captions once, into a cache ready for training."),
    "finetune": (o.FinetuneOptions, "Fine-tune a captioner on a cache."),
    "batch-caption": (o.BatchCaptionOptions, "Write a caption for every image below the given folders."),
    "caption": (o.CaptionOptions, "Print the captions of one image or a few; writes no file."),
    "evaluate": (o.EvaluateOptions, "Score captions against references: the COCO metrics, with confidence intervals."),
    "inspect": (
        o.InspectOptions,
        "Show what is in an annotation set, a cache, a model or a run; several runs side by side.",
    ),
    "review": (o.ReviewOptions, "Open a page on which a person corrects captions, the weakest first."),
    "sample": (o.SampleOptions, "Draw a small captioned data set to try things with."),
    "demo": (o.DemoOptions, "Run every step on a small drawn sample: preprocess, finetune, batch-caption, evaluate."),
}


# ---- the environment ------------------------------------------------------------------------------------------------


def _variables(command: str, name: str) -> list[str]:
    """The environment variables of an option, the one that counts first."""
    own = f"TOOLKIT_{command.upper().replace('-', '_')}_{name.upper()}"
    return [own, "NUM_WORKERS"] if name == "num_workers" else [own]


def _warn_of_unknown_variables() -> None:
    names = {name: [*(f.name for f in flat(kind)), "json", "quiet"] for name, (kind, _) in COMMANDS.items()}
    known = {
        variable for command, options in names.items() for name in options for variable in _variables(command, name)
    }
    known |= {LIMIT, API_KEY}
    for variable in sorted(os.environ):
        if variable.startswith("TOOLKIT_") and variable not in known:
            near = difflib.get_close_matches(variable, known, 1, 0.7)  # all begin with the same word
            progress.say(f"{variable}: no option reads this variable" + (f"; did you mean {near[0]}?" if near else "."))


def _set_by(ctx: Any) -> dict[str, str]:
    """The options that an environment variable has set, with its name."""
    return {
        parameter.name: next(variable for variable in parameter.envvar if os.environ.get(variable))
        for parameter in ctx.command.params
        if (source := ctx.get_parameter_source(parameter.name)) is not None and source.name == "ENVIRONMENT"
    }


def _blamed(message: str, options: Any, set_by: dict[str, str]) -> str:
    """The message with the variable for each option that one has set: the user has typed no such option."""
    for name, variable in set_by.items():
        message = re.sub(rf"--{name.replace('_', '-')}(?![\w-])", variable, message)
        value = getattr(options, name, None)
        if isinstance(value, (str, Path)) and message.startswith(f"{value}: "):  # a positional one has no name there
            message = f"{variable} {message}"
    return message


# ---- the parser -----------------------------------------------------------------------------------------------------


def _parameter(command: str, option: Option) -> inspect.Parameter:
    """An option as a typer parameter."""
    name, kind, default, metadata = option.name, option.kind, option.default, option.metadata
    common = {"help": metadata["help"], "envvar": _variables(command, name), "show_envvar": False}
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


def _command(command: str, options_class: type, help: str) -> Callable[..., Call]:
    def call(ctx: typer.Context, json_output: bool, quiet: bool, **given: Any) -> Call:
        return Call(command, given, _set_by(ctx), json_output, quiet)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [_parameter(command, option) for option in flat(options_class)]
    for name, flag, text in (
        ("json_output", "--json", "Print the summary as one JSON object."),
        ("quiet", "--quiet", "Print nothing but errors."),
    ):
        info = typer.Option(flag, help=text, show_default=False, envvar=_variables(command, flag[2:]),
                            show_envvar=False)  # fmt: skip
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[bool, info], default=False)
        )
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = help
    return call


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


# ---- running --------------------------------------------------------------------------------------------------------

OUR_FAULT = "Error: this is a bug in toolkit, not a mistake of yours; please report it with the lines above."
# Typer brings a click of its own, or uses the package: of one of the two.
CLICK_ERROR: Any = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class Call:
    """A command as it was typed."""

    command: str
    given: dict[str, Any]
    set_by: dict[str, str]
    json: bool
    quiet: bool

    def run(self) -> int:
        """Carries it out and prints its summary; the exit code."""
        progress.quiet = self.quiet
        _warn_of_unknown_variables()
        summary = self._summary(self.given)
        if not summary.said_elsewhere:
            self.show(summary)
        return int(summary.exit_code)

    def _summary(self, given: dict[str, Any]) -> Summary:
        module, options = self.command.replace("-", "_"), None
        try:
            options = from_flat(COMMANDS[self.command][0], given)  # before the import: a wrong value answers at once
            return getattr(import_module(f"toolkit.commands.{module}"), module)(options)
        except SaidElsewhere:
            raise
        except ToolkitError as error:
            if isinstance(error, UnusedOption) and error.name in self.set_by:
                # The variable sets a default for many runs, and this one has no use for it.
                return self._summary({name: value for name, value in given.items() if name != error.name})
            raise type(error)(_blamed(str(error), options, self.set_by)) from None

    def show(self, summary: Summary) -> None:
        try:
            if self.json:
                # Half a character, from a name that is no UTF-8, is valid in JSON only as its escape.
                text = json.dumps(summary.values, ensure_ascii=not _takes_unicode())
                print(re.sub("[\ud800-\udfff]", lambda half: ascii(half[0])[1:-1], text))
            elif not self.quiet and summary.text:
                print(progress.printable(summary.text, lines=True))
            sys.stdout.flush()
        except OSError as error:
            raise Unprintable(error) from None


class Unprintable(Exception):
    """Standard output can't be written."""


def _takes_unicode() -> bool:
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name == "utf-8"


def _tell(text: str) -> None:
    with suppress(OSError, AttributeError):  # no standard error to tell it on
        print(text, file=sys.stderr, flush=True)


def _code() -> int:
    """Runs what was typed; the exit code. A user's mistake is one sentence, a bug of ours a traceback."""
    try:
        try:
            call = app(standalone_mode=False)
        except OSError as error:  # of its help
            raise Unprintable(error) from None
        return call.run() if isinstance(call, Call) else int(call or 0)
    except CLICK_ERROR as error:
        if isinstance(error, typer.BadParameter) and error.ctx is not None and error.param is not None:
            error.param_hint = _set_by(error.ctx).get(error.param.name, error.param_hint)
        with suppress(OSError):
            error.show()
        return int(error.exit_code)
    except SaidElsewhere:
        return 1
    except ToolkitError as error:
        _tell(f"Error: {progress.printable(str(error))}")
        return 1
    except KeyboardInterrupt:
        _tell("Stopped; run the same command again to go on.")
        return 130
    except Unprintable as error:
        (reason,) = error.args
        if not isinstance(reason, BrokenPipeError):  # `toolkit ... | head` has seen enough
            _tell(
                f"Error: standard output can't be written ({reason.strerror}); the files that the command wrote are complete."
            )
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _tell(
            f"Error: {error.filename or 'a file'}: can't be written ({error.strerror}); free some space and run it again."
        )
        return 1


def main() -> None:
    """The program."""
    if sys.argv[1:2] == ["finetune"]:
        # Threads that wait for others sleep instead of spinning on a core that another program could use. Not where
        # captions are decoded, in thousands of short steps, each of which would wait for them to wake (docs/finetuning.md).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    ending.watch()
    try:
        code = _code()
    except Exception:  # after a signal most likely its doing
        stopped = ending.code(0)
        _tell("Stopped; run the same command again to go on." if stopped else traceback.format_exc() + OUR_FAULT)
        code = 1
    ending.over()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # Python would try again at its end, and say so
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or 1
    sys.exit(ending.code(code))
