from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reading import Reader

from toolkit.runtime import shelf


@pytest.fixture(autouse=True)
def _on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers gather a handful of images as they gather a million; in memory they do it in all other tests."""
    monkeypatch.setattr(shelf, "ENTRIES", 2)
    monkeypatch.setattr(shelf, "CHUNK", 2)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., None]:
    """Makes images that nobody decodes."""

    def make(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")

    return make
