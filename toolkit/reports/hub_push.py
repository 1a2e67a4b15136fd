"""What of a model, a cache or a file of captions goes to the hub, and its way there.

Places of this machine stay here: an absolute path in a configuration, a manifest or a card becomes the last part of it. So do
checkpoints, the report with its pictures, encoder features and whatever else lies in the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from toolkit.cache.schema import MANIFEST, is_cache_file, listed_files, read_manifest
from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import file_format
from toolkit.options.push import HubOptions
from toolkit.outputs.tables import read_columns
from toolkit.reports.hub_cards import cache_card, captions_card, kept_metadata, model_card
from toolkit.runtime.files import read_object
from toolkit.runtime.hub_repo import HubRepo, Pushed, Source

CARD = "README.md"
# Of a model: what loading it reads, and the log of its training.
MODEL = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "base.json",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.jinja", "training.jsonl", "LICENSE*",
)  # fmt: skip
CAPTIONS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Contents:
    """What goes to the hub.

    Attributes:
        kind: model or dataset.
        files: by name there; without the card.
        card: the card's text, from the repository's name and what was given for it.
        hub: what was given.
        last: names of files that come with the last commit, beside the card.
        note: what one should know before others see it.
        stale: whether a file there that is none of these is an earlier one's.
    """

    kind: str
    files: Mapping[str, Source]
    card: Callable[[str, HubOptions], str]
    hub: HubOptions
    last: tuple[str, ...] = ()
    note: str | None = None
    stale: Callable[[str], bool] = field(default=lambda name: False)

    def push(self, repo: HubRepo, overwrite: bool) -> Pushed:
        card = self.card(repo.name, kept_metadata(self.hub, repo.text(CARD)))
        files = {CARD: card.encode(), **self.files}
        return repo.put(files, (CARD, *self.last), overwrite, self.stale)


def contents_of(path: Path, hub: HubOptions) -> Contents:
    """What of a path goes to the hub.

    Raises:
        InputError: it is none of these, not whole, or an adapter whose model is on this machine only.
    """
    if path.is_file():
        return _captions(path, hub)
    if (path / MANIFEST).is_file():
        return _cache(path, hub)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return model_contents(path, hub)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; name a model, a cache or a file of captions.")
    raise InputError(
        f"{path}: neither a model, a cache nor a file of captions; name a folder that finetune or preprocess wrote, or the file of "
        "captions in it."
    )


def model_contents(path: Path, hub: HubOptions) -> Contents:
    """Of a model's folder; see `contents_of`."""
    names = sorted(file.name for file in path.iterdir() if file.is_file() and any(fnmatch(file.name, p) for p in MODEL))
    graphs = sorted(file.relative_to(path).as_posix() for file in path.glob("onnx/*.onnx"))  # as `export` writes them
    if not graphs and not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{path}: has no weights (no file ends in .safetensors, and there is no onnx/); name the folder of a finished model."
        )
    check_base(f"{path}", read_object(path / "base.json") or {})
    files = {name: _portable(path / name) for name in (*names, *graphs)}
    text = (path / CARD).read_text(encoding="utf-8") if (path / CARD).is_file() else None
    return Contents("model", files, lambda name, given: model_card(text, name, given, bool(graphs)), hub)


def check_base(told: str, base: Mapping[str, Any]) -> None:
    """Whether others can have what an adapter is an adapter of.

    Args:
        base: with `init_from`, `encoder` and `decoder`, names or folders.
    """
    parts = [base.get("init_from")] if base.get("init_from") else [base.get("encoder"), base.get("decoder")]
    for part in parts:
        if isinstance(part, str) and (os.path.isabs(part) or Path(part).is_dir()):
            raise InputError(
                f"{told}: an adapter of {part}, which is on this machine only, is of no use to others; train with --lora-save "
                "merged, or start from a model on the hub."
            )


def _cache(path: Path, hub: HubOptions) -> Contents:
    manifest = read_manifest(path)
    names = sorted(listed_files((path / MANIFEST).read_bytes()) or ())
    missing = next((name for name in names if not (path / name).is_file()), None)
    if missing is not None:
        raise InputError(f"{path}: {missing} is missing; run `toolkit preprocess` again.")
    files: dict[str, Source] = {name: path / name for name in names}
    files[MANIFEST] = _portable(path / MANIFEST)
    told = _without_places(manifest)
    images = sum(manifest["counts"]["splits"].values())
    note = f"the pixels of {images:,} images go with it; their licence must allow that"
    return Contents(
        "dataset", files, lambda name, given: cache_card(name, told, given), hub, (MANIFEST,), note, is_cache_file
    )


def _captions(path: Path, hub: HubOptions) -> Contents:
    if path.suffix.lower() not in CAPTIONS:
        raise InputError(f"{path}: a file of captions ends in {', '.join(CAPTIONS)}; name one of these.")
    columns = read_columns(path)
    features = _features(columns) if file_format(path) == "jsonl" else None
    return Contents(
        "dataset", {path.name: path}, lambda name, given: captions_card(name, path, columns, features, given), hub
    )


def _features(columns: Mapping[str, Any]) -> Any:
    """Of lines of JSON, in which a column may be empty for long before its first value: `datasets` would guess wrong."""
    from datasets import Features, List, Value

    kinds: dict[str, Any] = {
        **dict.fromkeys(("image", "image_id", "file_name", "caption", "error", "source"), Value("string")),
        **dict.fromkeys(("score", "clip_score"), Value("float64")),
        **dict.fromkeys(("ended", "weak", "rejected"), Value("bool")),
        **dict.fromkeys(("width", "height"), Value("int64")),
        "captions": List(Value("string")),
        "clip_scores": List(Value("float64")),
    }
    known = {name: kinds[name] for name in columns if name in kinds}
    return Features(known) if len(known) == len(columns) else None


def _portable(path: Path) -> Source:
    """The file, or, of JSON with places of this machine in it, its text without them."""
    if path.suffix != ".json" or path.name in ("tokenizer.json", "vocab.json"):
        return path
    value = read_object(path)
    shown = _without_places(value)
    return path if shown == value else (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode()


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~/")) and len(value) > 1:
        return Path(value).name
    return value
