"""What the benchmarks on the drawn sample share: its scenes, and how many captions of unseen images are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.captioning.captioner import load_captioner
from toolkit.data.scenes import judge
from toolkit.options import GenerationOptions


def scenes_of(data: Path) -> dict[str, Any]:
    """The scenes of a sample's images, by name."""
    return {scene["image"]: scene for scene in map(json.loads, (data / "scenes.jsonl").read_text().splitlines())}


def captions_of_test(model: Path, data: Path, precision: str = "auto") -> dict[str, str]:
    """The model's captions of the test images, with its own decoding settings."""
    names = [name for name, scene in scenes_of(data).items() if scene["split"] == "test"]
    captioner = load_captioner(model, "cpu", precision)
    rows = captioner.caption([data / "Images" / name for name in names], GenerationOptions(), 32)
    return {name: row.caption or "" for name, row in zip(names, rows, strict=True)}


def share_right(captions: dict[str, str], data: Path) -> float:
    """The share of captions that say exactly what was drawn."""
    scenes = scenes_of(data)
    return sum(judge(caption, scenes[name]) for name, caption in captions.items()) / len(captions)
