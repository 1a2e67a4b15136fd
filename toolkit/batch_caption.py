"""`toolkit batch-caption`: a caption for every image below some folders, as rows of a file.

    find -> read and resize (threads) -> batch -> caption -> append to <output>.partial -> sort, rename

Beside the output lies `<output>.state.json`: the model and settings that wrote it and each image's size and time. With
it a rerun keeps what is still right and captions the rest.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from toolkit import __version__
from toolkit.attention import Attention
from toolkit.captioners import load_captioner
from toolkit.decoding import Decoded, generate_captions
from toolkit.errors import ImageError, InputError, OutputError, RunError
from toolkit.gallery import check_gallery, write_caption_gallery
from toolkit.hashing import Hasher
from toolkit.images import FoundImage, find_images, read_image
from toolkit.modeling import Captioner, silence_transformers
from toolkit.options import BatchCaptionOptions, to_json
from toolkit.progress import Progress, say
from toolkit.records import CaptionResult, Summary


class Loaded(NamedTuple):
    found: FoundImage
    pixels: np.ndarray | None  # uint8 (C, H, W), None where the image can't be read
    size: tuple[int, int] | None
    error: str | None


def batch_caption(options: BatchCaptionOptions) -> Summary:
    """Captions what has no caption yet.

    Raises:
        InputError: a path that does not exist or holds no image.
        ModelError: `--model` is no captioner.
        OutputError: the output can't be written, or is somebody else's.
        RunError: stopped half way; the same command goes on.
    """
    output = options.output or Path("captions.jsonl")
    images = find_images(options.paths, options.recursive)
    _check_names(images)
    _check_output(output, options)
    if options.gallery:
        check_gallery(options.gallery)
    silence_transformers()
    captioner = load_captioner(options.model, options.device, options.precision)
    attention = Attention(captioner, f"--model {options.model}") if options.attention else None
    identity = _identity(options, captioner)
    partial = _beside(output, ".partial")
    kept = {} if options.existing == "overwrite" else _kept(output, partial, identity, images)
    todo = [image for image in images if image.name not in kept]
    if kept:
        say(f"{output}: {len(kept)} of {len(images)} images have their row already")
    if not todo and output.exists() and len(kept) == len(_read_rows(output)):
        rows = [kept[image.name] for image in images]
        _gallery(options, rows, images, attention)
        return _summary(rows, output, 0)
    try:
        with open(partial, "w", encoding="utf-8") as file, Progress("caption", len(todo)) as progress:
            file.write(json.dumps(identity) + "\n")
            for row in kept.values():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for rows in _caption(captioner, todo, options):
                for row in rows:
                    kept[row["image"]] = row
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                progress.update(len(rows))
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the rows that stand.") from None
    except OSError as error:
        raise OutputError(f"--output {output}: can't be written ({error.strerror}); name another file.") from None
    rows = [kept[image.name] for image in images]
    _finish(output, partial, identity, rows)
    _gallery(options, rows, images, attention)
    return _summary(rows, output, len(todo))


def _gallery(
    options: BatchCaptionOptions, rows: list[dict[str, Any]], images: Sequence[FoundImage], attention: Attention | None
) -> None:
    if options.gallery:
        workers = options.num_workers
        write_caption_gallery(options.gallery, rows, images, len(rows), explainer=attention, workers=workers)


# ---- captioning -----------------------------------------------------------------------------------------------------


def _load(found: FoundImage, captioner: Captioner) -> Loaded:
    try:
        image = read_image(found.path)
        return Loaded(found, captioner.transform(image), image.size, None)
    except ImageError as error:
        return Loaded(found, None, None, str(error))


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
    captioner: Captioner, images: Sequence[FoundImage], options: BatchCaptionOptions
) -> Iterator[list[dict[str, Any]]]:
    """Rows batch by batch, in the order of the images; unreadable ones come with the batch they fell into."""
    size = int(options.batch_size) if options.batch_size != "auto" else 64 if captioner.device.type == "cuda" else 8
    source = _loaded(images, captioner, options.num_workers, ahead=4 * size)
    while batch := list(islice(source, size)):
        good = [loaded for loaded in batch if loaded.pixels is not None]
        decoded: Iterator[Decoded] = iter(())
        if good:
            pixels = torch.from_numpy(np.stack([loaded.pixels for loaded in good if loaded.pixels is not None]))
            decoded = iter(generate_captions(captioner, pixels, options.generation))
        yield [_row(loaded, None if loaded.pixels is None else next(decoded)) for loaded in batch]


def _row(loaded: Loaded, decoded: Any) -> dict[str, Any]:
    if decoded is None:
        result = CaptionResult(loaded.found.name, error=loaded.error)
    else:
        width, height = loaded.size or (None, None)
        result = CaptionResult(
            image=loaded.found.name,
            caption=decoded.captions[0],
            captions=decoded.captions,
            score=round(decoded.scores[0], 6),
            ended=decoded.ended[0],
            width=width,
            height=height,
        )
    return {**result.to_row(), "state": _state(loaded.found.path)}


# ---- rows that stand ------------------------------------------------------------------------------------------------


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _state(path: Path) -> list[int]:
    try:
        stat = os.lstat(path)
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _identity(options: BatchCaptionOptions, captioner: Captioner) -> dict[str, Any]:
    """What decides a caption besides the image."""
    digest = Hasher()
    for name, tensor in sorted(captioner.model.state_dict().items()):
        digest.update(name)
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "toolkit": __version__,
        "model": digest.hex(),
        "generation": to_json(options.generation),
        "dtype": str(captioner.model.dtype),
    }


def _check_names(images: Sequence[FoundImage]) -> None:
    """A row is known by its image's name, so two folders may not bring the same one."""
    for one, other in pairwise(images):  # sorted by name
        if one.name == other.name:
            raise InputError(
                f"{one.path} and {other.path}: both would be reported as {one.name}; caption them in two runs, or give the "
                "folder above both."
            )


def _check_output(output: Path, options: BatchCaptionOptions) -> None:
    if output.is_dir():
        raise OutputError(f"--output {output}: a folder; name a file.")
    if output.exists() and not _beside(output, ".state.json").exists() and options.existing != "overwrite":
        raise OutputError(
            f"--output {output}: exists and was not written by batch-caption; name another file, or replace it with "
            "--existing overwrite."
        )
    if not output.parent.is_dir():
        raise OutputError(f"--output {output}: there is no folder {output.parent}; make it, or name another file.")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line that a kill cut short is dropped."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def _kept(
    output: Path, partial: Path, identity: dict[str, Any], images: Sequence[FoundImage]
) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run that still hold, by image: same model and settings, image as it was."""
    rows: dict[str, dict[str, Any]] = {}
    state_file = _beside(output, ".state.json")
    if output.exists() and state_file.exists():
        before = json.loads(state_file.read_text(encoding="utf-8"))
        if before["identity"] == identity:
            for row in _read_rows(output):
                rows[row["image"]] = {**row, "state": before["images"].get(row["image"])}
    if partial.exists():
        lines = _read_rows(partial)
        if lines and lines[0] == identity:
            rows.update((row["image"], row) for row in lines[1:])
    states = {image.name: _state(image.path) for image in images}
    return {name: row for name, row in rows.items() if states.get(name) == row["state"]}


def _finish(output: Path, partial: Path, identity: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    states = {row["image"]: row["state"] for row in rows}
    text = json.dumps({"identity": identity, "images": states}, ensure_ascii=False)
    for path, content in (
        (output, "".join(json.dumps(_public(row), ensure_ascii=False) + "\n" for row in rows)),
        (_beside(output, ".state.json"), text),
    ):
        temporary = _beside(path, ".tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    partial.unlink()


def _public(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "state"}


def _summary(rows: Sequence[dict[str, Any]], output: Path, new: int) -> Summary:
    bad = [row for row in rows if row["error"] is not None]
    text = f"{output}: {len(rows)} images, {new} captioned or tried now."
    if bad:
        text += f"\n  {len(bad)} could not be read (first: {bad[0]['image']}, {bad[0]['error']}); each has a row with its reason"
    values = {"output": str(output), "images": len(rows), "new": new, "errors": len(bad)}
    return Summary(text, values, exit_code=3 if bad else 0)
