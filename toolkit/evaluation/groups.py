"""Metrics of parts of the images: `--by` a column of the annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.annotations import Columns, images_beside, read_annotations
from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import Hypotheses
from toolkit.evaluation.metrics import BLEU_NAMES, Scores, bleu_from_counts
from toolkit.evaluation.references import References, Source
from toolkit.evaluation.significance import NO_MEAN, Metric, intervals
from toolkit.runtime.copies import as_path

NONE = "(none)"  # images that the column says nothing about


@dataclass(frozen=True)
class Group:
    """The images with one value of the column, and the metrics of one system on them."""

    value: str
    images: int
    metrics: dict[str, Metric]


def column_for(by: str, hypotheses: Hypotheses, references: References, source: Source) -> dict[str, tuple[str, ...]]:
    """Image id -> what the column says: of the annotations, or where there are no references of the captions.

    Raises:
        InputError: as `read_column` and `column_of`.
    """
    return read_column(by, references, source) if references.reason is None else column_of(by, hypotheses)


def read_column(by: str, references: References, source: Source) -> dict[str, tuple[str, ...]]:
    """Image id -> what the column says, from the annotations or those that a cache was made from.

    The column is read as one of captions would be, so every format with columns has it.

    Raises:
        InputError: there is no such column, or the annotations of the cache are not where they were.
    """
    path, images, format = source.path, source.images, source.format
    image = None if source.columns is None else source.columns.image
    if references.cache is not None:
        made = references.cache.manifest["options"]
        path, format, image = (
            as_path(made["annotations"]),
            references.cache.manifest["format"],
            made.get("image_column"),
        )
        images = Path(made["images"]) if made.get("images") else None
        if not path.exists() and format != "hub":
            raise InputError(
                f"--by {by}: {references.source} was made from {path}, which is not there; put it back, or name annotations with "
                "--references."
            )
        images = images if images is not None and images.is_dir() else None
    columns = Columns(image, (by,))
    try:
        found = read_annotations(path, images_beside(path, images), format, columns=columns, find=False)
        return {record.image_id: tuple(dict.fromkeys(record.captions)) for record in found.records}
    except InputError as error:
        raise InputError(str(error).replace("--caption-column", "--by")) from None


def column_of(by: str, hypotheses: Hypotheses) -> dict[str, tuple[str, ...]]:
    """The same from the captions themselves, which were read with this column; the first row of an image counts.

    Raises:
        InputError: they have no such column.
    """
    said: dict[str, tuple[str, ...]] = {}
    for row in hypotheses.rows:
        if row.values is not None:
            said.setdefault(row.names[-1], row.values)
    if not said:
        raise InputError(
            f"--by {by}: without references it names a column of the captions, and {hypotheses.source} has none of this name; "
            "name another, or leave it out."
        )
    return said


def by_group(scores: Scores, column: Mapping[str, Sequence[str]], resamples: int = 1000, seed: int = 42) -> list[Group]:
    """Metrics of one system for each value, the most frequent first. An image with several values counts for each of them.

    Nothing is scored again: CIDEr's word weights are those of all images. METEOR, which is no mean, is left out.
    """
    rows: dict[str, list[int]] = {}
    for row, image_id in enumerate(scores.image_ids):
        for value in column.get(image_id) or (NONE,):
            rows.setdefault(value, []).append(row)
    ranked = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Group(value, len(at), intervals([_part(scores, at)], resamples, seed)[0]) for value, at in ranked]


def _part(scores: Scores, rows: list[int]) -> Scores:
    """The scores of some of the images."""
    per_image = {name: values[rows] for name, values in scores.per_image.items() if name not in NO_MEAN}
    corpus = {name: float(values.mean()) for name, values in per_image.items()}
    counts = None if scores.bleu_counts is None else scores.bleu_counts[rows]
    if counts is not None:
        corpus |= zip(BLEU_NAMES, map(float, bleu_from_counts(counts.sum(axis=0))), strict=True)
    return Scores([scores.image_ids[row] for row in rows], corpus, per_image, counts)
