"""The public API: what stands at the root, loaded when it is first used."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit.cli import COMMANDS

DOC = Path(__file__).parents[1] / "docs" / "python.md"


def test_all_is_what_is_loaded() -> None:
    assert sorted(toolkit._HOME) == sorted(toolkit.__all__)
    assert set(toolkit.__all__) <= set(dir(toolkit))


@pytest.mark.parametrize("name", toolkit.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(toolkit, name)
    assert value.__name__ == name
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # what dataclass writes where nobody has
    assert f"`{name}`" in DOC.read_text(encoding="utf-8")


def test_a_function_and_an_options_class_for_each_command() -> None:
    for command, (options_class, _) in COMMANDS.items():
        function = getattr(toolkit, command.replace("-", "_"))
        assert list(inspect.signature(function).parameters) == ["options"]
        assert getattr(toolkit, options_class.__name__) is options_class
        assert dataclasses.is_dataclass(options_class)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toolkit.nothing  # noqa: B018


def test_importing_the_root_imports_nothing_heavy() -> None:
    code = "import sys, toolkit; toolkit.PreprocessOptions; print([m for m in ('torch', 'datasets', 'PIL', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
