"""`toolkit push`: a model, a cache or a file of captions to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import asdict

from toolkit.cache.uploads import fetch_source
from toolkit.options import PushOptions
from toolkit.records import Summary
from toolkit.reports.hub_push import contents_of
from toolkit.runtime.copies import with_copies
from toolkit.runtime.hub_repo import claim_repo
from toolkit.runtime.progress import say


def push(options: PushOptions) -> Summary:
    """Puts it there; what has arrived already is not sent again.

    Raises:
        InputError: `path` is none of these, or not whole.
        OutputError: the name, the token or the repository can't be used, or the connection broke.
    """
    options = with_copies(options, path=fetch_source)
    contents = contents_of(options.path, options.hub)
    repo = claim_repo("", options.name, contents.kind, options.hub.private, contents.card(options.name, options.hub))
    if contents.note and not options.hub.private:
        say(f"note: {contents.note}")
    pushed = contents.push(repo, options.overwrite)
    what = f"{pushed.sent} of {pushed.files} files sent" if pushed.sent else "all of it is there already, nothing to do"
    return Summary(
        f"{options.path}: {what}\n  {pushed.url}", {"path": str(options.path), "kind": contents.kind, **asdict(pushed)}
    )
