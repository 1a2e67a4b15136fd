"""`toolkit inspect`: what is in a cache, raw annotations, a model or a run. Writes nothing but `--sheet`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.cache.labels import CaptionEncoder
from toolkit.cache.schema import MANIFEST, open_cache
from toolkit.cache.uploads import fetch_source
from toolkit.data.annotations import AnnotationSet, Columns, images_beside, read_annotations
from toolkit.data.sources import fetch_images
from toolkit.errors import InputError, ModelError, is_bug
from toolkit.options import InspectOptions
from toolkit.options.fields import check_unused
from toolkit.options.preprocess import DEFAULT_DECODER
from toolkit.records import Summary
from toolkit.reports.facts.annotated import annotation_facts
from toolkit.reports.facts.caches import cache_facts
from toolkit.reports.facts.models import RUN_LOG, model_facts, run_facts
from toolkit.reports.facts.stats import Sheet, bytes_below
from toolkit.reports.facts.words import describe, table, title
from toolkit.reports.html import write_page
from toolkit.runtime.copies import with_copies
from toolkit.runtime.files import beside
from toolkit.runtime.hub import why_not
from toolkit.runtime.overwrite import Output, is_page
from toolkit.runtime.progress import printable
from toolkit.runtime.remote import local_only


def inspect(options: InspectOptions) -> Summary:
    """Reports what is in `options.path`.

    Returns:
        Exit code 3 if images of raw annotations are unreadable or rows unusable.

    Raises:
        InputError: it is none of these, or damaged.
        ModelError: `--decoder` has no tokenizer.
        OutputError: `--sheet` can't be written, or would replace a file that the toolkit did not write.
    """
    local_only(options, "sheet")
    inputs, sheet = (options.path, options.images, options.decoder), None
    if options.sheet is not None:
        sheet = Output("--sheet", options.sheet, inputs, options.overwrite, is_page("inspect"))
    return _inspect(with_copies(options, path=fetch_source, images=fetch_images), sheet)


def _inspect(options: InspectOptions, page: Output | None) -> Summary:
    path = options.path
    living = beside(path.absolute(), ".partial")  # where a run is until its model is complete
    if not (path / MANIFEST).is_file() and not _has_run(path) and _has_run(living):
        options = replace(options, path=living)
        path = living
    annotated = options.format != "auto" or not path.is_dir()
    if options.precision is not None and not (path / "config.json").is_file():
        raise InputError(
            f"--precision {options.precision}: only applies to a model, which {path} is not; leave it out."
        )
    if not annotated and (path / MANIFEST).is_file():
        Columns.of(options).refuse(f"{path} is a cache, whose columns are known")
        check_unused(
            options, ("images", "num_workers"), f"only applies to annotations, but {path} is a cache; leave it out"
        )
        cache = open_cache(path)
        values, sheet = cache_facts(options, cache, _tokenizer(options.decoder) if options.decoder else None)
        return _summary(page, values, sheet)
    model, run = (path / "config.json").is_file(), _has_run(path)
    if annotated or not (model or run):
        values, sheet = annotation_facts(options, _annotations(options), _tokenizer(options.decoder))
        lost = values["rejected"]["count"] or values["unusable_rows"]["count"]
        return _summary(page, values, sheet, exit_code=3 if lost else 0)
    kind = "model" if model else "run"
    Columns.of(options).refuse(f"only applies to images with captions, but {path} is a {kind}")
    names: tuple[str, ...] = ("sheet", "split", "decoder", "near_duplicates", "num_workers")
    names += () if options.precision is not None else ("images",)
    check_unused(options, names, f"only applies to images with captions, but {path} is a {kind}; leave it out")
    values = {"kind": kind, "path": f"{path}", **(model_facts(path) if model else {})}
    if options.precision is not None:
        from toolkit.reports.facts.precisions import precision_facts  # imports torch

        values["precision"] = precision_facts(path, options.precision, options.images)
    values |= {"run": run_facts(path) if run else None, "bytes": bytes_below(path)}
    return _summary(None, values, None)


def _has_run(folder: Path) -> bool:
    return (folder / RUN_LOG).is_file()


def _summary(page: Output | None, values: dict[str, Any], sheet: Sheet | None, exit_code: int = 0) -> Summary:
    text = describe(values)
    if page is not None:
        shown: dict[str, Any] = {"title": title(values), "rows": table(values), "sheet": sheet}
        shown |= {"for_model": values["kind"] == "cache", "counted": values["captions"]["tokens"] is not None}
        write_page(page, "inspect", **shown)
        values["sheet"] = str(page.path)
        text += "\n" + printable(f"  {page.path}: sample sheet")
    return Summary(text, values, exit_code)


def _annotations(options: InspectOptions) -> AnnotationSet:
    path, images = options.path, images_beside(options.path, options.images)
    try:
        return read_annotations(path, images, options.format, columns=Columns.of(options))
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        if not path.exists() and options.format == "auto":
            reason = "no such file or folder (relative to the current directory); name a cache, annotations, a model or a run."
        elif path.is_dir() and options.format == "auto":
            reason = f"neither a cache, a model nor a run (no {MANIFEST}, config.json or {RUN_LOG}); as annotations: {reason}"
        elif reason == str(error):  # about something else, such as --format
            raise
        raise InputError(f"{path}: {reason}") from None


def _tokenizer(decoder: str | None) -> CaptionEncoder | None:
    """The tokenizer that counts tokens; None without --decoder if the default one is not on this machine."""
    file = _tokenizer_file(decoder)
    try:
        return CaptionEncoder(file, 0, 0) if file else None  # used for lengths only
    except Exception as error:  # the tokenizers library raises nothing more precise
        if is_bug(error):
            raise
        raise ModelError(f"--decoder {decoder or DEFAULT_DECODER}: {file} can't be read ({error}).") from None


def _tokenizer_file(decoder: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    if decoder is None:
        found = try_to_load_from_cache(DEFAULT_DECODER, "tokenizer.json")
        return Path(found) if isinstance(found, str) else None
    if Path(decoder).is_dir():  # of a decoder, a captioner or a cache
        for file in (Path(decoder, "tokenizer.json"), Path(decoder, "tokenizer", "tokenizer.json")):
            if file.is_file():
                return file
        raise ModelError(f"--decoder {decoder}: has no fast tokenizer (tokenizer.json); name another folder.")
    try:
        return Path(hf_hub_download(decoder, "tokenizer.json", etag_timeout=5))
    except RemoteEntryNotFoundError:
        raise ModelError(
            f"--decoder {decoder}: has no fast tokenizer (tokenizer.json); name another decoder."
        ) from None
    except (OSError, HFValidationError) as error:  # the hub raises OSErrors, also without a network
        reason = why_not(decoder, error, "name a local folder, or leave the option out")
        raise ModelError(f"--decoder {decoder}: its tokenizer.json could not be loaded: {reason}.") from None
