"""Facts about raw annotations and their images."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.cache.build import pixel_hash
from toolkit.cache.labels import CaptionEncoder
from toolkit.data.annotations import AnnotationSet
from toolkit.data.images import read_image
from toolkit.data.sources import ImageSource
from toolkit.errors import ImageError, InputError
from toolkit.options import InspectOptions
from toolkit.options.preprocess import DEFAULT_DECODER
from toolkit.records import SPLITS, ImageRecord
from toolkit.reports.facts.stats import (
    SHEET_IMAGES,
    SHEET_PAIRS,
    CaptionStats,
    ImageStats,
    Sheet,
    perceptual_hash,
    rejected,
    unusable_rows,
)
from toolkit.runtime.hashing import hash_hex, hash_int
from toolkit.runtime.progress import Progress

CHUNK = 64  # images in memory at once


class Look(NamedTuple):
    """What was read of one image; `reason` says why it can't be read."""

    size: int = 0
    hash: str = ""
    perceptual: int = 0
    reason: str | None = None


def annotation_facts(
    options: InspectOptions, annotations: AnnotationSet, tokenizer: CaptionEncoder | None
) -> tuple[dict[str, Any], Sheet | None]:
    """The facts about annotations, and the sample sheet with `--sheet`.

    Raises:
        InputError: the annotations can't be read, or `--split` has no image.
    """
    decode = options.distance is not None
    stats, pictures = CaptionStats(tokenizer), ImageStats()
    splits: Counter[str | None] = Counter()
    unreadable: list[dict[str, str]] = []
    sample: list[ImageRecord] = []
    size = 0
    for records, looks in _looks(annotations, options.num_workers, decode):
        chosen = [record for record in records if options.split in (None, record.split)]
        stats.add([record.captions for record in chosen])
        # Sampled by a hash of the name: the same sample on every run, in one pass.
        sample = heapq.nsmallest(SHEET_IMAGES, [*sample, *chosen], key=lambda record: hash_int(record.image_id))
        splits.update(record.split for record in records)
        for record, look in zip(records, looks, strict=True):
            if look.reason is not None:
                unreadable.append({"image_id": record.image_id, "path": record.path, "reason": look.reason})
                continue
            size += look.size
            pictures.names.append(record.image_id)
            pictures.paths.append(record.path)
            pictures.splits.append(record.split)
            pictures.hashes.append(look.hash)
            pictures.perceptual.append(look.perceptual)
    if options.split is not None and not splits[options.split]:
        raise InputError(
            f"--split {options.split}: {options.path} has no image in this split; name another one or leave the option out."
        )
    near = [f"{name}, nearest {file}" for name, file in annotations.notes.nearest.items()]
    alike, pairs = pictures.alike(options.distance)
    own_splits = bool(set(splits) - {None})
    values = {
        "kind": "annotations",
        "path": f"{options.path}",
        "format": annotations.format,
        "images_root": f"{annotations.images}" if annotations.images else None,
        "images": sum(splits.values()),
        "splits": {split: splits[split] for split in SPLITS} if own_splits else None,
        "left_out": splits[None] if own_splits else 0,
        "split": options.split,
        "tokenizer": (options.decoder or DEFAULT_DECODER) if tokenizer else None,
        "captions": stats.values(),
        "same_by": "pixels" if decode else "bytes",
        **alike,
        "rejected": rejected(unreadable),
        "unusable_rows": unusable_rows(
            {"path": path, "reason": reason, "line": line} for line, reason, path in annotations.notes.unusable
        ),
        "bytes": size,
        "notes": annotations.notes.sentences()
        + ([f"images not found: {'; '.join(near)}"] if near else [])
        + stats.notes(),
    }
    return values, _sheet(annotations.images, tokenizer, sample, pictures, pairs) if options.sheet else None


def _bytes(record: ImageRecord, root: Path | None) -> bytes:
    return record.data if record.data is not None else ImageSource.of(root or Path()).read(record.path).data


def _look(record: ImageRecord, root: Path | None, decode: bool) -> Look:
    try:
        data = _bytes(record, root)
        if not decode:
            return Look(len(data), hash_hex(data))
        image = read_image(data)
        return Look(len(data), pixel_hash(image), perceptual_hash(image))
    except ImageError as error:
        return Look(reason=str(error))


def _looks(annotations: AnnotationSet, workers: int, decode: bool) -> Iterator[tuple[list[ImageRecord], list[Look]]]:
    """Records with what was read of their images, in chunks; Pillow decodes in threads as fast as in processes."""
    with ThreadPoolExecutor(workers) as pool, Progress("inspect", None) as progress:
        while records := list(islice(annotations.records, CHUNK)):
            yield records, list(pool.map(lambda record: _look(record, annotations.images, decode), records))
            progress.update(len(records))


def _sheet(
    root: Path | None,
    tokenizer: CaptionEncoder | None,
    sample: list[ImageRecord],
    pictures: ImageStats,
    pairs: list[tuple[int, int]],
) -> Sheet:
    """Images upright in RGB and trimmed captions, before any encoder or decoder is chosen."""
    from toolkit.reports.html import data_uri

    def card(record: ImageRecord) -> dict[str, Any]:
        lengths = tokenizer.lengths(record.captions).tolist() if tokenizer else [None] * len(record.captions)
        captions = [{"text": t, "tokens": n, "cut": 0} for t, n in zip(record.captions, lengths, strict=True)]
        shown: dict[str, Any] = {"thumbnail": None, "error": None}
        try:
            shown["thumbnail"] = data_uri(read_image(_bytes(record, root)))
        except ImageError as error:
            shown["error"] = str(error)
        return {"name": record.image_id, "split": record.split, "captions": captions, **shown}

    def picture(i: int) -> dict[str, Any]:
        return card(ImageRecord(pictures.names[i], pictures.paths[i], (), pictures.splits[i]))

    if root is None:  # images are inside containers, which are read only once
        pairs = []
    return Sheet([card(record) for record in sample], [(picture(i), picture(j)) for i, j in pairs[:SHEET_PAIRS]])
