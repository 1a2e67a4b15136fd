"""Scenes of simple objects: what is in them, their captions, and whether a caption is right.

A scene is one object in a place ("a small red cross on the left") or two with a relation ("a large blue cross above a
small green ring"). `toolkit sample` writes them to scenes.jsonl, so that a program can judge captions.

A combination is (colour, shape, position) of one object, or the (colour, shape) of both objects of a pair, whatever their
sizes and relation. Each combination belongs to one split, so a model that captions test images has never seen their
combinations and can't have memorised them.
"""

from __future__ import annotations

import itertools
import random
import re
from typing import Any, NotRequired, TypedDict

from toolkit.records import SPLITS
from toolkit.runtime.hashing import hash_int

COLOURS = {
    "red": (205, 40, 45),
    "green": (45, 150, 65),
    "blue": (40, 80, 200),
    "yellow": (240, 200, 40),
    "purple": (140, 60, 170),
    "black": (35, 35, 40),
}
SHAPES = ("ring", "square", "triangle", "cross")
SIZES = {"small": (0.14, 0.155), "large": (0.225, 0.24)}  # radius, as a share of the shorter side of the picture
SYNONYMS = {"little": "small", "big": "large"}
POSITIONS = {  # centre (x, y) as shares of width and height, jittered by 0.02
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the middle": (0.5, 0.5),
}
INVERSE = {
    "to the left of": "to the right of",
    "above": "below",
    "to the right of": "to the left of",
    "below": "above",
}
# Five wordings of each scene: {a} is "small red cross", {p} a position, {r} the relation of a to b, {i} its inverse.
ONE = ("a {a} {p}", "there is a {a} {p}", "{p} there is a {a}", "the picture shows a {a} {p}", "a {A} , {p}")
TWO = (
    "a {a} {r} a {b}",
    "there is a {a} {r} a {b}",
    "a {b} {i} a {a}",
    "the picture shows a {a} {r} a {b}",
    "a {A} , and {i} it a {B}",
)
SPLIT_SHARES = {"train": 0.86, "validation": 0.04, "test": 0.1}


class SceneObject(TypedDict):
    """One object; lengths in pixels. `bbox` is added when it is drawn."""

    shape: str
    colour: str
    size: str
    centre: list[float]
    radius: float
    bbox: NotRequired[list[int]]


class Scene(TypedDict):
    """A line of scenes.jsonl; `says` is the position of a single object, or the relation of the first to the second."""

    image: str
    split: str
    width: int
    height: int
    objects: list[SceneObject]
    says: str


def combination(kinds: list[tuple[str, str]], says: str) -> str:
    """The name of a combination of objects, (colour, shape) each; it belongs to one split."""
    objects = sorted(f"{colour} {shape}" for colour, shape in kinds)
    return " & ".join(objects if len(objects) == 2 else [*objects, says])


def split_of_combination(name: str) -> str:
    """Fixed for all seeds and sizes: a tenth of the combinations is for validation, a tenth for test."""
    u = hash_int(f"sample {name}") % 10
    return {0: "validation", 1: "test"}.get(u, "train")


def _candidates() -> dict[tuple[str, int], list[tuple[Any, ...]]]:
    """All combinations by (split, number of objects); an item is (kind, kind, position or None)."""
    kinds = list(itertools.product(COLOURS, SHAPES))
    found: dict[tuple[str, int], list[tuple[Any, ...]]] = {(s, n): [] for s in SPLITS for n in (1, 2)}
    for (colour, shape), position in itertools.product(kinds, POSITIONS):
        found[split_of_combination(combination([(colour, shape)], position)), 1].append(
            ((colour, shape), None, position)
        )
    for a, b in itertools.combinations(kinds, 2):
        # Two objects of one colour or shape would repeat words in a caption, which generation with
        # no_repeat_ngram_size 3 forbids ("a small red cross above a small red cross").
        if a[0] != b[0] and a[1] != b[1]:
            found[split_of_combination(combination([a, b], "")), 2].append((a, b, None))
    return found


CANDIDATES = _candidates()


def make_scene(index: int, rng: random.Random) -> Scene:
    """A random scene."""
    split = rng.choices(SPLITS, [SPLIT_SHARES[s] for s in SPLITS])[0]
    number = 1 if rng.random() < 0.35 else 2
    width = rng.randint(96, 176)
    height = round(width * rng.uniform(0.75, 1.33))
    a, b, says = rng.choice(CANDIDATES[split, number])
    if number == 1:
        kinds, places = [a], [POSITIONS[says]]
    else:
        kinds = [a, b] if rng.random() < 0.5 else [b, a]
        says = rng.choice(("to the left of", "above"))
        across = rng.uniform(0.35, 0.65)
        near, far = 0.24, 0.76
        places = [(near, across), (far, 1 - across)] if says != "above" else [(across, near), (1 - across, far)]
    objects: list[SceneObject] = []
    for (colour, shape), (x, y) in zip(kinds, places, strict=True):
        size = rng.choice(tuple(SIZES))
        centre = [(x + rng.uniform(-0.02, 0.02)) * width, (y + rng.uniform(-0.02, 0.02)) * height]
        radius = rng.uniform(*SIZES[size]) * min(width, height)
        objects.append({"shape": shape, "colour": colour, "size": size, "centre": centre, "radius": radius})
    for item in objects:
        item["centre"] = [round(v, 1) for v in item["centre"]]
        item["radius"] = round(item["radius"], 1)
    suffix = "png" if rng.random() < 0.25 else "jpg"
    name = f"scene-{index:06d}.{suffix}"
    return {"image": name, "split": split, "width": width, "height": height, "objects": objects, "says": says}


def _name(item: SceneObject, plain: bool = True) -> str:
    size = item["size"] if plain else {v: k for k, v in SYNONYMS.items()}[item["size"]]
    return f"{size} {item['colour']} {item['shape']}"


def captions_of(scene: Scene) -> list[str]:
    """The five captions of a scene, all correct."""
    first, last = scene["objects"][0], scene["objects"][-1]
    words = {"a": _name(first), "A": _name(first, False), "b": _name(last), "B": _name(last, False)}
    if len(scene["objects"]) == 1:
        return [template.format(**words, p=scene["says"]) for template in ONE]
    return [template.format(**words, r=scene["says"], i=INVERSE[scene["says"]]) for template in TWO]


def judge(caption: str, scene: Scene) -> bool:
    """Whether a caption describes the scene exactly: size, colour and shape of every object, and where it is.

    Any of the wordings above is right, with the two objects in either order; anything else is wrong.
    """
    for old, new in SYNONYMS.items():
        caption = re.sub(rf"\b{old}\b", new, caption)
    right = captions_of(scene)
    if len(scene["objects"]) == 2:
        turned: Scene = {**scene, "objects": scene["objects"][::-1], "says": INVERSE[scene["says"]]}
        right += captions_of(turned)
    for old, new in SYNONYMS.items():
        right = [re.sub(rf"\b{old}\b", new, text) for text in right]
    return " ".join(caption.split()) in right
