"""The CLIPScore of each caption, and with `--rerank clip` the caption that fits its image best in the first place.

    rows -> the images' vectors (kept, or made now) -> the captions' vectors -> scores -> rows

Captions are judged as the model generated them, before `--prefix` and its like. The journal holds captions only, so another
CLIP model, or none, captions nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice, tee
from typing import NamedTuple

import numpy as np

from toolkit.data.sources import FoundImage
from toolkit.evaluation.clip_score import Model, clip_score, prefixed
from toolkit.models.vectors import Picture
from toolkit.records import CaptionResult
from toolkit.runtime.progress import Progress

CHUNK = 256  # rows whose captions are encoded at once


class Captioned(NamedTuple):
    """An image with its captions.

    Attributes:
        content: the hash of the file's bytes that it was captioned by; None if it has no captions.
        compared: whether all that decides its captions could be compared.
    """

    image: FoundImage
    content: str | None
    result: CaptionResult
    compared: bool


@dataclass
class ClipScores:
    """Adds scores to rows.

    Attributes:
        workers: threads that read images.
        total, count: of the scores of first captions, in the last pass.
        changed: images whose first caption was another one before.
        unseen: images with captions that can't be read any more; they have no score.
    """

    model: Model
    rerank: bool
    workers: int
    total: float = 0.0
    count: int = 0
    changed: int = 0
    unseen: list[str] = field(default_factory=list)

    def add(self, rows: Iterable[Captioned], number: int) -> Iterator[Captioned]:
        """The rows in order, with `clip_scores`, and reranked if that is asked for; memory stays flat."""
        self.total, self.count, self.changed, self.unseen = 0.0, 0, 0, []
        ours, theirs = tee(rows)
        pictures = (Picture(row.content, _reader(row.image)) for row in theirs if row.result.captions)
        with Progress("clip", number) as progress, closing(self.model.images(pictures, self.workers)) as vectors:
            while some := list(islice(ours, CHUNK)):
                seen = [next(vectors) if row.result.captions else None for row in some]
                yield from self._scored(some, seen)
                progress.update(len(some))

    def _scored(self, rows: list[Captioned], seen: list[np.ndarray | str | None]) -> Iterator[Captioned]:
        captions = [caption for row in rows for caption in row.result.captions]
        texts = iter(self.model.texts(prefixed(captions)))
        for row, image in zip(rows, seen, strict=True):
            vectors = list(islice(texts, len(row.result.captions)))
            if isinstance(image, np.ndarray):
                found = clip_score(np.broadcast_to(image, (len(vectors), len(image))), np.stack(vectors))
                result = replace(row.result, clip_scores=tuple(round(float(score), 4) for score in found))
                if self.rerank:
                    result = self._reranked(result)
                self.total, self.count = self.total + result.clip_scores[0], self.count + 1  # type: ignore[index]
            else:
                result = replace(row.result, clip_scores=())
                if image is not None:
                    self.unseen.append(f"{row.result.image}: {image}")
            yield row._replace(result=result)

    def _reranked(self, result: CaptionResult) -> CaptionResult:
        """The best first; of equally good ones the one that the captioner found better."""
        assert result.clip_scores is not None
        order = sorted(range(len(result.captions)), key=lambda k: -result.clip_scores[k])  # type: ignore[index]
        self.changed += order[0] != 0
        return result.ordered(order)


def _reader(image: FoundImage) -> Callable[[], bytes]:
    return lambda: image.read().data
