"""`toolkit review`: a page on which a person corrects captions, the weakest first; and those captions as a file.

listing (what, in which order) -> server on the loopback interface -> one row an action in <captions>.review
captions + <captions>.review -> --export
"""

from __future__ import annotations

import socket
import webbrowser
from collections import Counter
from contextlib import closing
from typing import Any

from toolkit.cache.schema import open_cache
from toolkit.captioning.places import find_folders
from toolkit.data.reviews import Review, review_of
from toolkit.data.sources import fetch_images
from toolkit.errors import InputError
from toolkit.options import ReviewOptions
from toolkit.options.fields import check_unused
from toolkit.records import Summary
from toolkit.reviewing.export import ReviewExport, exported
from toolkit.reviewing.heat import Heat
from toolkit.reviewing.listing import Listing, is_cache, list_cache, list_captions, read_items
from toolkit.runtime.copies import fetch_model, with_copies
from toolkit.runtime.progress import say
from toolkit.runtime.remote import local_only


def review(options: ReviewOptions) -> Summary:
    """Serves the page until it is stopped (Ctrl-C), or writes `--export`.

    Raises:
        InputError: no captions there, or their images are not found.
        ModelError: `--model` is no captioner, or needs other pixels than the cache has.
        OutputError: the review, or `--export`, can't be written, or a file of that name is somebody else's.
    """
    local_only(options, "path", "export")
    options = with_copies(options, images=fetch_images, model=fetch_model)
    cached = is_cache(options.path)
    if cached:
        why = f"only applies to a file of captions, but {options.path} is a cache; leave it out"
        check_unused(options, ("images", "references", "gallery"), why)
    else:
        why = f"only applies to a cache, which {options.path} is not; leave it out"
        check_unused(options, ("model",) if options.references else ("model", "split"), why)
        if options.path.is_dir():
            raise InputError(f"{options.path}: a folder that is no cache; name a file of captions, or a cache.")
    if options.export is not None:
        return _export(options, cached)
    return _serve(options, _list(options, cached))


def _list(options: ReviewOptions, cached: bool) -> Listing:
    if not cached:
        return list_captions(options)
    return list_cache(options, None if options.model is None else _scores(options))


def _scores(options: ReviewOptions) -> list[list[float]]:
    """The mean log-probability of each caption of the split."""
    from toolkit.captioning.captioner import load_captioner
    from toolkit.captioning.likelihood import split_log_probs

    captioner = load_captioner(str(options.model), options.device)
    return split_log_probs(captioner, str(options.model), open_cache(options.path), options.split or "train")


# ---- the file -----------------------------------------------------------------------------------------------------------


def _export(options: ReviewOptions, cached: bool) -> Summary:
    """Without looking for images, unless the format needs them."""
    images = None
    if cached:
        items = list_cache(options, None).items
    else:
        items = read_items(options.path)
        images = find_folders(options.path, [item.id for item in items], options.images) if options.images else None
    export = ReviewExport(options, images or [(options.path.parent, item.id) for item in items])
    kept = Review(review_of(options.path))
    results = exported(items, kept.standing())
    export.write(results)
    persons = sum(result.source == "person" for result in results)
    rejected = sum(bool(result.rejected) for result in results)
    values = {"export": f"{export.path}", "format": export.format, "images": len(results), "person": persons}
    text = (
        f"{export.path}: {len(results)} images, of which {persons} have a person's caption and {rejected} are rejected."
    )
    return Summary(text, {**values, "rejected": rejected, "review": f"{kept.path}"})


# ---- the page -------------------------------------------------------------------------------------------------------


def _serve(options: ReviewOptions, listing: Listing) -> Summary:
    import uvicorn

    from toolkit.reviewing.near import in_background
    from toolkit.reviewing.server import Desk, is_loopback

    kept = Review(review_of(options.path))
    heat = Heat(options.gallery, {item.id: item.picture for item in listing.items})
    desk = Desk(listing, kept, heat, workers=options.num_workers)
    with closing(_listen(options)) as listener:
        port = listener.getsockname()[1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{port}/{desk.token}/"
        if not is_loopback(options.host):
            say(
                f"--host {options.host}: other machines can reach the page; whoever has its address can change captions"
            )
        if kept.unreadable:
            say(f"{kept.path}: {kept.unreadable} lines are no actions and are passed over")
        say(
            f"{listing.title}: {len(listing.items):,} captions, {_counted(listing, kept)}; actions are kept in {kept.path}"
        )
        say(f"review at {address}  (Ctrl-C ends it)")
        if options.open:
            webbrowser.open(address)
        config = uvicorn.Config(
            desk.app(options.host),
            log_level="error",
            access_log=False,  # addresses hold the token
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        stop = in_background(listing.pictures, options.distance, options.num_workers, desk.found)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            stop.set()
            kept.refresh()
            say(f"{kept.path}: {_counted(listing, kept)}")
    return _summary(listing, kept)


def _listen(options: ReviewOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise InputError(
            f"--host {options.host} --port {options.port}: can't be listened on ({reason}); name another one."
        ) from None
    return listener


def _counts(listing: Listing, kept: Review) -> dict[str, int]:
    ours = {item.key for item in listing.items}
    found = Counter(action.action for key, action in kept.standing().items() if key in ours)
    return {"accepted": found["accept"], "edited": found["edit"], "rejected": found["reject"]}


def _counted(listing: Listing, kept: Review) -> str:
    return ", ".join(f"{count} {name}" for name, count in _counts(listing, kept).items())


def _summary(listing: Listing, kept: Review) -> Summary:
    values: dict[str, Any] = {"review": f"{kept.path}", "captions": len(listing.items), **_counts(listing, kept)}
    return Summary(f"{kept.path}: {_counted(listing, kept)} of {len(listing.items)} captions", values)
