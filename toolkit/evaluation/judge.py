"""Captions judged: which are of which image, their figures, intervals, comparison, health, and the signature."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.data.annotations import Columns
from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import Hypotheses
from toolkit.evaluation.matching import Matched, match
from toolkit.evaluation.metrics import Corpus, Scores, health, prepare
from toolkit.evaluation.references import References, read_idf
from toolkit.evaluation.significance import (
    Difference,
    Figure,
    HumanBound,
    compare,
    human_bound,
    intervals,
    tokenized,
    words,
)
from toolkit.evaluation.spacing import Spacing
from toolkit.options import EvaluateOptions
from toolkit.runtime.hashing import hash_hex

NAMES = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L",
    "cider": "CIDEr", "cider_d": "CIDEr-D", "cider_plain": "CIDEr plain", "meteor": "METEOR", "spice": "SPICE",
}  # fmt: skip
KINDS = {
    "bleu": "bleu(closest)",
    "rouge_l": "rouge_l(beta=1.2)",
    "cider": "cider(D,sigma=6)",
    "cider_d": "cider_d(sigma=6)",
    "cider_plain": "cider_plain",
    "meteor": "meteor(1.5)",
    "spice": "spice(1.0)",
}


@dataclass(frozen=True)
class Side:
    """One set of captions.

    Attributes:
        captions: image id -> caption, of the images judged; "" where `--missing empty` stands for it.
        health: as `toolkit.evaluation.metrics.health` gives it.
    """

    name: str
    format: str
    matched: Matched
    captions: dict[str, str]
    scores: Scores
    figures: dict[str, Figure]
    health: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What was found: the table, `--json`, the file per image and the page are made from it.

    Attributes:
        ids: the images judged, in the order of the references.
        differences: the second side's figures less the first's.
        notes: for people, a sentence each.
    """

    references: References
    ids: list[str]
    sides: list[Side]
    differences: dict[str, Difference] | None
    human: HumanBound | None
    signature: str
    notes: list[str]


def judge(given: Sequence[Hypotheses], references: References, options: EvaluateOptions) -> Evaluation:
    """Judges one or two sets of captions on the same images.

    Raises:
        InputError: no caption is of an image of the references, or no image has one from each side.
        ToolkitError: METEOR or SPICE can't run here.
    """
    matched = [match(hypotheses, references) for hypotheses in given]
    ids = [i for i in references.captions if options.missing == "empty" or all(i in m.captions for m in matched)]
    if not ids:
        raise InputError(
            f"{given[0].source}: "
            + (
                f"every caption of {references.name} is an error; see its column error, or use --missing empty."
                if len(given) == 1 or not matched[0].captions
                else f"shares no image with {given[1].source} that both caption; name captions of the same images."
            )
        )
    if options.human and all(len(references.captions[i]) < 2 for i in ids):
        raise InputError(
            f"--human: no image of {references.name} has a second reference to judge the first by; leave it out."
        )
    corpus, idf_name = None, "evaluated"
    if options.idf != "evaluated":
        corpus, idf_name = read_idf(options.idf, references, options.images, options.format, Columns.of(options))
    said = tokenized({i: references.captions[i] for i in ids})
    idf = None if corpus is None else tokenized(corpus)
    prepared = prepare(said, idf, words)
    captions = [{i: m.captions[i].caption or "" if i in m.captions else "" for i in ids} for m in matched]
    # Cut into words once, for the scores and for each round of the human bound.
    cut = [{i: lines[0] for i, lines in tokenized({i: [c] for i, c in side.items()}).items()} for side in captions]
    scores = [prepared.score(side, options.metric_names) for side in cut]
    figures = intervals(scores, options.resamples, options.seed)
    sides = [
        Side(h.source, h.format, m, c, s, f, health(list(c.values()), _ended(m, ids), references.train))
        for h, m, c, s, f in zip(given, matched, captions, scores, figures, strict=True)
    ]
    return Evaluation(
        references=references,
        ids=ids,
        sides=sides,
        differences=compare(scores[0], scores[1], options.resamples, options.seed) if len(scores) > 1 else None,
        human=human_bound(cut[0], said, options.metric_names, idf) if options.human else None,
        signature=_signature(options, references, ids, sides, corpus, idf_name),
        notes=_notes(options, references, ids, sides),
    )


def _ended(matched: Matched, ids: Sequence[str]) -> list[bool] | None:
    """Whether each caption ended by itself, if every row says so."""
    ended = [matched.captions[i].ended if i in matched.captions else None for i in ids]
    return None if None in ended else [bool(e) for e in ended]


def _signature(
    options: EvaluateOptions,
    references: References,
    ids: Sequence[str],
    sides: Sequence[Side],
    corpus: Corpus | None,
    idf_name: str,
) -> str:
    """All that a figure depends on besides the captions, in the manner of sacreBLEU (Post 2018)."""
    metrics = ",".join(KINDS[name] for name in options.metric_names)
    if {"meteor", "spice"} & set(options.metric_names):
        with suppress(PackageNotFoundError):
            metrics += f",jars=pycocoevalcap-{version('pycocoevalcap')}"
    judged = {i: references.captions[i] for i in ids}
    idf = "evaluated" if corpus is None else f"{idf_name}({len(corpus)} images,{_hash(corpus)})"
    without = "+".join(str(len(references.captions) - len(side.matched.captions)) for side in sides)
    return "|".join(
        (
            f"toolkit:{__version__}",
            f"metrics:{metrics}",
            "as:pycocoevalcap-1.2",
            "tok:ptb-corenlp-3.4.1",
            f"idf:{idf}",
            f"split:{references.split}",
            f"images:{len(ids)}/{len(references.captions)}",
            f"refs:{sum(map(len, judged.values()))}",
            f"missing:{without},{options.missing}",
            f"data:{_hash(judged)}",
            f"resamples:{options.resamples},seed={options.seed}",
        )
    )


def _hash(corpus: Corpus) -> str:
    return hash_hex(*(f"{i}\0{chr(0).join(corpus[i])}\n" for i in sorted(corpus)))[:12]


def _notes(options: EvaluateOptions, references: References, ids: Sequence[str], sides: Sequence[Side]) -> list[str]:
    notes = list(references.notes)
    for side in sides:
        prefix = f"{side.name}: " if len(sides) > 1 else ""
        notes += [prefix + sentence for sentence in side.matched.sentences(references)]
    left = len(references.captions) - len(ids)
    if left:
        notes.append(f"{left:,} images without a caption are left out (--missing empty counts them as empty captions)")
    elif any(len(side.matched.captions) < len(ids) for side in sides):
        notes.append("images without a caption count as empty captions (--missing skip leaves them out)")
    if (note := Spacing(caption for i in ids for caption in references.captions[i]).note()) is not None:
        notes.append(note)
    if len(ids) == 1 and options.idf == "evaluated" and any(m.startswith("cider") for m in options.metric_names):
        notes.append("CIDEr of a single image is 0: every word is in every image; --idf gives it a corpus")
    if "meteor" in options.metric_names:
        notes.append("METEOR sums counts that it does not show, so that it has no interval and no p-value")
    return notes


def label(path: str) -> str:
    """A short name for a column: the last part of a path."""
    return Path(path).name or path


def percent(value: float | None) -> str:
    """A fraction as it is published, times 100."""
    return "–" if value is None else f"{100 * value:.1f}"


def health_sentence(state: dict[str, Any]) -> str:
    """`toolkit.evaluation.metrics.health` in a line."""
    length = state["length"]
    parts = [
        f"{length['mean']:.1f} words a caption ({length['p5']:.0f} to {length['p95']:.0f} for 90 %)",
        f"{state['vocabulary']:,} different words",
        f"{state['distinct']:.1%} distinct",
    ]
    if state["novel"] is not None:
        parts.append(f"{state['novel']:.1%} not a train caption")
    if state["ended"] is not None:
        parts.append(f"{state['ended']:.1%} ended by themselves")
    return ", ".join([*parts, f"{state['loops']:.1%} loop", f"{state['empty']:.1%} empty"])
