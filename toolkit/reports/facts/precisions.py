"""A model's captions in fp32 and in another precision, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypedDict

import numpy as np

from toolkit.cache.schema import open_cache
from toolkit.captioning.captioner import Batches, Captioner, Decoded, load_captioner
from toolkit.data.images import read_image
from toolkit.data.pixels import centre
from toolkit.data.sources import find_images
from toolkit.errors import ImageError, InputError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.reports.facts.models import read_json
from toolkit.runtime.progress import Progress

SAMPLE = 64  # images
BATCH = 8  # images, as batch-caption takes on a CPU


class PrecisionFacts(TypedDict):
    """
    Attributes:
        equal: captions that are the same, of `images`.
        score_differences: mean and largest |difference| of the scores of equal captions, in nats a token; None of none.
        times_faster: median over batches of fp32's seconds over this precision's, pixels to captions.
        examples: [caption in fp32, caption in this precision], where they differ.
    """

    precision: str
    images: int
    equal: int
    score_differences: tuple[float, float] | None
    times_faster: float
    examples: list[tuple[str, str]]


def precision_facts(model: Path, precision: str, images: Path | None) -> PrecisionFacts:
    """Captions each batch in fp32 and in `precision`, taking turns, so that whatever else the machine does falls on both.

    Args:
        images: a folder; None for the validation images of the usual cache, if the model was chosen by them.

    Raises:
        InputError: there are no images to compare on.
        ModelError: the model can't be loaded, or not in this precision.
    """
    options, ratios = GenerationOptions(), list[float]()
    ways = [Batches(load_captioner(model, precision=name), options, BATCH) for name in ("fp32", precision)]
    pixels = _validation_pixels(model) if images is None else _pixels_below(images, ways[0].captioner)
    for way in ways:
        way.generate(pixels[:BATCH])  # weights are laid out for the processor at the first use
    pairs: list[tuple[Decoded, Decoded]] = []
    with Progress("compare", len(pixels)) as progress:
        for start in range(0, len(pixels), BATCH):
            batch = pixels[start : start + BATCH]
            (plain, slow), (other, fast) = (_timed(way, batch) for way in ways)
            pairs += zip(plain, other, strict=True)
            ratios.append(slow / fast)
            progress.update(len(batch))
    same = [abs(a.scores[0] - b.scores[0]) for a, b in pairs if a.captions[0] == b.captions[0]]
    return {
        "precision": precision,
        "images": len(pairs),
        "equal": len(same),
        "score_differences": (statistics.mean(same), max(same)) if same else None,
        "times_faster": statistics.median(ratios),
        "examples": [(a.captions[0], b.captions[0]) for a, b in pairs if a.captions[0] != b.captions[0]][:3],
    }


def _timed(way: Batches, pixels: Sequence[np.ndarray]) -> tuple[list[Decoded], float]:
    started = time.perf_counter()
    return way.generate(pixels), time.perf_counter() - started


def _pixels_below(folder: Path, captioner: Captioner) -> list[np.ndarray]:
    """Of up to `SAMPLE` images below a folder, at even distances; those that can't be read are left out."""
    pixels, found = [], find_images([folder])
    for image in islice(found, 0, None, -(-len(found) // SAMPLE)):
        with suppress(ImageError):
            pixels.append(captioner.prepare(read_image(image.read().data)))
    if not pixels:
        raise InputError(f"--images {folder}: none of its images can be read; name another folder.")
    return pixels


def _validation_pixels(model: Path) -> list[np.ndarray]:
    usual: Path = FinetuneOptions().cache
    trained_on = (read_json(model / "options.json") or {}).get("cache") or {}
    state = read_json(usual / "validation" / "state.json") or {}
    if not state or state.get("_fingerprint") != trained_on.get("validation"):
        raise InputError(
            f"--precision: {usual} is not the cache that {model} was trained on; name images with --images."
        )
    cache = open_cache(usual)
    rows = cache["validation"]
    return [
        centre(np.asarray(rows[i]["pixel_values"]), *cache.seen) for i in range(0, len(rows), -(-len(rows) // SAMPLE))
    ]
