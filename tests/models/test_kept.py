"""What is read of two models is kept, and the next build gets the same bytes without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preprocessing import tree

from toolkit.models import kept, processors


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An encoder and a decoder, each with its processor alone; the user's cache folder is empty."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from toolkit.models.presets import train_tokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    ViTImageProcessorPil(size={"height": 24, "width": 32}).save_pretrained(tmp_path / "encoder")
    train_tokenizer(["a dog runs .", "two cats sleep ."]).save_pretrained(tmp_path / "decoder")
    return [str(tmp_path / "encoder"), str(tmp_path / "decoder")]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The encoder of each time that the models are read, here instead of in a process of its own."""
    calls: list[str] = []

    def fetch(encoder: str, decoder: str, preset: str | None, directory: Path) -> dict[str, Any]:
        calls.append(encoder)
        return processors._save(encoder, decoder, preset, str(directory))

    monkeypatch.setattr(processors, "_fetch", fetch)
    return calls


def build(models: list[str], directory: Path) -> tuple[Any, dict[str, bytes]]:
    directory.mkdir()
    return processors.fetch_processors(models[0], models[1], None, directory), tree(directory)


def test_the_second_build_gets_the_same_bytes_unread(models: list[str], reads: list[str], tmp_path: Path) -> None:
    first = build(models, tmp_path / "first")
    assert build(models, tmp_path / "second") == first
    assert len(reads) == 1
    assert set(first[1]) == {
        "image_processor/preprocessor_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


@pytest.mark.parametrize("file", ["encoder/preprocessor_config.json", "decoder/tokenizer_config.json"])
def test_a_changed_model_is_read(models: list[str], reads: list[str], tmp_path: Path, file: str) -> None:
    build(models, tmp_path / "first")
    (tmp_path / file).write_text((tmp_path / file).read_text().replace("32", "48").replace("1024", "99"))
    _, files = build(models, tmp_path / "second")
    assert len(reads) == 2
    assert any(b"48" in data or b"99" in data for data in files.values())


def test_other_versions_read_anew(
    models: list[str], reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(models, tmp_path / "first")
    monkeypatch.setattr(kept, "version", lambda library: "0.0")
    build(models, tmp_path / "second")
    assert len(reads) == 2


def test_a_damaged_entry_is_replaced(models: list[str], reads: list[str], tmp_path: Path) -> None:
    first = build(models, tmp_path / "first")
    (file,) = (tmp_path / "user").rglob("tokenizer.json")
    file.write_bytes(file.read_bytes()[:-10])
    assert build(models, tmp_path / "second") == first
    assert build(models, tmp_path / "third") == first
    assert len(reads) == 2


def test_files_of_an_unfinished_build_are_not_kept(models: list[str], reads: list[str], tmp_path: Path) -> None:
    (tmp_path / "partial" / "tokenizer").mkdir(parents=True)
    (tmp_path / "partial" / "tokenizer" / "vocab.txt").write_text("of another decoder")
    processors.fetch_processors(models[0], models[1], None, tmp_path / "partial")
    assert not list((tmp_path / "user").rglob("vocab.txt"))
    assert "tokenizer/vocab.txt" not in build(models, tmp_path / "second")[1]


def test_no_room_for_it_is_no_error(models: list[str], reads: list[str], tmp_path: Path) -> None:
    (tmp_path / "user").write_text("a file where the folder would be")
    assert build(models, tmp_path / "first") == build(models, tmp_path / "second")
    assert len(reads) == 2


def test_only_the_entries_used_last_stay(
    models: list[str], reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "ENTRIES", 2)
    for size in (32, 40, 48):
        file = tmp_path / "encoder" / "preprocessor_config.json"
        file.write_text(file.read_text().replace('"width": 32', f'"width": {size}'))
        build(models, tmp_path / str(size))
        file.write_text(file.read_text().replace(f'"width": {size}', '"width": 32'))
    assert len(list((tmp_path / "user" / "toolkit" / "processors").iterdir())) == 2
