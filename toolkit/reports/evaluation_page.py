"""The page of an evaluation: figures with intervals, distributions, and the images that are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ImageError
from toolkit.evaluation.judge import NAMES, Evaluation, Side, health_sentence, label, percent
from toolkit.evaluation.ptb import ptb_tokenize
from toolkit.evaluation.significance import LEVEL
from toolkit.reports.html import data_uri, write_page
from toolkit.runtime.overwrite import Output

CARDS = 12  # images a section: three sections make a page of half a megabyte
WIDTH, HEIGHT, BINS = 320, 110, 24  # of a histogram; the drawing is stretched to its place
SIDES = ("one", "two")  # classes of the style sheet
SHOWN = (
    "cider",
    "cider_d",
    "rouge_l",
    "bleu_4",
    "meteor",
    "spice",
    "cider_plain",
    "bleu_1",
)  # by what cards are ranked


def write_evaluation_page(page: Output, found: Evaluation) -> None:
    """One HTML file without any network; captions and names are escaped by the template."""
    names = [label(side.name) for side in found.sides]
    if len(set(names)) < len(names):
        names = [side.name for side in found.sides]
    judged = [name for name in SHOWN if name in found.sides[0].scores.per_image]
    write_page(
        page,
        "evaluation",
        title=f"{' and '.join(names)}, judged",
        facts=_facts(found),
        names=names,
        level=LEVEL,
        bars=[_bar(found, name) for name in found.sides[0].figures],
        human=found.human,
        plots=[_plot(found, name) for name in judged[:2]] + [_lengths(found)],
        health=[(name, health_sentence(side.health)) for name, side in zip(names, found.sides, strict=True)],
        sections=_sections(found, names, judged),
        notes=found.notes,
        signature=found.signature,
    )


def _facts(found: Evaluation) -> list[tuple[str, str]]:
    n_references = sum(len(found.references.captions[i]) for i in found.ids)
    of = len(found.references.captions)
    images = f"{len(found.ids):,}" + (f" of {of:,}" if of != len(found.ids) else "")
    return [
        ("references", found.references.name),
        ("images", images),
        ("references an image", f"{n_references / len(found.ids):.3g}"),
    ]


def _bar(found: Evaluation, name: str) -> dict[str, Any]:
    """A metric: places on an axis from 0 to `top`, in per cent of its width."""
    figures = [side.figures[name] for side in found.sides]
    highest = max([f.high or f.score for f in figures] + ([found.human.human[name]] if found.human else []))
    top = 1.0 if highest <= 1 else float(np.ceil(2 * highest) / 2)  # CIDEr has no end at 1

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * value / top, 2)

    difference = found.differences[name] if found.differences is not None else None
    return {
        "name": NAMES[name],
        "top": f"{100 * top:.0f}",
        "sides": [
            {"score": percent(f.score), "low": percent(f.low), "high": percent(f.high), "interval": f.low is not None,
             "x": place(f.score), "left": place(f.low), "width": place(f.high - f.low) if f.low is not None and
             f.high is not None else None} for f in figures
        ],
        "human": None if found.human is None else percent(found.human.human[name]),
        "same": None if found.human is None else percent(found.human.same[name]),
        "human_x": None if found.human is None else place(found.human.human[name]),
        "difference": None if difference is None else {
            "score": f"{100 * difference.score:+.1f}", "low": percent(difference.low), "high": percent(difference.high),
            "p": None if difference.p is None else f"{difference.p:.3f}", "interval": difference.low is not None,
        },
    }  # fmt: skip


def _outline(counts: np.ndarray, top: float) -> str:
    """A histogram as the path of its outline."""
    ys = HEIGHT - counts / max(top, 1e-12) * HEIGHT
    step = WIDTH / len(counts)
    points = " ".join(f"H{i * step:.1f} V{y:.1f}" for i, y in enumerate(ys))
    return f"M0,{HEIGHT} {points} H{WIDTH} V{HEIGHT} Z"


def _histogram(title: str, low: str, high: str, counts: Sequence[np.ndarray], kinds: Sequence[str], key: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Shares, one outline for each row of counts."""
    shares = [c / max(c.sum(), 1) for c in counts]
    top = max(float(s.max()) for s in shares)
    paths = [{"d": _outline(s, top), "kind": kind} for s, kind in zip(shares, kinds, strict=True)]
    return {"title": title, "low": low, "high": high, "paths": paths, "peak": f"{top:.0%}",
            "key": list(zip(kinds, key, strict=True))}  # fmt: skip


def _plot(found: Evaluation, name: str) -> dict[str, Any]:
    values = [side.scores.per_image[name] for side in found.sides]
    top = max(1.0, max(float(v.max()) for v in values))
    counts = [np.histogram(v, BINS, (0, top))[0] for v in values]
    return _histogram(
        f"{NAMES[name]} of each image", "0", f"{100 * top:.0f}", counts, SIDES[: len(values)], _names(found)
    )


def _names(found: Evaluation) -> list[str]:
    return [label(side.name) for side in found.sides]


def _lengths(found: Evaluation) -> dict[str, Any]:
    """Words of captions and of references."""
    said = [[len(ptb_tokenize(c)) for c in side.captions.values()] for side in found.sides]
    said.append([len(ptb_tokenize(c)) for i in found.ids for c in found.references.captions[i]])
    top = max(max(lengths) for lengths in said) + 1
    counts = [np.bincount(lengths, minlength=top) for lengths in said]
    kinds = [*SIDES[: len(found.sides)], "said"]
    return _histogram("Words a caption", "0", str(top - 1), counts, kinds, [*_names(found), "references"])


# ---- images ---------------------------------------------------------------------------------------------------------


def _sections(found: Evaluation, names: list[str], judged: list[str]) -> list[dict[str, Any]]:
    """Best, worst and most disagreeing images: of two sides by the difference of their figures; of one side those that
    two metrics rank most differently."""
    side = found.sides[0]
    place = {image_id: row for row, image_id in enumerate(side.scores.image_ids)}
    rows = np.array([place[i] for i in found.ids])
    figures = [{name: s.scores.per_image[name][rows] for name in judged} for s in found.sides]
    # ties of the first metric are settled by the next, then by the order of the references
    order = np.lexsort([figures[0][name] for name in reversed(judged[:3])])
    first, whose = NAMES[judged[0]], f" of {names[0]}" if len(names) > 1 else ""
    if len(found.ids) <= CARDS:
        chosen = [(f"All images, the lowest {first}{whose} first", order)]
    else:
        chosen = [
            (f"Lowest {first}{whose}", order[:CARDS]),
            (f"Highest {first}{whose}", order[::-1][:CARDS]),
        ]
        if len(figures) > 1:
            gap = np.abs(figures[1][judged[0]] - figures[0][judged[0]])
            chosen.append((f"Where the two differ most in {first}", np.argsort(-gap, kind="stable")[:CARDS]))
        elif len(judged) > 1:
            ranks = [np.argsort(np.argsort(figures[0][name], kind="stable")) for name in judged[:2]]
            gap = np.abs(ranks[0] - ranks[1])
            title = f"Where {first} and {NAMES[judged[1]]} disagree most"
            chosen.append((title, np.argsort(-gap, kind="stable")[:CARDS]))
    return [
        {"title": title, "cards": [_card(found, int(i), names, judged, figures) for i in at]} for title, at in chosen
    ]


def _card(
    found: Evaluation, row: int, names: list[str], judged: list[str], figures: list[dict[str, np.ndarray]]
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
            {"label": names[k], "caption": _said(side, image_id),
             "figures": [(NAMES[name], percent(float(figures[k][name][row]))) for name in judged[:3]]}
            for k, side in enumerate(found.sides)
        ],
    }  # fmt: skip


def _said(side: Side, image_id: str) -> str | None:
    return side.captions[image_id] or None
