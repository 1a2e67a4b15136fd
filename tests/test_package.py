"""What is installed: each import is declared and each declaration used, licence and citation, and the wheel without the clone."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest

import toolkit
from toolkit import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
NAME = "captioning-toolkit"
DISTRIBUTIONS = {
    "PIL": "pillow",
    "markdown_it": "markdown-it-py",
    "yaml": "pyyaml",
}  # whose name is not that of what is imported
NOT_IMPORTED = {
    "s3fs": "with it fsspec opens s3://",
    "gcsfs": "with it fsspec opens gs://",
    "onnxscript": "with it torch.onnx.export writes graphs",
    "tensorboard": "with it transformers' own callback writes for --report-to tensorboard",
    "mypy": "run by make lint",
    "ruff": "run by make lint",
    "pytest-xdist": "make test: -n 2",
    "setuptools": "builds the wheel of the test below",
}


def declared(requirements: list[str]) -> set[str]:
    """Names of distributions, without extras, versions and markers."""
    return {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


@cache
def imported(*folders: str) -> dict[str, str]:
    """Distribution -> a file that imports it, anywhere in it; not the standard library, and not our own files."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    own = {"toolkit", *(path.stem for path in paths if path.parts[len(ROOT.parts)] != "toolkit")}
    found: dict[str, str] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
                modules = [ast.literal_eval(node.args[0])]
            for top in {module.split(".")[0] for module in modules} - own - sys.stdlib_module_names:
                name = DISTRIBUTIONS.get(top, top.lower().replace("_", "-"))
                found.setdefault(name, path.relative_to(ROOT).as_posix())
    return found


NEEDED = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(requirements) for name, requirements in PROJECT["optional-dependencies"].items()}
FOR_USERS = set().union(*(names for extra, names in EXTRAS.items() if extra != "dev"))


def test_every_import_is_declared() -> None:
    undeclared = {name: file for name, file in imported("toolkit").items() if name not in NEEDED | FOR_USERS}
    assert undeclared == {}
    known = NEEDED | FOR_USERS | EXTRAS["dev"]
    assert {name: file for name, file in imported("tests", "scripts").items() if name not in known} == {}


def test_everything_declared_is_imported() -> None:
    assert sorted((NEEDED | FOR_USERS) - set(imported("toolkit")) - set(NOT_IMPORTED)) == []
    assert sorted(EXTRAS["dev"] - set(imported("tests", "scripts")) - set(NOT_IMPORTED)) == []
    assert sorted(set(NOT_IMPORTED) - NEEDED - FOR_USERS - EXTRAS["dev"]) == []


def test_what_is_declared_twice_has_one_range() -> None:
    """dev repeats what the tests need of the users' extras."""
    ranges: dict[str, set[str]] = {}
    for requirement in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"]):
        ranges.setdefault(*declared([requirement]), set()).add(requirement)
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


def test_extras_are_named_with_the_distribution_and_exist() -> None:
    """`toolkit` on PyPI is another project; `.` is a clone."""
    files = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    files += [path for folder in ("toolkit", "scripts") for path in (ROOT / folder).rglob("*.*")]
    named = 0
    for path in files:
        if path.suffix not in (".md", ".py", ".sh", ".html", ""):
            continue
        for name, extras in re.findall(
            r"(?:install|--editable|-e) '?((?:[\w-]*toolkit)|\.)\[([^\]]+)\]", path.read_text(encoding="utf-8")
        ):
            named += 1
            assert name in (NAME, "."), path.name
            assert set(extras.split(",")) <= set(EXTRAS), path.name
    assert named >= 5


def test_licence_citation_and_changes() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    # apache.org/licenses/LICENSE-2.0.txt
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
    assert f"- name: {PROJECT['authors'][0]['name']}\n" in citation
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---- the wheel ------------------------------------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output; without the clone on the path, and without a network."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built_wheel(folder: Path) -> tuple[Path, set[str]]:
    """A wheel of the tracked files, and which of these are the package's."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listing.split("\0") if name and (ROOT / name).exists()}
    for name in tracked:  # a build leaves folders in the tree
        target = folder / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir")
    run(*pip, folder / "dist", folder / "clone", cwd=folder)
    (wheel,) = (folder / "dist").iterdir()
    return wheel, {name for name in tracked if name.startswith("toolkit/")}


@pytest.mark.slow
def test_the_wheel_without_the_clone(tmp_path: Path) -> None:
    """It holds the package's files and no others, and runs from an environment of its own, with the libraries of this one."""
    wheel, package = built_wheel(tmp_path)
    assert wheel.name == f"captioning_toolkit-{__version__}-py3-none-any.whl"
    about = f"captioning_toolkit-{__version__}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    files = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    assert names == package | {f"{about}/{file}" for file in files}
    assert {"toolkit/py.typed", "toolkit/reports/templates/base.html"} <= names
    metadata = zipfile.ZipFile(wheel).read(f"{about}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    bin = tmp_path / "venv" / "bin"
    run(sys.executable, "-m", "pip", "--python", bin / "python", "install", "--no-deps", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(
        f"{Path(pytest.__file__).parents[1]}\n"
    )  # not its .pth files: no editable clone
    where = run(bin / "python", "-c", "import toolkit; print(toolkit.__file__)", cwd=tmp_path).strip()
    assert Path(where) == site / "toolkit" / "__init__.py" != Path(toolkit.__file__)
    version = "from importlib.metadata import version; print(version('captioning-toolkit'))"
    assert run(bin / "python", "-c", version, cwd=tmp_path).strip() == __version__
    assert run(bin / "toolkit", "--version", cwd=tmp_path) == f"toolkit {__version__}\n"
    run(bin / "toolkit", "sample", "data", "--images", "40", cwd=tmp_path)
    text = run(bin / "toolkit", "inspect", "data", "--sheet", "page.html", cwd=tmp_path)
    assert "annotations in flickr8k format, 40 images" in text
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
