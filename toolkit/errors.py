"""The one tree of errors that a user can do something about.

A message is one sentence: which file or option, what is wrong, what to do. The command line prints it and exits
with 1; a Python caller catches `ToolkitError`. Anything else that is raised is a bug of ours.
"""

import os
import sysconfig

PROGRAMMING = (TypeError, AttributeError, NameError, AssertionError, NotImplementedError)


def is_bug(error: BaseException) -> bool:
    """Whether it is a mistake of our own code, not of a library that met a file it can't read."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = os.path.realpath(trace.tb_frame.f_code.co_filename) if trace is not None else ""
    libraries = [os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib")]
    ours = os.path.dirname(os.path.realpath(__file__)) + os.sep
    return isinstance(error, PROGRAMMING) and (file.startswith(ours) or not file.startswith(tuple(libraries)))


class ToolkitError(Exception):
    """A mistake that the user can correct, or a run that could not go on."""


class InputError(ToolkitError):
    """An input file, folder or option is not what it has to be."""


class UnusedOption(InputError):
    """An option that would have no effect: a mistake if it was typed, but not if it is a default of the user's
    environment. `name` is that of its field."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class OutputError(ToolkitError):
    """An output can't be written, or would replace something of the user's."""


class ModelError(ToolkitError):
    """An encoder, decoder, tokenizer or captioner could not be loaded or does not fit."""


class RunError(ToolkitError):
    """A run stopped half way: a dead worker, a full disk, a failed check. The message says how to go on."""


class SaidElsewhere(ToolkitError):
    """Another process of the same run says what is wrong (toolkit/training/distributed.py); this one ends without a word."""


class ImageError(ToolkitError):
    """One image can't be read. Never fatal: it becomes a row with this reason."""
