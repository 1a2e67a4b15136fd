"""The house: a folder imports only from those above it in this list, and within a folder no two files import each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import toolkit

ROOT = Path(toolkit.__file__).parent
# What everything speaks, then from the machine to the commands.
ROOMS = [
    "errors", "options", "records",
    "runtime", "data", "cache", "models", "captioning", "evaluation", "outputs", "training", "reports", "reviewing", "commands", "arguments", "cli",
]  # fmt: skip
WITHOUT_TORCH = (
    "errors",
    "options",
    "records",
    "runtime",
    "data",
    "cache",
    "outputs",
    "evaluation",
    "reports",
    "reviewing",
    "arguments",
    "cli",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in ROOT.rglob("*.py") if path.parent != ROOT or "__" not in path.stem}


def imported(path: Path) -> set[str]:
    """toolkit's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            base = (node.module or "").removeprefix("toolkit").strip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                found.add(name if name in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("toolkit.") for alias in node.names if alias.name.startswith("toolkit.")}
    return found - {""}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_file_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)
    assert all(ROOT.joinpath(name, "__init__.py").exists() for name in ROOMS if (ROOT / name).is_dir())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_upwards_in_the_list(module: str) -> None:
    wrong = {
        other
        for other in imported(MODULES[module])
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
        or (room(other) == room(module) == "commands" and module != "commands.demo")
    }
    assert not wrong


def test_no_cycle() -> None:
    graph = {module: imported(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_these_rooms_do_without_torch() -> None:
    """Importing torch costs 300 MB and seconds, in each worker."""
    for module, path in MODULES.items():
        if room(module) in WITHOUT_TORCH:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not names & {"torch", "transformers"}, path.name
