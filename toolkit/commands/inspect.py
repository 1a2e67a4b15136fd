"""`toolkit inspect`: what is in a cache, raw annotations, a model or runs. Writes nothing but `--sheet` and `--page`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
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
from toolkit.reports.facts.runs import compare_runs, describe_runs
from toolkit.reports.facts.stats import Sheet, bytes_below
from toolkit.reports.facts.words import describe, table, title
from toolkit.reports.html import write_page
from toolkit.reports.runs_page import write_runs_page
from toolkit.runtime.copies import with_copies
from toolkit.runtime.files import beside
from toolkit.runtime.hub import why_not
from toolkit.runtime.overwrite import Output, is_page, same_place
from toolkit.runtime.progress import printable
from toolkit.runtime.remote import local_only

COMPARING = ("path", "more_runs", "page", "overwrite")  # options of a comparison of runs


def inspect(options: InspectOptions) -> Summary:
    """Reports what is in `options.path`.

    Returns:
        Exit code 3 if images of raw annotations are unreadable or rows unusable.

    Raises:
        InputError: it is none of these, or damaged.
        ModelError: `--decoder` has no tokenizer.
        OutputError: `--sheet` or `--page` can't be written, or would replace a file that the toolkit did not write.
    """
    local_only(options, "sheet", "page")
    inputs: tuple[Path | str | None, ...] = (options.path, *options.more_runs, options.images, options.decoder)
    sheet = page = None
    if options.sheet is not None:
        sheet = Output("--sheet", options.sheet, inputs, options.overwrite, is_page("inspect"))
    if options.page is not None:
        page = Output("--page", options.page, inputs, options.overwrite, is_page("runs"))
    options = with_copies(options, path=fetch_source, more_runs=fetch_source, images=fetch_images)
    if options.more_runs:
        return _compared(options, page)
    folders = [] if page is None else _runs(options)
    found = _inspect(options, sheet)
    return found if page is None else _with_page(found, page, folders)


def _compared(options: InspectOptions, page: Output | None) -> Summary:
    """Several runs side by side."""
    why = "only applies to one thing that is looked at, but several runs are given; leave it out"
    check_unused(options, tuple(f.name for f in fields(options) if f.name not in COMPARING), why)
    folders = _runs(options)
    values = compare_runs(folders, [options.path, *map(Path, options.more_runs)])
    found = Summary(describe_runs(values), values)
    return found if page is None else _with_page(found, page, folders, values)


def _runs(options: InspectOptions) -> list[Path]:
    """The folders that hold the logs of the runs that are given."""
    given = [options.path, *map(Path, options.more_runs)]
    for number, path in enumerate(given):
        if not _has_run(_living(path)):
            raise InputError(f"{path}: is no run (it has no {RUN_LOG}); name folders that finetune wrote.")
        if any(same_place(path, other) for other in given[:number]):
            raise InputError(f"{path}: is given twice; give each run once.")
    return [_living(path) for path in given]


def _with_page(found: Summary, page: Output, folders: Sequence[Path], values: dict[str, Any] | None = None) -> Summary:
    write_runs_page(page, folders, values or compare_runs(folders, [Path(found.values["path"])]))
    text = f"{found.text}\n" + printable(f"  {page.path}: the curves as a page")
    return replace(found, text=text, values={**found.values, "page": str(page.path)})


def _living(path: Path) -> Path:
    """Where a run is: beside its place until its model is complete."""
    partial = beside(path.absolute(), ".partial")
    return partial if not (path / MANIFEST).is_file() and not _has_run(path) and _has_run(partial) else path


def _inspect(options: InspectOptions, page: Output | None) -> Summary:
    options = replace(options, path=_living(options.path))
    path = options.path
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
