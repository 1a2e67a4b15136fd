"""The page of an evaluation: metrics with intervals, distributions, and the images worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ImageError
from toolkit.evaluation.judge import Evaluation, System, group_table, health_sentences, label
from toolkit.evaluation.shown import NAMES, percent
from toolkit.evaluation.significance import LEVEL
from toolkit.reports.html import data_uri, write_page
from toolkit.runtime.overwrite import Output

CARDS = 12  # images per section: three sections make a page of half a megabyte
WIDTH, HEIGHT, BINS = 320, 110, 24  # of a histogram; the page stretches it to the available width
SYSTEMS = ("one", "two", "three", "four", "five", "six")  # CSS classes; more systems take them again
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
        key_of_systems=list(zip(_kinds(found), names, strict=True)),
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


def _outline(counts: np.ndarray, top: float) -> str:
    """A histogram as the path of its outline."""
    ys = HEIGHT - counts / max(top, 1e-12) * HEIGHT
    step = WIDTH / len(counts)
    points = " ".join(f"H{i * step:.1f} V{y:.1f}" for i, y in enumerate(ys))
    return f"M0,{HEIGHT} {points} H{WIDTH} V{HEIGHT} Z"


def _histogram(title: str, high: str, counts: Sequence[np.ndarray], kinds: Sequence[str], key: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Shares, one outline per row of counts."""
    shares = [c / max(c.sum(), 1) for c in counts]
    top = max(float(s.max()) for s in shares)
    paths = [{"d": _outline(s, top), "kind": kind} for s, kind in zip(shares, kinds, strict=True)]
    return {"title": title, "low": "0", "high": high, "paths": paths, "peak": f"{top:.0%}",
            "key": list(zip(kinds, key, strict=True))}  # fmt: skip


def _plot(found: Evaluation, name: str) -> dict[str, Any]:
    values = [system.scores.per_image[name] for system in found.systems]
    top = max(1.0, max(float(v.max()) for v in values))
    counts = [np.histogram(v, BINS, (0, top))[0] for v in values]
    return _histogram(f"{NAMES[name]} of each image", f"{100 * top:.0f}", counts, _kinds(found), _names(found))


def _kinds(found: Evaluation) -> list[str]:
    return [SYSTEMS[k % len(SYSTEMS)] for k in range(len(found.systems))]


def _names(found: Evaluation) -> list[str]:
    return [label(system.name) for system in found.systems]


def _lengths(found: Evaluation) -> dict[str, Any]:
    """Words of captions and of references."""
    tokenizer = found.words.tokenizer
    said = [[len(tokenizer.words(c)) for c in system.captions.values()] for system in found.systems]
    kinds, key = _kinds(found), _names(found)
    if found.references.reason is None:
        said.append([len(tokenizer.words(c)) for i in found.ids for c in found.references.captions[i]])
        kinds, key = [*kinds, "said"], [*key, "references"]
    top = max(max(lengths) for lengths in said) + 1
    counts = [np.bincount(lengths, minlength=top) for lengths in said]
    return _histogram(f"{tokenizer.unit.capitalize()}s per caption", str(top - 1), counts, kinds, key)


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
