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
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Annotated, Any

import typer
from typer import completion

from toolkit import __version__
from toolkit import options as o
from toolkit.arguments import config
from toolkit.arguments.origins import Origin, blamed, options_text, options_values, origins
from toolkit.arguments.parser import CLICK_ERROR, COMMON, PRINT_OPTIONS, Group, Parsers, flag, make, variables
from toolkit.errors import SaidElsewhere, ToolkitError, UnusedOption
from toolkit.options.batch_caption import API_KEY
from toolkit.options.fields import flat, from_flat
from toolkit.records import Summary
from toolkit.runtime import ending, progress
from toolkit.runtime.variables import STORES_GB

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
    "push": (o.PushOptions, "Put a model, a cache or a file of captions on the Hugging Face hub, with a card."),
    "review": (o.ReviewOptions, "Open a page on which a person corrects captions, the weakest first."),
    "export": (o.ExportOptions, "Write a captioner for other runtimes: ONNX, for transformers.js and optimum."),
    "sample": (o.SampleOptions, "Draw a small captioned data set to try things with."),
    "demo": (o.DemoOptions, "Run every step on a small drawn sample: preprocess, finetune, batch-caption, evaluate."),
}


# ---- the parser -----------------------------------------------------------------------------------------------------


def _warn_of_unknown_variables() -> None:
    names = {name: [option.name for option in (*flat(kind), *COMMON)] for name, (kind, _) in COMMANDS.items()}
    known = {
        variable for command, options in names.items() for name in options for variable in variables(command, name)
    }
    known |= {STORES_GB, API_KEY}
    for variable in sorted(os.environ):
        if variable.startswith("TOOLKIT_") and variable not in known:
            near = difflib.get_close_matches(variable, known, 1, 0.7)  # all begin with the same word
            progress.say(f"{variable}: no option reads this variable" + (f"; did you mean {near[0]}?" if near else "."))


def _read_config(ctx: typer.Context, named: str | None) -> None:
    """Makes the values of a config file the defaults of the options that follow; called before these are looked at."""
    if ctx.resilient_parsing or (place := config.find(named)) is None:
        return
    classes = {name: kind for name, (kind, _) in COMMANDS.items()}
    read = config.read(*place, ctx.info_name or "", classes, COMMON)
    ctx.default_map, ctx.meta[config.NAME] = dict(read.values), read


def _parameters() -> list[inspect.Parameter]:
    """What every command has besides options."""
    reading = typer.Option(
        "--config", metavar="FILE", callback=_read_config, is_eager=True, show_default=False,
        help="Defaults of options: a TOML or YAML file, or none to read no file. [default: toolkit.toml, if it is there]",
    )  # fmt: skip
    printing = typer.Option(
        PRINT_OPTIONS,
        help="Print the value of each option and where it is from, and do nothing else.",
        show_default=False,
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter("config", keyword, annotation=Annotated[str | None, reading], default=None),
        inspect.Parameter("print_options", keyword, annotation=Annotated[bool, printing], default=False),
    ]


def _call(ctx: Any, command: str, given: dict[str, Any]) -> Call:
    read = ctx.meta.get(config.NAME)
    where = {name: origin for name, origin in origins(ctx, read).items() if name in given}
    if read is not None:
        options = [*flat(COMMANDS[command][0]), *COMMON]
        config.check_unasked(read, [o for o in options if where[o.name].source == "config file"])
    del given["config"]
    printing, as_json, quiet = given.pop("print_options"), given.pop("json"), given.pop("quiet")
    return Call(command, given, where, as_json, quiet, printing, read)


class Toolkit(Group):
    """The command line of this program."""

    parsers = Parsers(
        {name: help for name, (_, help) in COMMANDS.items()},
        lambda name: make(name, *COMMANDS[name], _call, _parameters()),
    )


# Not `add_completion`: its two options have None for a default, and typer imports pydantic to see that this is no bool.
completion.completion_init()
app = typer.Typer(
    cls=Toolkit, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"toolkit {__version__}")
        raise typer.Exit


def _install(ctx: typer.Context, param: typer.CallbackParam, wanted: bool) -> None:
    if wanted:
        completion.install_callback(ctx, param, wanted)


def _show(ctx: typer.Context, param: typer.CallbackParam, wanted: bool) -> None:
    if wanted:
        completion.show_callback(ctx, param, wanted)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_install,
            is_eager=True,
            help="Let this shell complete commands, options and values.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion", callback=_show, is_eager=True, help="Print what --install-completion would install."
        ),
    ] = False,
) -> None:
    """From a folder of captioned images to a fine-tuned captioner, and captions for the rest of your folders."""


# ---- running --------------------------------------------------------------------------------------------------------

OUR_FAULT = "Error: this is a bug in toolkit, not a mistake of yours; please report it with the lines above."


@dataclass(frozen=True)
class Call:
    """A command as it was typed."""

    command: str
    given: dict[str, Any]
    origins: dict[str, Origin]
    json: bool
    quiet: bool
    print_options: bool
    config: config.Config | None

    def run(self) -> int:
        """Carries it out and prints its summary; the exit code."""
        progress.quiet = self.quiet
        _warn_of_unknown_variables()
        if self.config is not None and self.config.found and os.environ.get("RANK", "0") == "0":
            set_here = ", ".join(f"{flag(name)}" for name in self.config.values) or "nothing"
            progress.say(f"{self.config.path}: found here, and sets {set_here}")
        summary = self._summary()
        if not summary.said_elsewhere:
            self.show(summary)
        return int(summary.exit_code)

    def _summary(self) -> Summary:
        module, options = self.command.replace("-", "_"), None
        try:
            options = from_flat(
                COMMANDS[self.command][0], self.given
            )  # before the import: a wrong value answers at once
            if self.print_options:
                return Summary(options_text(self.command, options, self.origins), options_values(options, self.origins))
            return getattr(import_module(f"toolkit.commands.{module}"), module)(options)
        except SaidElsewhere:
            raise
        except ToolkitError as error:
            name = getattr(error, "name", None)
            if isinstance(error, UnusedOption) and name in self.given and self.origins[name].name:
                # A variable or file sets a default for many runs, and this one has no use for it.
                rest = {other: value for other, value in self.given.items() if other != name}
                return replace(self, given=rest, origins={**self.origins, name: Origin("default")})._summary()
            raise type(error)(blamed(str(error), options, self.origins)) from None

    def show(self, summary: Summary) -> None:
        try:
            if self.json:
                # Half a character, from a name that is no UTF-8, is valid in JSON only as its escape.
                text = json.dumps(summary.values, ensure_ascii=not _takes_unicode())
                print(re.sub("[\ud800-\udfff]", lambda half: ascii(half[0])[1:-1], text))
            elif (self.print_options or not self.quiet) and summary.text:
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
            error.param_hint = origins(error.ctx, None)[error.param.name].name or error.param_hint
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
