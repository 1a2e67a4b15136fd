"""Draws the data set of `toolkit sample`: pictures of scenes, their captions and their splits."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toolkit.data.scenes import COLOURS, Scene, captions_of, make_scene
from toolkit.errors import OutputError
from toolkit.records import SPLITS, Summary
from toolkit.runtime.hashing import hash_int
from toolkit.runtime.progress import Progress

LIST_NAMES = {"train": "trainImages.txt", "validation": "devImages.txt", "test": "testImages.txt"}


def draw_sample(directory: Path, images: int, seed: int) -> Summary:
    """Writes `captions.txt` and `Images/` in Flickr8k's form, the lists of its splits, and `scenes.jsonl`.

    The same seed gives the same bytes, and image i does not depend on how many follow. Everything is drawn in a folder
    beside it and moved at the end, so an interrupted sample never looks finished.

    Raises:
        OutputError: the folder exists and is not empty, or can't be written.
    """
    target = directory.resolve()  # "." has no name
    temporary = None
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{directory}: exists and is not an empty folder; name a new one.")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new name, because a fixed one could be the user's folder.
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        drawn = temporary / target.name
        counts = _write(drawn, images, seed)
        if target.exists():
            # Filled, not replaced: it may be the current directory. captions.txt, which makes it a data set, comes last.
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
    """Draws everything into a new folder. Returns the number of images by split."""
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
            picture.save(directory / "Images" / scene["image"], quality=92)  # only applies to JPEG
            writer.writerows((scene["image"], caption) for caption in captions_of(scene))
            scenes_file.write(json.dumps(scene) + "\n")
            names[scene["split"]].append(scene["image"])
            progress.update()
    for split, name in LIST_NAMES.items():
        if names[split]:  # an empty list would be a mistake to those who read it
            (directory / name).write_text("".join(image + "\n" for image in names[split]), encoding="utf-8")
    return {split: len(found) for split, found in names.items()}


def _outline(shape: str, x: float, y: float, r: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape in a circle of radius r around (x, y); a ring's outer edge is a polygon of 48 corners."""

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


def draw_scene(index: int, seed: int) -> tuple[Scene, Image.Image]:
    """Scene number `index` of a seed and its picture, RGB.

    Each object of the scene also gets its "bbox": [left, top, right, bottom] in pixels, clipped to the picture, the
    last two exclusive.
    """
    rng = random.Random(f"{seed}/{index}")
    scene = make_scene(index, rng)
    width, height = scene["width"], scene["height"]
    # Objects are drawn at twice the size and reduced, for smooth edges; background and shadows are smooth anyway.
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
