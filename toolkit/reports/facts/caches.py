"""Facts about a finished cache."""

from __future__ import annotations

import heapq
import json
from typing import Any

from toolkit.cache.index import read_index
from toolkit.cache.labels import IGNORE_INDEX, CaptionEncoder
from toolkit.cache.schema import Cache
from toolkit.data.pixels import centre
from toolkit.errors import InputError
from toolkit.options import InspectOptions
from toolkit.records import SPLITS
from toolkit.reports.facts.stats import (
    MAX_LENGTHS,
    SHEET_IMAGES,
    SHEET_PAIRS,
    CaptionStats,
    ImageStats,
    Sheet,
    bytes_below,
    perceptual_hash,
    rejected,
    unusable_rows,
)
from toolkit.runtime.hashing import hash_int
from toolkit.runtime.progress import Progress

CHUNK = 64  # images in memory at once


def cache_facts(
    options: InspectOptions, cache: Cache, other_tokenizer: CaptionEncoder | None
) -> tuple[dict[str, Any], Sheet | None]:
    """The facts about a cache, and the sample sheet with `--sheet`.

    Args:
        other_tokenizer: counts tokens instead of the cache's own tokenizer.

    Raises:
        InputError: the cache is damaged.
    """
    manifest = cache.manifest
    made = manifest["options"]
    max_length = made["max_length"]
    own = CaptionEncoder(cache.directory / "tokenizer" / "tokenizer.json", cache.special_tokens.eos, max_length)
    pictures = _pictures(cache, options.distance)
    stats = CaptionStats(other_tokenizer or own)
    for split in SPLITS if options.split is None else [options.split]:
        for chunk in cache[split].rows.table["captions"].chunks:  # some 64 rows at a time
            stats.add(chunk.to_pylist())
    alike, pairs = pictures.alike(options.distance)
    with open(cache.directory / "rejected.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    values = {
        "kind": "cache",
        "path": f"{options.path}",
        **{name: made[name] for name in ("annotations", "preset", "max_length")},
        **{name: None if made["preset"] else made[name] for name in ("encoder", "decoder")},
        "format": manifest["format"],
        "pixels": list(cache.shape),
        "images": len(pictures.names),
        "splits": {split: manifest["counts"]["splits"][split] for split in SPLITS},
        "left_out": manifest["counts"]["left_out"],
        "split": options.split,
        "tokenizer": options.decoder or "the cache's own",
        "captions": stats.values(sorted({*MAX_LENGTHS, max_length})),
        "same_by": "pixels",
        **alike,
        "rejected": rejected([row for row in rows if row["image_id"] is not None]),
        "unusable_rows": unusable_rows(row for row in rows if row["image_id"] is None),
        "bytes": bytes_below(cache.directory),
        "notes": stats.notes(),
    }
    return values, _sheet(options.split, cache, pictures, pairs, own) if options.sheet else None


def _pictures(cache: Cache, distance: int | None) -> ImageStats:
    """All images, split by split in the order of their rows."""
    from PIL import Image

    hashes: dict[str, list[str]] = {split: [] for split in SPLITS}
    for _, _, table in read_index(cache.directory):  # the rows of a shard are in the order of its index
        for split, value in zip(table["split"].to_pylist(), table["pixel_hash"].to_pylist(), strict=True):
            if split is not None:
                hashes[split].append(value)
    pictures = ImageStats()
    with Progress("inspect", sum(map(len, hashes.values()))) as progress:
        for split in SPLITS:
            reader = cache[split]
            if len(reader) != len(hashes[split]):
                raise InputError(
                    f"{cache.directory}: its index is damaged; run `toolkit preprocess` again to repair it."
                )
            pictures.names += reader.column("image_id")
            pictures.paths += reader.column("path")
            pictures.splits += [split] * len(reader)
            pictures.hashes += hashes[split]
            for first in range(0, len(reader) if distance is not None else 0, CHUNK):
                pixels = reader.gather(range(first, min(first + CHUNK, len(reader))))
                # One plane at a time: transposing to (H, W, C) would take longer than all the rest.
                planes = ([Image.fromarray(plane) for plane in row] for row in pixels)
                pictures.perceptual += [perceptual_hash(Image.merge("RGB", row)) for row in planes]
                progress.update(len(pixels))
    return pictures


def _sheet(
    split: str | None, cache: Cache, pictures: ImageStats, pairs: list[tuple[int, int]], encoder: CaptionEncoder
) -> Sheet:
    """Pixels and labels as the cache has them: the model's input."""
    from toolkit.reports.html import data_uri

    starts = {split: pictures.splits.index(split) for split in SPLITS if split in pictures.splits}
    readers = {split: cache[split] for split in starts}

    def card(i: int) -> dict[str, Any]:
        split = pictures.splits[i] or ""
        reader, at = readers[split], i - starts[split]
        row = reader[at]
        lengths = encoder.lengths(reader.rows.table["captions"][at].as_py()).tolist()
        captions = []
        for labels, length in zip(row["labels"], lengths, strict=True):
            ids = labels[labels != IGNORE_INDEX].tolist()
            text = encoder.tokenizer.decode(ids[:-1], skip_special_tokens=False)  # the last is the EOS
            captions.append({"text": text, "tokens": len(ids), "cut": length - len(ids)})
        shown = {"thumbnail": data_uri(centre(row["pixel_values"], *cache.seen)), "error": None}
        return {"name": pictures.names[i], "split": split, "captions": captions, **shown}

    chosen = (i for i in range(len(pictures.names)) if split in (None, pictures.splits[i]))
    sample = heapq.nsmallest(SHEET_IMAGES, chosen, key=lambda i: hash_int(pictures.names[i]))
    return Sheet([card(i) for i in sample], [(card(i), card(j)) for i, j in pairs[:SHEET_PAIRS]])
