"""The house: a file imports only from layers below its own, or what stands before it in its own layer."""

from __future__ import annotations

import ast
from pathlib import Path

import toolkit

ROOT = Path(toolkit.__file__).parent
# From the bottom up; within a layer, from left to right.
LAYERS = [
    ["errors", "options", "records"],
    [
        "ending",
        "files", "ahead", "outputs", "hashing", "spacing", "progress", "hub", "stores", "rgb", "images", "annotations", "pixels", "labels", "splits", "rows", "cache", "uploads", "urls", "checkpoints", "run_files", "runs", "index",
        "staging", "ray_engine", "engines", "build", "identity", "workspace", "finishing", "journal", "writers",
        "ptb", "metrics", "significance", "hypotheses", "exports", "references", "matching", "evaluation", "report",
        "pictures", "gallery", "evaluation_page", "sample", "facts",
    ],
    ["ranks", "sharding", "freezing", "lora", "modeling", "processors", "batches", "features", "search", "twins", "steps", "decoding", "captioners", "pipeline", "caption_pieces", "attention", "starting", "selfcheck", "training_log", "training", "saving"],
    ["preprocess", "finetune", "batch_caption", "caption", "evaluate", "inspect"],
    ["demo"],
    ["cli"],
]  # fmt: skip
ORDER = {name: (layer, place) for layer, names in enumerate(LAYERS) for place, name in enumerate(names)}
COMMANDS, TORCH_LAYER = 3, 2


def imports(path: Path) -> set[str]:
    """Top-level names of toolkit's own modules that a file imports anywhere, and other packages at module level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "toolkit":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("toolkit.")}
    return found & set(ORDER)


def modules() -> list[tuple[str, Path]]:
    files = [(path.stem, path) for path in ROOT.glob("*.py") if path.stem not in ("__init__", "__main__")]
    folders = ("annotations", "facts")
    return files + [(name, path) for name in folders for path in (ROOT / name).glob("*.py")]


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} <= set(ORDER)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{path.name} imports {other}"
        for name, path in modules()
        for other in imports(path) - {name}
        # processors runs itself in a process of its own, which loads what it needs from its layer
        if ORDER[other] > ORDER[name] or (ORDER[name][0] == ORDER[other][0] == COMMANDS)
    ]
    assert wrong == []


def test_lower_layers_do_without_torch() -> None:
    """Importing torch costs 300 MB and seconds, in each worker."""
    heavy = {"torch", "transformers"}
    for name, path in modules():
        if ORDER[name][0] < TORCH_LAYER:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not names & heavy, path.name
