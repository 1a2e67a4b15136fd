"""Writes annotation files and reads them back; `conftest.py` makes a fixture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolkit.data.annotations import AnnotationSet, read_annotations
from toolkit.errors import InputError
from toolkit.records import ImageRecord


class Reader:
    """Writes a file into the test's folder and reads it back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "Images"
        self.set: AnnotationSet

    def __call__(self, name: str, content: str | bytes | None = None, **options: Any) -> list[ImageRecord]:
        path = self.folder / name
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.set = read_annotations(path, self.images, **options)
        return list(self.set.records)

    def captions(self, name: str, content: str | bytes | None = None, **options: Any) -> dict[str, list[str]]:
        return {record.path: list(record.captions) for record in self(name, content, **options)}

    def error(self, name: str, content: str | bytes | None = None, **options: Any) -> str:
        """The one sentence that reading fails with, without the folder."""
        with pytest.raises(InputError) as error:
            self(name, content, **options)
        text = str(error.value)
        assert "\n" not in text
        assert text.endswith(".")
        return text.replace(f"{self.folder}/", "")

    @property
    def notes(self) -> list[str]:
        return self.set.notes.sentences()
