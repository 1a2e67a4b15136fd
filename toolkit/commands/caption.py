"""`toolkit caption`: one look at what a model says of a picture or a few. Writes no file."""

from __future__ import annotations

import os
import select
import stat
import sys
from contextlib import suppress
from pathlib import Path

from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.settings import with_words
from toolkit.data.images import LARGEST_FILE, read_up_to
from toolkit.options import CaptionOptions
from toolkit.records import Summary
from toolkit.runtime.copies import fetch_model, with_copies
from toolkit.runtime.progress import printable, say

PATIENCE = 1.0  # seconds


def caption(options: CaptionOptions) -> Summary:
    """The captions as text, a line each, with the name in front where there are several pictures.

    Raises:
        ModelError: `--model` is no captioner.
    """
    options = with_copies(options, model=fetch_model)
    captioner = load_captioner(options.model, options.device, options.precision)
    generation = with_words(options.generation)
    settings = captioner.settings(generation)
    say(settings.sentence())
    images = [_source(given) for given in options.images]
    results = captioner.caption(images, generation, prompting=options.prompting)
    lines, rows = [], []
    for given, found in zip(options.images, results, strict=True):
        rows.append({**found.to_row(), "image": given})
        if found.error is not None:
            hint = "; `toolkit batch-caption` takes folders" if os.path.isdir(given) else ""
            print(f"{printable(given)}: {found.error}{hint}.", file=sys.stderr)
        front = f"{printable(given)}: " if len(options.images) > 1 else ""
        lines += [front + printable(text) for text in found.captions]
    bad = sum(found.error is not None for found in results)
    values = {"images": rows, "errors": bad, "settings": settings.to_json()}
    return Summary("\n".join(lines), values, exit_code=3 if bad else 0)


def _source(given: str) -> Path | bytes:
    """`-` is standard input; a pipe, such as the shell's <(...), is read to its end, once."""
    if given == "-":
        return read_up_to(sys.stdin.fileno(), LARGEST_FILE)
    path, data = Path(given), None
    with suppress(OSError, ValueError):  # the reason is read_image's to tell
        data = _through_pipe(path) if stat.S_ISFIFO(os.stat(path).st_mode) else None
    return path if data is None else data


def _through_pipe(path: Path) -> bytes | None:
    """What comes through a pipe; None where nobody has it open to write, nor opens it within `PATIENCE`.

    Who has it open may take as long as it likes: a download, say.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        start = b""
        if not poll.poll(PATIENCE * 1000):
            try:
                start = os.read(descriptor, 1)
                if not start:
                    return None
            except BlockingIOError:  # it is open, with nothing in it as yet
                pass
        os.set_blocking(descriptor, True)
        return start + read_up_to(descriptor, LARGEST_FILE)
    finally:
        os.close(descriptor)
