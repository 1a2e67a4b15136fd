"""Finds the image of each caption. Whatever does not match is counted and reported by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import Hypotheses, Hypothesis, clean_name
from toolkit.evaluation.references import References

EXAMPLES = 3


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


Key = Callable[[str, str], str]
# Tried in this order: the name of the level, its key of a reference's (id, path), its key of a caption's name. An image
# that was found is not searched for in later levels. `a.txt` names a.jpg as `a`: hence the keys without suffix.
LEVELS: tuple[tuple[str, Key, Callable[[str], str]], ...] = (
    ("image id", lambda image_id, path: image_id, lambda name: name),
    ("path", lambda image_id, path: path, lambda name: name),
    ("path without suffix", lambda image_id, path: _stem(path), lambda name: name),
    ("base name", lambda image_id, path: _base(path), _base),
    ("base name without suffix", lambda image_id, path: _stem(_base(path)), _base),
)
EXACT = 2  # in these first levels two rows of one name are one image captioned twice, not two images


@dataclass
class Matched:
    """Result of `match`.

    Attributes:
        captions: image id -> row, for images of the split; without rows that are an error.
        by: level -> how many images it found.
        unreadable: image ids of the split whose row is an error; `reasons` are aligned to it.
        missing: image ids of the split without a row.
        elsewhere: names of rows whose image is in another split.
        unknown: names of rows whose image is in no split.
        ambiguous: names of rows that fit several images, or fit the same image as another row.
        repeated: names of rows whose image has an earlier row; the first counts.
    """

    captions: dict[str, Hypothesis] = field(default_factory=dict)
    by: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        names = ("missing", "unreadable", "elsewhere", "unknown", "ambiguous", "repeated")
        lists = {name: getattr(self, name) for name in names}
        counts = {name: {"count": len(found), "examples": found[:EXAMPLES]} for name, found in lists.items()}
        return {"matched": len(self.captions), "by": dict(self.by), **counts}

    def sentences(self, references: References) -> list[str]:
        """What did not match, as sentences for the reader."""
        words = (
            ("missing", f"images without a caption, of {len(references.captions):,}"),
            ("unreadable", "images whose row is an error"),
            ("elsewhere", f"captions of images outside {references.name}"),
            ("unknown", f"captions of images that are not in {references.source}"),
            ("ambiguous", "captions whose name fits several images, or that fit the same image as another caption"),
            ("repeated", "second captions of an image (the first counts)"),
        )
        lines = []
        for name, what in words:
            found = getattr(self, name)
            examples = found[:EXAMPLES]
            if name == "unreadable":
                examples = [f"{image}: {reason}" for image, reason in zip(examples, self.reasons, strict=False)]
            if found:
                lines.append(
                    f"{what}: {len(found):,} ({', '.join(examples)}{', ...' if len(found) > EXAMPLES else ''})"
                )
        return lines


def match(hypotheses: Hypotheses, references: References) -> Matched:
    """Finds the image of each caption: by id, else by path, else by base name if only one image has it.

    Base names are compared with those of all splits, so `b/1.jpg` of train is never taken for `a/1.jpg` of test.

    Raises:
        InputError: no caption belongs to an image of the split.
    """
    found: dict[int, str] = {}  # row -> image id
    taken: dict[str, int] = {}
    report = Matched()
    doubtful: set[int] = set()
    for level, (name_of_level, of_reference, of_row) in enumerate(LEVELS):
        left = [row for row in range(len(hypotheses.rows)) if row not in found]
        if not left:
            break
        places = _by_key(references, of_reference)
        hits: dict[str, list[int]] = {}
        for row in left:
            keys = (of_row(name) for name in hypotheses.rows[row].names)
            candidates = next((places[key] for key in keys if key in places), [])
            if len(candidates) == 1:
                hits.setdefault(candidates[0], []).append(row)
            elif candidates:
                doubtful.add(row)
        for image_id, rows in hits.items():
            if image_id in taken and level >= EXACT:
                continue  # another image of that name
            if len(rows) > 1 and level >= EXACT:
                doubtful.update(rows)
                continue
            for row in rows:
                found[row] = image_id
            taken.setdefault(image_id, rows[0])
            report.by[name_of_level] += image_id in references.captions
    _sort_out(hypotheses, references, report, found, taken, doubtful)
    if not report.captions and not report.unreadable:
        raise _nothing(hypotheses, references, report)
    return report


def _by_key(references: References, of_reference: Key) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for image_id, path in references.paths.items():
        places.setdefault(of_reference(clean_name(image_id), clean_name(path)), []).append(image_id)
    return places


def _sort_out(
    hypotheses: Hypotheses,
    references: References,
    report: Matched,
    found: dict[int, str],
    taken: dict[str, int],
    doubtful: set[int],
) -> None:
    for row, hypothesis in enumerate(hypotheses.rows):
        name = hypothesis.names[-1]
        image_id = found.get(row)
        if image_id is None:
            (report.ambiguous if row in doubtful else report.unknown).append(name)
        elif taken[image_id] != row:
            report.repeated.append(name)
        elif image_id not in references.captions:
            report.elsewhere.append(name)
        elif hypothesis.caption is None:
            report.unreadable.append(image_id)
            report.reasons.append(hypothesis.error or "")
        else:
            report.captions[image_id] = hypothesis
    report.missing = [i for i in references.captions if i not in taken]


def _nothing(hypotheses: Hypotheses, references: References, report: Matched) -> InputError:
    if report.elsewhere:
        return InputError(
            f"{hypotheses.source}: {len(report.elsewhere):,} captions belong to images of {references.source}, but none to "
            f"{references.name}; caption that split, or name another --split."
        )
    ours, theirs = hypotheses.rows[0].names[-1], _examples(list(references.paths.values()))
    return InputError(
        f"{hypotheses.source}: none of its {len(hypotheses.rows):,} captions belongs to an image of {references.source}, whose "
        f"images have names like {theirs}, not {ours}; name the references of these captions."
    )


def _examples(names: Sequence[str]) -> str:
    return " or ".join(names[:2])
