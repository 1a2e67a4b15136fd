"""Scores one or several sets of captions: matching, metrics with intervals, comparison, health, signature."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from toolkit import __version__
from toolkit.errors import InputError
from toolkit.evaluation.clip_score import ClipJudge, judged_by_clip
from toolkit.evaluation.diversity import Diversity, diversity, own_words
from toolkit.evaluation.groups import Group, by_group, column_for
from toolkit.evaluation.health import Health, health
from toolkit.evaluation.hypotheses import Hypotheses
from toolkit.evaluation.matching import Matched, match
from toolkit.evaluation.metrics import Corpus, Scores, prepare
from toolkit.evaluation.references import References, Source, read_idf
from toolkit.evaluation.shown import NAMES, percent
from toolkit.evaluation.significance import (
    Difference,
    HumanBound,
    Metric,
    compare_all,
    human_bound,
    intervals,
    tokenized,
    words,
)
from toolkit.evaluation.tokenizers import PTB, Choice, Tokenizer, choose_tokenizer
from toolkit.options import EvaluateOptions
from toolkit.runtime.hashing import hash_hex

KINDS = {
    "bleu": "bleu(closest)",
    "rouge_l": "rouge_l(beta=1.2)",
    "cider": "cider(D,sigma=6)",
    "cider_d": "cider_d(sigma=6)",
    "cider_plain": "cider_plain",
    "meteor": "meteor(1.5)",
    "spice": "spice(1.0)",
    "spider": "spider(spice=1.0,cider=D,sigma=6)",
}
ENGLISH = ("meteor", "spice", "spider")  # with data of pycocoevalcap, in words of PTB


@dataclass(frozen=True)
class System:
    """One set of captions and its metrics.

    Attributes:
        captions: image id -> caption, for the scored images; "" for a missing one with `--missing empty`.
        diversity: of the images' several captions; None if they have one each.
        groups: its metrics by the values of `--by`; None without it.
    """

    name: str
    format: str
    matched: Matched
    captions: dict[str, str]
    scores: Scores
    metrics: dict[str, Metric]
    health: Health
    diversity: Diversity | None = None
    groups: list[Group] | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result: the table, `--json`, `--per-image` and `--page` are made from it.

    Attributes:
        ids: the scored images, in the order of the references.
        words: what captions were cut into words by.
        people: the first reference of each image, to compare lengths and vocabulary with: as many captions; None without
            references.
        people_diversity: of all references of an image, if a system has several captions.
        by: the column of the systems' `groups`.
        differences: for each other system its metrics less the first's.
        notes: sentences for the reader.
    """

    references: References
    ids: list[str]
    systems: list[System]
    words: Choice
    people: Health | None
    people_diversity: Diversity | None
    differences: list[dict[str, Difference]]
    human: HumanBound | None
    signature: str
    notes: list[str]
    by: str | None = None


def judge(
    given: Sequence[Hypotheses], references: References, options: EvaluateOptions, clips: Sequence[ClipJudge] = ()
) -> Evaluation:
    """Scores one or several sets of captions on the same images.

    Args:
        references: their captions; those of `unreferenced` leave out all metrics but `clips`.
        clips: metrics that look at the images, beside `options.metric_names`.

    Raises:
        InputError: no image has a caption from each system, or for `clips` an image can't be read.
        ToolkitError: METEOR or SPICE can't run here.
    """
    matched = [match(hypotheses, references) for hypotheses in given]
    ids = _scored(given, matched, references, options)
    corpus, idf_name = None, "evaluated"
    if options.idf != "evaluated":
        corpus, idf_name = read_idf(options.idf, references, Source.of(options))
    column = None if options.by is None else column_for(options.by, given[0], references, Source.of(options))
    chosen = _tokenizer(options, references, given[0])
    tokenizer = chosen.tokenizer
    said = tokenized({i: references.captions[i] for i in ids}, tokenizer.words)
    idf = None if corpus is None else tokenized(corpus, tokenizer.words)
    captions = [{i: m.captions[i].caption or "" if i in m.captions else "" for i in ids} for m in matched]
    # Tokenised once, for the scores and for each round of the human bound.
    once = [tokenized({i: [c] for i, c in system.items()}, tokenizer.words) for system in captions]
    cut = [{i: lines[0] for i, lines in system.items()} for system in once]
    several = [{i: m.captions[i].captions for i in ids if i in m.captions} for m in matched]
    if references.reason is None:
        prepared = prepare(said, idf, words)
        scores = [prepared.score(system, options.metric_names) for system in cut]
    else:
        prepared = own_words(several, captions[0], tokenizer)
        scores = [Scores(sorted(ids), {}, {}) for _ in given]
    scores, signed, noted = judged_by_clip(clips, scores, captions, references)
    metrics = intervals(scores, options.resamples, options.seed)
    states = [
        health(list(c.values()), _ended(m, ids), references.train, tokenizer)
        for m, c in zip(matched, captions, strict=True)
    ]
    diversities = [diversity(all_, prepared, tokenizer) for all_ in several]
    groups = [None if column is None else by_group(s, column, options.resamples, options.seed) for s in scores]
    systems = [
        System(h.source, h.format, *found)
        for h, *found in zip(given, matched, captions, scores, metrics, states, diversities, groups, strict=True)
    ]
    judged = {i: references.captions[i] for i in ids}
    return Evaluation(
        references=references,
        ids=ids,
        systems=systems,
        words=chosen,
        people=health([s[0] for s in judged.values()], tokenizer=tokenizer) if references.reason is None else None,
        people_diversity=diversity(judged, prepared, tokenizer) if any(diversities) else None,
        differences=compare_all(scores, options.resamples, options.seed),
        human=human_bound(cut[0], said, options.metric_names, idf) if options.human else None,
        signature=_signature(options, references, ids, systems, corpus, idf_name, tokenizer, signed),
        by=options.by,
        notes=[*_notes(options, references, ids, systems), *chosen.notes(), *noted],
    )


def _scored(
    given: Sequence[Hypotheses], matched: Sequence[Matched], references: References, options: EvaluateOptions
) -> list[str]:
    """The images that are scored."""
    ids = [i for i in references.captions if options.missing == "empty" or all(i in m.captions for m in matched)]
    if not ids:
        raise InputError(
            f"{given[0].source}: "
            + (
                f"every row{'' if references.reason else f' for {references.name}'} is an error; see its column error, or use --missing empty."
                if len(given) == 1 or not matched[0].captions
                else f"has no image in common with {' and '.join(other.source for other in given[1:])}; name captions of the same images."
            )
        )
    if options.human and all(len(references.captions[i]) < 2 for i in ids):
        raise InputError(f"--human: no image of {references.name} has two references; leave the option out.")
    return ids


def _tokenizer(options: EvaluateOptions, references: References, hypotheses: Hypotheses) -> Choice:
    """Chosen by all references of the split, not only by those that captions were found for; without any by the captions."""
    if references.reason is not None:
        return choose_tokenizer(options.tokenize, (row.caption or "" for row in hypotheses.rows), "captions")
    chosen = choose_tokenizer(options.tokenize, (c for said in references.captions.values() for c in said))
    english = [name for name in ENGLISH if name in options.metric_names]
    if english and chosen.tokenizer is not PTB:
        why = chosen.sentence if options.tokenize == "auto" else f"--tokenize is {chosen.tokenizer.name}"
        raise InputError(
            f"--metrics {english[0]}: knows only English, in words of --tokenize ptb, but {why}; leave one of the two out."
        )
    return chosen


def _ended(matched: Matched, ids: Sequence[str]) -> list[bool] | None:
    """Whether each caption ended with EOS; None unless every row says so."""
    ended = [matched.captions[i].ended if i in matched.captions else None for i in ids]
    return None if None in ended else [bool(e) for e in ended]


def _signature(
    options: EvaluateOptions,
    references: References,
    ids: Sequence[str],
    systems: Sequence[System],
    corpus: Corpus | None,
    idf_name: str,
    tokenizer: Tokenizer,
    clips: Sequence[str],
) -> str:
    """Everything that the metrics depend on besides the captions, like sacreBLEU's signature (Post 2018)."""
    names = options.metric_names if references.reason is None else ()
    metrics = [KINDS[name] for name in names]
    if set(ENGLISH) & set(names):
        with suppress(PackageNotFoundError):
            metrics.append(f"jars=pycocoevalcap-{version('pycocoevalcap')}")
    metrics += clips
    judged = {i: references.captions[i] for i in ids}
    if references.reason is not None:
        idf_name = "captions"
    idf = idf_name if corpus is None else f"{idf_name}({len(corpus)} images,{_hash(corpus)})"
    without = "+".join(str(len(references.captions) - len(system.matched.captions)) for system in systems)
    return "|".join(
        (
            f"toolkit:{__version__}",
            f"metrics:{','.join(metrics)}",
            *(["as:pycocoevalcap-1.2"] if names else []),
            f"tok:{tokenizer.signature}",
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


def _notes(
    options: EvaluateOptions, references: References, ids: Sequence[str], systems: Sequence[System]
) -> list[str]:
    notes = list(references.notes)
    for system in systems:
        prefix = f"{system.name}: " if len(systems) > 1 else ""
        notes += [prefix + sentence for sentence in system.matched.sentences(references)]
    left = len(references.captions) - len(ids)
    if left:
        notes.append(f"{left:,} images without a caption are left out (--missing empty counts them as empty captions)")
    elif any(len(system.matched.captions) < len(ids) for system in systems):
        notes.append("images without a caption count as empty captions (--missing skip leaves them out)")
    if references.reason is not None:
        return notes
    if len(ids) == 1 and options.idf == "evaluated" and any(m.startswith("cider") for m in options.metric_names):
        notes.append(
            "CIDEr of a single image is 0, because every word occurs in every image; use --idf with a larger corpus"
        )
    if "meteor" in options.metric_names:
        notes.append(
            "METEOR has no interval and no p-value, because its corpus score can't be computed from its scores per image"
        )
    return notes


def health_sentences(found: Evaluation, names: Sequence[str]) -> list[tuple[str, str]]:
    """(whose captions, what there is to know of them), also of the references; `names` are the systems'."""
    unit = found.words.tokenizer.unit
    people = "a person (the first reference of each image)"
    lines = [(name, system.health.sentence(unit)) for name, system in zip(names, found.systems, strict=True)]
    if found.people is not None:
        lines.append((people, found.people.sentence(unit)))
    several = [(name, system.diversity) for name, system in zip(names, found.systems, strict=True)]
    several.append(("references", found.people_diversity))
    return lines + [(name, state.sentence()) for name, state in several if state is not None]


def group_table(groups: Sequence[Group], shown: int = 30) -> list[list[str]]:
    """A header and a row for each of the largest groups, as text."""
    names = list(groups[0].metrics)
    rows = [["", "images", *(NAMES[name] for name in names)]]
    for group in groups[:shown]:
        rows.append([group.value, f"{group.images:,}", *(with_interval(group.metrics[name]) for name in names)])
    if len(groups) > shown:
        rest = groups[shown:]
        rows.append([f"{len(rest):,} more", f"{sum(group.images for group in rest):,}", *("" for _ in names)])
    return rows


def with_interval(metric: Metric) -> str:
    return percent(metric.score) + (
        f" [{percent(metric.low)}, {percent(metric.high)}]" if metric.low is not None else ""
    )


def label(path: str) -> str:
    """The last part of a path, as a short name."""
    return Path(path).name or path
