"""`toolkit batch-caption`: a caption for every image below some folders, as rows of a file.

    find -> read and resize (threads) -> batch -> caption -> journal -> export, rename

The journal lies beside the output as `<output>.state` and stays there: a rerun captions only what it has not got. Rows
go from it to the output in the images' sorted order, one at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from toolkit import __version__
from toolkit.attention import Attention
from toolkit.caption_pieces import caption_in_pieces, gather
from toolkit.captioners import load_captioner
from toolkit.decoding import generate_captions
from toolkit.errors import ImageError, InputError, OutputError, RunError
from toolkit.files import beside, file_state, lock_file
from toolkit.gallery import gallery_output, write_caption_gallery
from toolkit.hashing import Hasher
from toolkit.images import NO_HEIC, NOT_THE_IMAGES_FAULT, FoundImage, find_images, read_file, read_image
from toolkit.journal import Journal
from toolkit.modeling import Captioner, silence_transformers
from toolkit.options import BatchCaptionOptions, to_json
from toolkit.outputs import Output
from toolkit.progress import Progress, say
from toolkit.records import CaptionResult, Summary
from toolkit.urls import caption_at_urls
from toolkit.writers import WRITERS, Row, format_of, replace_if_other, sidecar_names, write_sidecars


class Loaded(NamedTuple):
    found: FoundImage
    pixels: np.ndarray | None  # uint8 (C, H, W), None where the image can't be read
    size: tuple[int, int] | None
    error: str | None
    stat: tuple[int, int]  # bytes, mtime_ns
    content: str | None  # hash; None where the file can't be opened
    kept: bool = False  # its bytes have their row already, under another name or time


SUFFIX_OF = {"coco": "json"}


def batch_caption(options: BatchCaptionOptions) -> Summary:
    """Captions what has no caption yet.

    Raises:
        InputError: a path that does not exist or holds no image.
        ModelError: `--model` is no captioner.
        OutputError: the output can't be written, or is somebody else's.
        RunError: stopped half way; the same command goes on.
    """
    return caption_at_urls(options, _batch_caption)


def _batch_caption(options: BatchCaptionOptions, among_images: bool) -> Summary:
    format = format_of(options.format, options.output)
    output = _place(options, format)
    images = find_images(options.paths, options.recursive)
    _check_names(images)
    _check_output(output, options, format, [] if among_images else images)
    page = None
    if options.gallery is not None:
        inputs = [output, Path(options.model), *(image.path for image in images)]
        page = gallery_output(options.gallery, inputs, options.overwrite, len(images))
    silence_transformers()
    captioner = load_captioner(options.model, options.device, options.precision)
    attention = Attention(captioner, f"--model {options.model}") if options.attention else None
    with _held(output):
        journal = Journal(beside(output, ".state"), _maker(options, captioner), options.existing == "overwrite")
        try:
            return _run(options, format, output, images, captioner, attention, journal, page)
        except KeyboardInterrupt:
            raise RunError("stopped; run the same command again to go on from the rows that stand.") from None
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"--output {output}: can't be written ({reason}); name another file.") from None
        finally:
            journal.close()


def _run(
    options: BatchCaptionOptions, format: str, output: Path, images: Sequence[FoundImage], captioner: Captioner,
    attention: Attention | None, journal: Journal, page: Output | None,
) -> Summary:  # fmt: skip
    names = sidecar_names([image.name for image in images]) if format == "txt" else [output.name]
    root = output if format == "txt" else output.parent
    _check_ours(root, names, journal, options)
    if any(name == image.name + ".txt" for name, image in zip(names, images, strict=False)):
        say("images that differ only in their ending keep it: a.jpg.txt, a.png.txt")
    pieces = beside(output, ".pieces")
    gather(pieces, journal)  # what a stopped run has finished there
    todo = [image for image in images if _known(image, journal) is None]
    if len(todo) < len(images):
        say(f"{output}: {len(images) - len(todo)} of {len(images)} images have their row already")
    lost: dict[str, str] = {}  # could not even be opened: no content to know them by, so tried again each time
    new = 0
    if options.engine != "local" and todo:
        new, lost = caption_in_pieces(options, todo, journal, pieces, _caption, _maker)
        todo = []
    with Progress("caption", len(todo)) as progress:
        for batch in _caption(captioner, todo, options, journal):
            lost.update((done.found.name, row["error"]) for done, row in batch if done.content is None)
            journal.add((done.found.name, done.stat, done.content, row) for done, row in batch if done.content)
            new += sum(not done.kept for done, _ in batch)
            progress.update(len(batch))
    count = {"errors": 0, "weak": 0}
    first: list[Row] = []

    def said() -> Iterator[Row]:
        for image in images:
            known = None if image.name in lost else _known(image, journal)
            row = known or CaptionResult(image.name, error=lost.get(image.name, "changed during the run")).to_row()
            yield {**row, "image": image.name}

    def rows() -> Iterator[Row]:
        for row in said():
            row = polish(row, options)
            count["errors"] += row["error"] is not None
            count["weak"] += bool(row.get("weak"))
            if row["error"] is not None and not first:
                first.append(row)
            yield row

    journal.claim(map(Path, names))
    if format == "txt":
        write_sidecars(output, zip(names, rows(), strict=True))
    else:
        temporary = beside(output, ".tmp")
        WRITERS[format](temporary, rows())
        replace_if_other(temporary, output)
    if page is not None:  # of what the model said: its words have their heat maps
        write_caption_gallery(page, list(said()), images, len(images), explainer=attention, workers=options.num_workers)
    text = f"{output}: {len(images)} images, {new} captioned or tried now."
    if first:
        text += (
            f"\n  {count['errors']} could not be read (first: {first[0]['image']}, {first[0]['error']}); "
            "each has a row with its reason"
        )
    if options.min_score is not None:
        text += f"\n  {count['weak']} are weak: their score is below {options.min_score}"
    values = {"output": str(output), "images": len(images), "new": new, "errors": count["errors"]}
    if options.min_score is not None:
        values["weak"] = count["weak"]
    return Summary(text, values, exit_code=3 if first else 0)


def polish(row: Row, options: BatchCaptionOptions) -> Row:
    """A row as it is exported: the journal keeps what the model said."""

    def clean(text: str) -> str:
        text = text.rstrip().removesuffix(".").rstrip() if options.strip_period else text
        return options.prefix + text + options.suffix

    if row["error"] is None:
        row["caption"] = clean(row["caption"])
        if "captions" in row:
            row["captions"] = [clean(text) for text in row["captions"]]
    if options.min_score is not None:
        row["weak"] = row["score"] is not None and row["score"] < options.min_score
    return row


# ---- captioning -----------------------------------------------------------------------------------------------------


def _load(found: FoundImage, captioner: Captioner) -> Loaded:
    try:
        data, state = read_file(found.path)
    except ImageError as error:
        return Loaded(found, None, None, str(error), (-1, -1), None)
    content = hashlib.sha256(data).hexdigest()
    try:
        image = read_image(data)
        return Loaded(found, captioner.transform(image), image.size, None, state, content)
    except ImageError as error:
        passing = str(error) in (*NOT_THE_IMAGES_FAULT, NO_HEIC)  # to be tried again, as if it could not be opened
        return Loaded(found, None, None, str(error), state, None if passing else content)


def _loaded(images: Iterable[FoundImage], captioner: Captioner, workers: int, ahead: int) -> Iterator[Loaded]:
    """Images in order, decoded by threads, at most `ahead` of them waiting: memory stays flat for any folder."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Loaded]] = deque()
        source = iter(images)
        try:
            for found in islice(source, ahead):
                waiting.append(pool.submit(_load, found, captioner))
            while waiting:
                loaded = waiting.popleft().result()
                for found in islice(source, 1):
                    waiting.append(pool.submit(_load, found, captioner))
                yield loaded
        finally:
            pool.shutdown(cancel_futures=True)


def _caption(
    captioner: Captioner, images: Sequence[FoundImage], options: BatchCaptionOptions, journal: Journal
) -> Iterator[list[tuple[Loaded, Row]]]:
    """Rows batch by batch, in the order of the images; a batch that does not fit in memory is done again in halves."""
    auto = options.batch_size == "auto"
    size = (64 if captioner.device.type == "cuda" else 8) if auto else int(options.batch_size)
    source = _loaded(images, captioner, options.num_workers, ahead=4 * size)
    while batch := list(islice(source, size)):
        known = [journal.row(loaded.content) if loaded.content else None for loaded in batch]
        good = [one for one, row in zip(batch, known, strict=True) if row is None and one.pixels is not None]
        decoded: list[tuple[Loaded, Row]] = []
        while len(decoded) < len(good):
            some = good[len(decoded) : len(decoded) + size]
            pixels = torch.from_numpy(np.stack([loaded.pixels for loaded in some if loaded.pixels is not None]))
            try:
                answers = generate_captions(captioner, pixels, options.generation)
            except torch.OutOfMemoryError:
                if len(some) == 1 or not auto:
                    raise RunError(
                        f"--batch-size {options.batch_size}: {len(some)} images do not fit in the device's memory; give "
                        "a smaller number, or fewer --num-beams."
                    ) from None
                answers = None
            if answers is None:  # outside of except, whose traceback holds the tensors that did not fit
                size = len(some) // 2
                torch.cuda.empty_cache()
                say(f"a batch of {len(some)} does not fit in memory: going on with {size}")
                continue
            decoded += [(loaded, _row(loaded, answer)) for loaded, answer in zip(some, answers, strict=True)]
        fresh = iter(decoded)
        yield [
            (one._replace(kept=True), row) if row is not None else next(fresh) if one.pixels is not None
            else (one, _row(one, None))
            for one, row in zip(batch, known, strict=True)
        ]  # fmt: skip


def _row(loaded: Loaded, decoded: Any) -> dict[str, Any]:
    if decoded is None:
        result = CaptionResult(loaded.found.name, error=loaded.error)
    else:
        width, height = loaded.size or (None, None)
        result = CaptionResult(
            image=loaded.found.name,
            caption=decoded.captions[0],
            captions=decoded.captions,
            score=round(decoded.scores[0], 4),
            ended=decoded.ended[0],
            width=width,
            height=height,
        )
    return result.to_row()


# ---- rows that stand ------------------------------------------------------------------------------------------------


def _known(image: FoundImage, journal: Journal) -> Row | None:
    """The row of an image that is as it was when it was captioned."""
    content = journal.content(image.name, file_state(image.path))
    return journal.row(content) if content else None


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """The output for this run alone."""
    lock = beside(output, ".lock")
    try:
        handle = lock_file(lock)
    except BlockingIOError:
        raise OutputError(f"--output {output}: another run is writing it; wait for it, or name another file.") from None
    except OSError as error:
        raise OutputError(f"--output {output}: can't be written ({error.strerror}); name another file.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        handle.close()


def _maker(options: BatchCaptionOptions, captioner: Captioner) -> str:
    """What decides a caption besides the image."""
    digest = Hasher()
    for name, tensor in sorted(captioner.model.state_dict().items()):
        digest.update(name)
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(json.dumps([__version__, to_json(options.generation), str(captioner.model.dtype)], sort_keys=True))
    return digest.hex()


def _check_names(images: Sequence[FoundImage]) -> None:
    """A row is known by its image's name, so two folders may not bring the same one."""
    for one, other in pairwise(images):  # sorted by name
        if one.name == other.name:
            raise InputError(
                f"{one.path} and {other.path}: both would be reported as {one.name}; caption them in two runs, or give the "
                "folder above both."
            )


def _place(options: BatchCaptionOptions, format: str) -> Path:
    """The file written; for txt the folder that the sidecars go below."""
    if format not in ("txt", "imagefolder"):
        return options.output or Path(f"captions.{SUFFIX_OF.get(format, format)}")
    folder = options.output
    if folder is None:
        if len(options.paths) != 1 or not Path(options.paths[0]).is_dir():
            raise InputError(
                f"--format {format}: captions go beside the images of one folder; give one, or an --output."
            )
        folder = Path(options.paths[0])
    return folder if format == "txt" or folder.name == "metadata.jsonl" else folder / "metadata.jsonl"


def _check_output(output: Path, options: BatchCaptionOptions, format: str, images: Sequence[FoundImage]) -> None:
    if format == "txt" and output.exists() and not output.is_dir():
        raise OutputError(f"--output {output}: a file; --format txt needs a folder.")
    if format == "imagefolder" and not all((output.parent / image.name).exists() for image in images):
        raise OutputError(
            f"--output {output}: metadata.jsonl must lie in the folder of the images; leave --output out."
        )
    if format != "txt" and output.is_dir():
        raise OutputError(f"--output {output}: a folder; name a file.")
    if not output.parent.is_dir():
        raise OutputError(f"--output {output}: there is no folder {output.parent}; make it, or name another file.")
    if format != "txt" and output.exists() and not beside(output, ".state").exists() and options.existing == "skip":
        raise _foreign(output)


def _check_ours(root: Path, names: Sequence[str], journal: Journal, options: BatchCaptionOptions) -> None:
    """Refuses to replace what no earlier run wrote."""
    if len(set(names)) < len(names):
        raise InputError("--format txt: two images would share one text file; rename one, or choose --format jsonl.")
    for name in names:
        if options.existing == "skip" and os.path.lexists(root / name) and not journal.wrote(Path(name)):
            raise _foreign(root / name)


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"--output {path}: exists and was not written by batch-caption; name another output, or replace it with "
        "--existing overwrite."
    )
