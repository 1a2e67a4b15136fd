from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reading import Reader


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
