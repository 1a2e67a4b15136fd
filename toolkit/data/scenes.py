"""`toolkit sample`: draws a captioned data set of simple scenes, and judges captions of them.

A scene is one object in a place ("a small red cross on the left") or two with a relation ("a large blue cross above a
small green ring"). What is in it is written to scenes.jsonl, so that a program can say whether a caption is right.

A combination is what stands together in a scene: (colour, shape, position) of one object, or the two (colour, shape)
of a pair, whatever their sizes and relation. Each combination belongs to one split, so a model that captions the test
images has never seen their combinations, and can't have learnt them by heart.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toolkit.errors import OutputError
from toolkit.records import SPLITS, Summary
from toolkit.runtime.hashing import hash_int
from toolkit.runtime.progress import Progress

COLOURS = {
    "red": (205, 40, 45),
    "green": (45, 150, 65),
    "blue": (40, 80, 200),
    "yellow": (240, 200, 40),
    "purple": (140, 60, 170),
    "black": (35, 35, 40),
}
SHAPES = ("ring", "square", "triangle", "cross")
SIZES = {"small": (0.14, 0.155), "large": (0.225, 0.24)}  # radius, as a share of the picture's shorter side
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
# Of each scene five wordings; {a} is "small red cross", {p} a position, {r} the relation of a to b, {i} its inverse.
ONE = ("a {a} {p}", "there is a {a} {p}", "{p} there is a {a}", "the picture shows a {a} {p}", "a {A} , {p}")
TWO = (
    "a {a} {r} a {b}",
    "there is a {a} {r} a {b}",
    "a {b} {i} a {a}",
    "the picture shows a {a} {r} a {b}",
    "a {A} , and {i} it a {B}",
)
SPLIT_SHARES = {"train": 0.86, "validation": 0.04, "test": 0.1}
LIST_NAMES = {"train": "trainImages.txt", "validation": "devImages.txt", "test": "testImages.txt"}


def draw_sample(directory: Path, images: int, seed: int) -> Summary:
    """Writes `captions.txt` and `Images/` in Flickr8k's form, the lists of its splits, and `scenes.jsonl`.

    The same seed gives the same bytes, and image i does not depend on how many follow. All is drawn in a folder beside
    and moved at the end, so what was interrupted never looks finished.

    Raises:
        OutputError: the folder exists and is not empty, or can't be written.
    """
    target = directory.resolve()  # "." has no name of its own
    temporary = None
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{directory}: exists and is not an empty folder; name a new one.")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody has: a fixed one could be a folder of the user's.
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        drawn = temporary / target.name
        counts = _write(drawn, images, seed)
        if target.exists():
            # Filled, not replaced: it may be the folder that the user's shell is in. Without captions.txt, which comes
            # last, it is no data set.
            for path in sorted(drawn.iterdir(), key=lambda path: (path.name == "captions.txt", path.name)):
                os.rename(path, target / path.name)
        else:
            os.rename(drawn, target)
    except OSError as error:
        raise OutputError(f"{directory}: can't be written ({error.strerror or error}); name another folder.") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    text = f"{directory}: {images} images, 5 captions each; " + ", ".join(f"{k} {v}" for k, v in counts.items())
    return Summary(text, {"directory": str(directory), "images": images, **counts})


def _write(directory: Path, images: int, seed: int) -> dict[str, int]:
    """Draws everything into a new folder; the number of images by split."""
    (directory / "Images").mkdir(parents=True)
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    with (
        open(directory / "captions.txt", "w", newline="", encoding="utf-8") as captions_file,
        open(directory / "scenes.jsonl", "w", encoding="utf-8") as scenes_file,
        Progress("sample", images) as progress,
    ):
        writer = csv.writer(captions_file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        for i in range(images):
            scene, picture = draw_scene(i, seed)
            picture.save(directory / "Images" / scene["image"], quality=92)  # of a JPEG; a PNG takes no notice
            writer.writerows((scene["image"], caption) for caption in captions_of(scene))
            scenes_file.write(json.dumps(scene) + "\n")
            names[scene["split"]].append(scene["image"])
            progress.update()
    for split, name in LIST_NAMES.items():
        (directory / name).write_text("".join(image + "\n" for image in names[split]), encoding="utf-8")
    return {split: len(found) for split, found in names.items()}


# ---- scenes ---------------------------------------------------------------------------------------------------------


def combination(scene: dict[str, Any]) -> str:
    """What belongs to one split alone."""
    objects = sorted(f"{o['colour']} {o['shape']}" for o in scene["objects"])
    return " & ".join(objects if len(objects) == 2 else [*objects, scene["says"]])


def split_of_combination(name: str) -> str:
    """Fixed for all seeds and sizes: a tenth of the combinations are for validation, a tenth for test."""
    u = hash_int(f"sample {name}") % 10
    return {0: "validation", 1: "test"}.get(u, "train")


def _candidates() -> dict[tuple[str, int], list[tuple[Any, ...]]]:
    """All combinations by (split, number of objects); an item is (kind, kind, position or None)."""
    kinds = list(itertools.product(COLOURS, SHAPES))
    found: dict[tuple[str, int], list[tuple[Any, ...]]] = {(s, n): [] for s in SPLITS for n in (1, 2)}
    for (colour, shape), position in itertools.product(kinds, POSITIONS):
        scene = {"objects": [{"colour": colour, "shape": shape}], "says": position}
        found[split_of_combination(combination(scene)), 1].append(((colour, shape), None, position))
    for a, b in itertools.combinations(kinds, 2):
        # Two of a colour or a shape would need the same words twice in one caption, which decoding with
        # no_repeat_ngram_size 3 forbids ("a small red cross above a small red cross").
        if a[0] != b[0] and a[1] != b[1]:
            scene = {"objects": [{"colour": c, "shape": s} for c, s in (a, b)], "says": ""}
            found[split_of_combination(combination(scene)), 2].append((a, b, None))
    return found


CANDIDATES = _candidates()


def make_scene(index: int, rng: random.Random) -> dict[str, Any]:
    """One scene: {"image", "split", "width", "height", "objects": [...], "says"}.

    An object is {"shape", "colour", "size", "centre": [x, y], "radius"} in pixels; `says` is the position of a single
    object, or the relation of the first object to the second.
    """
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
    objects = []
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


def _name(item: dict[str, Any], plain: bool = True) -> str:
    size = item["size"] if plain else {v: k for k, v in SYNONYMS.items()}[item["size"]]
    return f"{size} {item['colour']} {item['shape']}"


def captions_of(scene: dict[str, Any]) -> list[str]:
    """The five captions of a scene, all right."""
    first, last = scene["objects"][0], scene["objects"][-1]
    words = {"a": _name(first), "A": _name(first, False), "b": _name(last), "B": _name(last, False)}
    if len(scene["objects"]) == 1:
        return [template.format(**words, p=scene["says"]) for template in ONE]
    return [template.format(**words, r=scene["says"], i=INVERSE[scene["says"]]) for template in TWO]


def judge(caption: str, scene: dict[str, Any]) -> bool:
    """Whether a caption says exactly what is in the scene: every object with size, colour and shape, and where.

    Any wording of the grammar is right, with the two objects in either order; anything else is wrong.
    """
    for old, new in SYNONYMS.items():
        caption = re.sub(rf"\b{old}\b", new, caption)
    right = captions_of(scene)
    if len(scene["objects"]) == 2:
        turned = {**scene, "objects": scene["objects"][::-1], "says": INVERSE[scene["says"]]}
        right += captions_of(turned)
    for old, new in SYNONYMS.items():
        right = [re.sub(rf"\b{old}\b", new, text) for text in right]
    return " ".join(caption.split()) in right


# ---- drawing --------------------------------------------------------------------------------------------------------


def _outline(shape: str, x: float, y: float, r: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape that fits a circle of radius r around (x, y); a ring's outer edge is a polygon of 48."""

    def at(angle: float, radius: float) -> tuple[float, float]:
        return (x + radius * math.sin(angle + turn), y - radius * math.cos(angle + turn))

    if shape == "ring":
        return [at(k * math.pi / 24, r) for k in range(48)]
    if shape == "square":
        return [at(math.pi / 4 + k * math.pi / 2, r * 1.15) for k in range(4)]
    if shape == "triangle":
        return [at(k * 2 * math.pi / 3, r * 1.15) for k in range(3)]
    arm = math.atan(1 / 3)
    corners = []
    for k in range(4):
        side = k * math.pi / 2
        corners += [at(side - arm, r * 1.1), at(side + arm, r * 1.1), at(side + math.pi / 4, r * 0.47)]
    return corners


def _draw(mask: Image.Image, shape: str, x: float, y: float, r: float, turn: float, value: int) -> None:
    """Fills a shape; a ring has a hole of half its radius."""
    pen = ImageDraw.Draw(mask)
    pen.polygon(_outline(shape, x, y, r, turn), fill=value)
    if shape == "ring":
        pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=0)


def draw_scene(index: int, seed: int) -> tuple[dict[str, Any], Image.Image]:
    """Scene number `index` of a seed and its picture, RGB.

    Each object of the scene also gets its "bbox": [left, top, right, bottom] of its part inside the picture, in pixels,
    the last two exclusive.
    """
    rng = random.Random(f"{seed}/{index}")
    scene = make_scene(index, rng)
    width, height = scene["width"], scene["height"]
    # Objects are drawn at twice the size and reduced, for smooth edges; the ground and the shadows are smooth anyway.
    top, bottom = (np.array([rng.randint(175, 245) for _ in range(3)]) for _ in range(2))
    ramp = np.linspace(0, 1, height)[:, None]
    picture = Image.fromarray((top * (1 - ramp) + bottom * ramp).astype(np.uint8)[:, None]).resize((width, height))
    shadow = Image.new("L", picture.size, 0)
    layers = []
    for item in scene["objects"]:
        (x, y), r = item["centre"], item["radius"]
        turn = rng.uniform(-0.15, 0.15)
        mask = Image.new("L", (2 * width, 2 * height), 0)
        _draw(shadow, item["shape"], x + 0.12 * r, y + 0.12 * r, r, turn, 90)
        _draw(mask, item["shape"], 2 * x, 2 * y, 2 * r, turn, 255)
        colour = tuple(max(0, min(255, c + rng.randint(-14, 14))) for c in COLOURS[item["colour"]])
        mask = mask.reduce(2)
        item["bbox"] = list(mask.getbbox() or ())
        layers.append((colour, mask))
    picture.paste((60, 60, 70), mask=shadow.filter(ImageFilter.BoxBlur(2)))
    for colour, mask in layers:
        picture.paste(colour, mask=mask)
    noise = np.random.default_rng(hash_int(f"{seed}/{index}")).normal(0, 3, (height, width, 1)).astype(np.float32)
    return scene, Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
