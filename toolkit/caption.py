"""`toolkit caption`: one look at what a model says of a picture or a few. Writes no file."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from toolkit.captioners import load_captioner
from toolkit.options import CaptionOptions
from toolkit.progress import printable
from toolkit.records import Summary
from toolkit.urls import local_model, localized, named


def caption(options: CaptionOptions) -> Summary:
    """The captions as text, a line each, with the name in front where there are several pictures.

    Raises:
        ModelError: `--model` is no captioner.
    """
    options, names = localized(options, {"model": local_model})
    with named(names):
        captioner = load_captioner(options.model, options.device, options.precision)
    results = captioner.caption([_source(given) for given in options.images], options.generation)
    lines, rows = [], []
    for given, found in zip(options.images, results, strict=True):
        rows.append({**found.to_row(), "image": given})
        if found.error is not None:
            hint = "; `toolkit batch-caption` takes folders" if os.path.isdir(given) else ""
            print(f"{printable(given)}: {found.error}{hint}.", file=sys.stderr)
        front = f"{printable(given)}: " if len(options.images) > 1 else ""
        lines += [front + printable(text) for text in found.captions]
    bad = sum(found.error is not None for found in results)
    return Summary("\n".join(lines), {"images": rows, "errors": bad}, exit_code=3 if bad else 0)


def _source(given: str) -> Path | bytes:
    """`-` is standard input; a pipe, such as the shell's <(...), is read to its end, once."""
    if given == "-":
        return sys.stdin.buffer.read()
    path = Path(given)
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            return path.read_bytes()
    except (OSError, ValueError):  # the reason is read_image's to tell
        pass
    return path
