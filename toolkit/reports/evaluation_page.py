"""The page of an evaluation: metrics with intervals, distributions, and the images worth looking at."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from toolkit.errors import ImageError
from toolkit.evaluation.judge import Evaluation, System, group_table, health_sentences, label
from toolkit.evaluation.shown import NAMES, percent
from toolkit.evaluation.significance import LEVEL
from toolkit.reports.charts import TONES, Chart, histogram, number, within
from toolkit.reports.html import chart_script, data_uri, write_page
from toolkit.runtime.overwrite import Output

CARDS = 12  # images per section: three sections make a page of half a megabyte
BINS = 24  # of a histogram
SHOWN = (
    "cider",
    "cider_d",
    "rouge_l",
    "bleu_4",
    "meteor",
    "spice",
    "spider",
    "cider_plain",
    "bleu_1",
    "clip_score",
    "ref_clip_score",
    "pac_score",
    "ref_pac_score",
)  # in this order: cards are ranked by the first ones


def write_evaluation_page(page: Output, found: Evaluation) -> None:
    """One HTML file that needs no network; the template escapes captions and names."""
    names = [label(system.name) for system in found.systems]
    if len(set(names)) < len(names):
        names = [system.name for system in found.systems]
    judged = [name for name in SHOWN if name in found.systems[0].scores.per_image]
    write_page(
        page,
        "evaluation",
        title=f"{' and '.join(names)}, evaluated",
        facts=_facts(found),
        names=names,
        kinds=_kinds(found),
        systems=[{"tone": tone, "name": name} for tone, name in zip(_kinds(found), names, strict=True)],
        level=LEVEL,
        bars=[_bar(found, name) for name in found.systems[0].metrics],
        human=found.human,
        plots=[_plot(found, name) for name in judged[:2]] + [_lengths(found)],
        health=health_sentences(found, names),
        by=found.by,
        groups=[
            (name, group_table(system.groups))
            for name, system in zip(names, found.systems, strict=True)
            if system.groups is not None
        ],
        sections=_sections(found, names, judged),
        notes=found.notes,
        signature=found.signature,
        **chart_script(),
    )


def _facts(found: Evaluation) -> list[tuple[str, str]]:
    n_references = sum(len(found.references.captions[i]) for i in found.ids)
    of = len(found.references.captions)
    images = f"{len(found.ids):,}" + (f" of {of:,}" if of != len(found.ids) else "")
    if not n_references:
        return [("references", "none"), ("images", images)]
    return [
        ("references", found.references.name),
        ("images", images),
        ("references per image", f"{n_references / len(found.ids):.3g}"),
    ]


def _bar(found: Evaluation, name: str) -> dict[str, Any]:
    """One metric: positions on an axis from 0 to `top`, in per cent of its width."""
    metrics = [system.metrics[name] for system in found.systems]
    people = (None, None) if found.human is None else (found.human.human.get(name), found.human.same.get(name))
    highest = max(value for value in (*(f.high or f.score for f in metrics), people[0]) if value is not None)
    top = 1.0 if highest <= 1 else float(np.ceil(2 * highest) / 2)  # CIDEr can exceed 1

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * value / top, 2)

    differences = [each[name] for each in found.differences]
    return {
        "name": NAMES[name],
        "top": f"{100 * top:.0f}",
        "ticks": [(round(tick / top, 2), number(tick)) for tick in within(0.0, 100 * top)],
        "systems": [
            {"score": percent(f.score), "low": percent(f.low), "high": percent(f.high), "interval": f.low is not None,
             "x": place(f.score), "left": place(f.low), "width": place(f.high - f.low) if f.low is not None and
             f.high is not None else None} for f in metrics
        ],
        "human": None if people[0] is None else percent(people[0]),
        "same": None if people[1] is None else percent(people[1]),
        "human_x": place(people[0]),
        "differences": [
            {"score": f"{100 * d.score:+.1f}", "low": percent(d.low), "high": percent(d.high),
             "p": None if d.p_holm is None else f"{d.p_holm:.3f}", "interval": d.low is not None} for d in differences
        ],
    }  # fmt: skip


def _plot(found: Evaluation, name: str) -> Chart:
    """How a metric is spread over the images."""
    values = [100 * system.scores.per_image[name] for system in found.systems]
    edges = np.linspace(0.0, 100 * max(1.0, max(float(v.max()) for v in values) / 100), BINS + 1)
    rows = [
        (system, tone, np.histogram(v, edges)[0])
        for system, tone, v in zip(_names(found), _kinds(found), values, strict=True)
    ]
    bins = [f"{low:.1f} to {high:.1f}" for low, high in itertools.pairwise(edges)]
    return histogram(f"{NAMES[name]} of each image", rows, edges.tolist(), bins, NAMES[name])


def _kinds(found: Evaluation) -> list[str]:
    return [TONES[k % len(TONES)] for k in range(len(found.systems))]


def _names(found: Evaluation) -> list[str]:
    return [label(system.name) for system in found.systems]


def _lengths(found: Evaluation) -> Chart:
    """Words of captions and of references."""
    tokenizer = found.words.tokenizer
    said = [[len(tokenizer.words(c)) for c in system.captions.values()] for system in found.systems]
    kinds, key = _kinds(found), _names(found)
    if found.references.reason is None:
        said.append([len(tokenizer.words(c)) for i in found.ids for c in found.references.captions[i]])
        kinds, key = [*kinds, "said"], [*key, "references"]
    top = max(max(lengths) for lengths in said) + 1
    counts = [np.bincount(lengths, minlength=top) for lengths in said]
    rows = list(zip(key, kinds, counts, strict=True))
    edges = [n - 0.5 for n in range(top + 1)]
    return histogram(
        f"{tokenizer.unit.capitalize()}s per caption", rows, edges, list(map(str, range(top))), f"{tokenizer.unit}s"
    )


# ---- images ---------------------------------------------------------------------------------------------------------


def _sections(found: Evaluation, names: list[str], judged: list[str]) -> list[dict[str, Any]]:
    """Lowest, highest and most disagreeing images: those where systems differ most, or, with one system, those that two
    metrics rank most differently."""
    system = found.systems[0]
    place = {image_id: row for row, image_id in enumerate(system.scores.image_ids)}
    rows = np.array([place[i] for i in found.ids])
    metrics = [{name: s.scores.per_image[name][rows] for name in judged} for s in found.systems]
    # ties are broken by the next metrics, then by the order of the references
    order = np.lexsort([metrics[0][name] for name in reversed(judged[:3])])
    first, whose = NAMES[judged[0]], f" of {names[0]}" if len(names) > 1 else ""
    if len(found.ids) <= CARDS:
        chosen = [(f"All images, lowest {first}{whose} first", order)]
    else:
        chosen = [
            (f"Lowest {first}{whose}", order[:CARDS]),
            (f"Highest {first}{whose}", order[::-1][:CARDS]),
        ]
        if len(metrics) > 1:
            gap = np.ptp(np.stack([values[judged[0]] for values in metrics]), axis=0)
            chosen.append((f"Largest differences in {first}", np.argsort(-gap, kind="stable")[:CARDS]))
        elif len(judged) > 1:
            ranks = [np.argsort(np.argsort(metrics[0][name], kind="stable")) for name in judged[:2]]
            gap = np.abs(ranks[0] - ranks[1])
            title = f"Largest disagreements between {first} and {NAMES[judged[1]]}"
            chosen.append((title, np.argsort(-gap, kind="stable")[:CARDS]))
    return [
        {"title": title, "cards": [_card(found, int(i), names, judged, metrics) for i in at]} for title, at in chosen
    ]


def _card(
    found: Evaluation, row: int, names: list[str], judged: list[str], metrics: list[dict[str, np.ndarray]]
) -> dict[str, Any]:
    image_id = found.ids[row]
    picture, error = None, None
    try:
        picture = found.references.picture(image_id)
    except ImageError as why:
        error = str(why)
    return {
        "name": found.references.paths[image_id],
        "error": error,
        "thumbnail": None if picture is None else data_uri(picture),
        "references": found.references.captions[image_id],
        "said": [
            {"label": names[k], "caption": _said(system, image_id),
             "metrics": [(NAMES[name], percent(float(metrics[k][name][row]))) for name in judged[:3]]}
            for k, system in enumerate(found.systems)
        ],
    }  # fmt: skip


def _said(system: System, image_id: str) -> str | None:
    return system.captions[image_id] or None
