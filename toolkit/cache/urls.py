"""Options that are URLs: local files and folders stand for them, messages speak of them."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from toolkit.cache.schema import MANIFEST
from toolkit.cache.uploads import Outbox, local_cache
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.errors import InputError, OutputError, ToolkitError
from toolkit.options import BatchCaptionOptions
from toolkit.records import Summary
from toolkit.runtime import progress
from toolkit.runtime.remote import local_tree, open_store, store_errors, url_of

T = TypeVar("T")


@contextmanager
def urls_in_messages(names: dict[Path, str]) -> Iterator[None]:
    """Errors and messages name URLs, not the local copies of what is there."""
    before, progress.rewrite = progress.rewrite, lambda text: with_urls(text, names)
    try:
        yield
    except ToolkitError as error:
        raise type(error)(with_urls(str(error), names)) from None
    finally:
        progress.rewrite = before


def with_urls(text: str, names: dict[Path, str]) -> str:
    for path in sorted(names, key=lambda path: -len(str(path))):
        text = text.replace(str(path), names[path])
    return text


def summary_with_urls(summary: Summary, names: dict[Path, str]) -> Summary:
    values = {k: with_urls(v, names) if isinstance(v, str) else v for k, v in summary.values.items()}
    return replace(summary, text=with_urls(summary.text, names), values=values)


def with_local_inputs(options: T, fetchers: dict[str, Callable[[str], Path]]) -> tuple[T, dict[Path, str]]:
    """Options whose inputs at URLs are local files and folders, and which URL each of them stands for.

    Args:
        fetchers: the options that may be URLs, each with what makes a local path of one.
    """
    names: dict[Path, str] = {}
    changed: dict[str, Any] = {}
    for option, fetcher in fetchers.items():
        url = url_of(getattr(options, option)) if getattr(options, option) is not None else None
        if url is not None:
            path = fetcher(url)
            names[path] = url
            changed[option] = type(getattr(options, option))(path)
    return (replace(options, **changed) if changed else options), names  # type: ignore[type-var]


def local_only(options: Any, *names: str) -> None:
    """
    Raises:
        OutputError: one of these options is a URL, where a folder of that name would be made here.
    """
    for name in names:
        given = getattr(options, name)
        url = url_of(given) if given is not None else None
        if url is not None:
            raise OutputError(
                f"--{name.replace('_', '-')} {url}: must be local; name a path here, and copy it there afterwards."
            )


def local_annotations(url: str) -> Path:
    """Annotations at a URL: images are placeholders, the rest is copied."""
    return local_tree(url, IMAGE_SUFFIXES)


def local_model(url: str) -> Path:
    """A model folder at a URL, copied, but for what a run would go on from."""
    return local_tree(url, frozenset(), without="checkpoints")


def local_source(url: str) -> Path:
    """A cache, or else annotations."""
    with store_errors(url):
        fs, path = open_store(url)
        is_cache = fs.exists(f"{path}/{MANIFEST}")
    return local_cache(url) if is_cache else local_annotations(url)


def local_paths(paths: Sequence[str]) -> tuple[tuple[str, ...], dict[Path, str]]:
    """Images, folders and globs, those at URLs as local ones, and which URL each of them stands for."""
    names: dict[Path, str] = {}
    local = []
    for given in paths:
        url = url_of(given)
        if url is None:
            local.append(given)
            continue
        parts = url.split("/")
        fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        top = "/".join(parts[:fixed])
        tree = local_tree(top)
        names[tree] = top
        local.append("/".join([str(tree), *parts[fixed:]]))
    return tuple(local), names


def caption_at_urls(options: BatchCaptionOptions, run: Callable[[BatchCaptionOptions, bool], Summary]) -> Summary:
    """`run`, batch-caption's own, on images and a model at URLs, or with an output at one.

    `run` gets the options, and whether its output stands for one that lies among the images.
    """
    local_only(options, "gallery")
    options, names = with_local_inputs(options, {"model": local_model})
    url = url_of(options.output) if options.output is not None else None
    folders = [url_of(path) for path in options.paths]
    among = options.format in ("txt", "imagefolder") and options.output is None and any(folders)
    if among or (url and options.format == "imagefolder"):
        folder = folders[0] if len(folders) == 1 else None
        url = url or folder
        if folder is None or (options.format == "imagefolder" and url not in (folder, f"{folder}/metadata.jsonl")):
            raise InputError(
                f"--format {options.format}: writes among the images of one folder; give one, without --output, or choose "
                "another format."
            )
        if options.format == "imagefolder":
            url, among = f"{folder}/metadata.jsonl", True
    paths, trees = local_paths(options.paths)
    names |= trees
    options = replace(options, paths=paths)
    with urls_in_messages(names):
        if url is None:
            return summary_with_urls(run(options, False), names)
        with Outbox(url) as outbox:
            names[outbox.file] = url
            sidecars = options.format == "txt"
            (outbox.prepare_sidecars if sidecars else outbox.prepare_file)()
            summary = run(replace(options, output=outbox.file), among)
            (outbox.put_sidecars if sidecars else outbox.put_file)()
            return summary_with_urls(summary, names)
