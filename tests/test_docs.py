"""README and docs: every link leads somewhere, every command line names options that exist, every example runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import COMMANDS
from toolkit.options import FinetuneOptions
from toolkit.options.fields import flat

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PROGRAMS = {
    "--head",
    "--num-cpus",
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--cfg-path",
}  # ray start, torchrun
ROOT_OPTIONS = {"--version", "--install-completion", "--show-completion"}
PAGES_BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def options_of(command: str) -> set[str]:
    names = {"--json", "--quiet", "--help", "--config", "--print-options"}
    names |= {
        f"--{alias.replace('_', '-')}" for f in flat(COMMANDS[command][0]) for alias in f.metadata.get("aliases", ())
    }
    for field in flat(COMMANDS[command][0]):
        name = field.name.replace("_", "-")
        names |= {f"--{name}", f"--no-{name}"} if isinstance(field.default, bool) else {f"--{name}"}
    return names


def anchor(heading: str) -> str:
    """The name of a heading in an address, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@PAGES_BY_NAME
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, part = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if part:
            assert part in {anchor(h) for h in re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))}, target


def test_readme_has_a_line_for_each_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name}" not in text] == []


@PAGES_BY_NAME
def test_command_lines_name_options_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?m)^(?:    |\$ ?)?(.*\btoolkit .*)$", text)
    for line in lines:
        for command, rest in re.findall(r"\btoolkit ([a-z-]+)([^`|;&#]*)", line):
            if command in COMMANDS:
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest))
                assert named <= options_of(command), line


@PAGES_BY_NAME
def test_options_exist(page: Path) -> None:
    """Wherever an option is named, some command has it, or a script of ours."""
    known = set().union(*map(options_of, COMMANDS)) | OTHER_PROGRAMS | ROOT_OPTIONS
    known |= {f"--{name.replace('_', '-')}" for name in FinetuneOptions.refused}
    for script in (ROOT / "scripts").iterdir():
        known |= (
            set(re.findall(r"--[a-z][a-z0-9-]*", script.read_text(encoding="utf-8"))) if script.is_file() else set()
        )
    prose = re.sub(
        r"(?ms)^```.*?^```$|^    .*?$", "", page.read_text(encoding="utf-8")
    )  # blocks have other programs too
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-])", prose))
    assert sorted(named - known) == []


@PAGES_BY_NAME
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tests|scripts|toolkit|docs)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name
    if page.name == "architecture.md":
        for name in set(re.findall(r"\b[a-z]+(?:/[a-z_0-9]+)+(?:\.py)?", text)) - {"cache/dataset"}:
            places = [ROOT / "toolkit" / name, ROOT / "toolkit" / f"{name}.py", ROOT / name, ROOT / f"{name}.py"]
            assert any(place.exists() for place in places), name


def test_example_of_the_page_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": "a.jpg", "caption": "a red ring"}, {"image": "b.jpg", "caption": None, "error": "truncated"}]
    Path("captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8"), re.S
    )
    exec(compile(example, "docs/coming-from.md", "exec"), {})
    (talk,) = json.loads(Path("captions_sharegpt.json").read_text(encoding="utf-8"))
    assert (talk["images"], talk["messages"][1]["content"]) == (["a.jpg"], "a red ring")


def test_examples_of_the_python_page(
    sample_dir: Path, cache_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that has what they speak of; where the page trains for five epochs, the test trains for one."""
    shutil.copytree(sample_dir, tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    pictures = sorted((sample_dir / "Images").iterdir())
    for name, picture in zip(("a.jpg", "b.png"), pictures, strict=False):
        shutil.copy(picture, name)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    assert len(examples) == 4
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example.replace("epochs=5", "epochs=1"), "docs/python.md", "exec"), names)
    assert names["summary"].values["images"] == 48
    assert names["pixels"].dtype == "uint8"
    assert names["rows"][0]["labels"].shape == (50,)
    assert names["result"].caption is not None
    assert list(names["worst"].columns) == ["image", "caption", "cider", "score"]


def test_the_page_of_options_has_every_alias() -> None:
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    for options_class, _ in COMMANDS.values():
        for option in flat(options_class):
            for alias in option.metadata.get("aliases", ()):
                assert f"`--{alias.replace('_', '-')}`" in text
