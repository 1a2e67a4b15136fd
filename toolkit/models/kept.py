"""What was read of an encoder's image processor and a decoder's tokenizer, kept for the next build.

    $XDG_CACHE_HOME/toolkit/processors/<key>/      ($XDG_CACHE_HOME is ~/.cache unless set)
        answer.json                      settings, special tokens, and a hash of every file beside it
        tokenizer/  image_processor/     as `save_pretrained` wrote them

The key is a hash of the models' small files and of the versions of all that reads them. So the check of our pixels
against the real processor is done once for each processor and version, and torch is not imported again. Everything here
may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.data import pixels
from toolkit.runtime.hashing import Hasher, file_hash, hash_hex
from toolkit.runtime.hub import MODEL_FILES, cached

FOLDERS = ("tokenizer", "image_processor")
LARGEST = 2**26  # bytes; a model's larger files are weights
ENTRIES = 16  # kept at most, each of up to some MB; the ones that were used last
ANSWER = "answer.json"


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "toolkit", "processors")


def _model_folder(name: str) -> Path | None:
    """Where a model's files are on this machine: its own folder, or its snapshot in the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    return next((file.parent for file in (cached(name, file) for file in MODEL_FILES) if file), None)


def _small_files(folder: Path) -> Iterator[Path]:
    for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        if path.is_file() and path.stat().st_size <= LARGEST:
            yield path


def key_of(*models: str) -> str | None:
    """A hash of all that decides what is read of these models; None if one of them is not on this machine."""
    digest = Hasher(__version__, file_hash(Path(pixels.__file__)))
    for library in ("transformers", "tokenizers", "pillow", "numpy", "torch"):
        digest.update(f"{library} {version(library)}\0")
    try:
        for name in models:
            folder = _model_folder(name)
            if folder is None:
                return None
            digest.update(f"{name}\0")
            for path in _small_files(folder):
                digest.update(f"{path.relative_to(folder)}\0{file_hash(path)}\0")
    except OSError:
        return None
    return digest.hex()


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def take(key: str, directory: Path) -> dict[str, Any] | None:
    """Copies what is kept into `directory` and returns its answer; None if there is nothing whole under this key."""
    entry = _place() / key
    try:
        kept = json.loads((entry / ANSWER).read_bytes())
        files = {name: (entry / name).read_bytes() for name in kept["files"]}
        if any(hash_hex(data) != kept["files"][name] for name, data in files.items()):
            raise ValueError
        answer: dict[str, Any] = kept["answer"]
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    with suppress(OSError):
        os.utime(entry)
    return answer


def keep(key: str, directory: Path, answer: dict[str, Any]) -> None:
    """Keeps a copy of what was saved in `directory`. Where that is not possible, the next build reads it anew."""
    place = _place()
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as temporary:
            entry = Path(temporary, key)
            for name in (name for name in FOLDERS if (directory / name).is_dir()):
                shutil.copytree(directory / name, entry / name)
            (entry / ANSWER).write_text(json.dumps({"answer": answer, "files": _hashes(entry)}))
            os.rename(entry, place / key)
        entries = sorted((path for path in place.iterdir() if path.name != key), key=lambda path: path.stat().st_mtime)
        for old in entries[: max(0, len(entries) + 1 - ENTRIES)]:
            shutil.rmtree(old, ignore_errors=True)
