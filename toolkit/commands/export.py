"""`toolkit export`: a captioner for other runtimes, as ONNX graphs with tokenizer, image processor and settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit import __version__
from toolkit.captioning.onnx_model import FOLDER, is_exported
from toolkit.data.pixels import transform_of
from toolkit.errors import ModelError, OutputError
from toolkit.models.loading import (
    OURS,
    load_image_processor,
    load_model,
    load_tokenizer,
    model_type_of,
    silence_transformers,
)
from toolkit.models.onnx_graphs import DECODER, ENCODER, QUANTIZED, require, why_not, write_graphs
from toolkit.options import ExportOptions
from toolkit.records import Summary
from toolkit.runtime.copies import fetch_model, with_copies
from toolkit.runtime.files import beside, flush, read_object, write_json
from toolkit.runtime.hashing import file_hash
from toolkit.runtime.overwrite import check_folder
from toolkit.runtime.progress import say
from toolkit.runtime.remote import local_only
from toolkit.runtime.swap import REPLACED, Files, Kind, clear, held, reason, take_place

MARK = "export.json"  # written last; lists the other files by content hash
HINT = "name a folder that `toolkit finetune` wrote, or a captioner on the hub"
GRAPHS = rf"{FOLDER}/({ENCODER}|{DECODER})({QUANTIZED})?\.onnx"
NAMES = re.compile(
    rf"{GRAPHS}|{MARK}|{REPLACED}|(config|generation_config|preprocessor_config|tokenizer|tokenizer_config|vocab|"
    r"special_tokens_map|added_tokens)\.json|merges\.txt"
)


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")


def _listed(mark: Path, folder: Path) -> Files:
    files = (read_object(mark) or {}).get("files")
    return files if isinstance(files, dict) else {}


def _written(folder: Path) -> list[Path]:
    return [folder / name for name in _files(folder) if NAMES.fullmatch(name)]


EXPORT = Kind(MARK, _listed, _written, heads=("config.json",))


def export(options: ExportOptions) -> Summary:
    """Writes the folder, whole or not at all.

    Raises:
        ModelError: `model` is no captioner that can be exported, or a package is missing.
        OutputError: the folder is there already, or can't be written.
        RunError: torch can't trace the model.
    """
    local_only(options, "directory")
    out = options.directory
    check_folder("DIRECTORY", out, [options.model])
    place = Path(os.path.realpath(out))
    _check_free(options, place)
    require("onnx", "onnxruntime", "onnxscript")
    options = with_copies(options, model=fetch_model)
    silence_transformers()
    with held(f"DIRECTORY {out}", place, "exporting there"):
        partial = beside(place, ".partial")
        if (partial / MARK).is_file():  # a run was killed while it moved its files
            take_place(f"DIRECTORY {out}", partial, place, EXPORT)
        _check_free(options, place)
        foreign = next((name for name in _files(partial) if not NAMES.fullmatch(name)), None)
        if foreign is not None or partial.is_symlink() or partial.is_file():
            raise OutputError(
                f"DIRECTORY {out}: {partial / (foreign or '')} is in the way, and no earlier export wrote it; move it, or name another folder."
            )
        clear(partial, EXPORT)
        try:
            facts = _write(options, partial)
        except OSError as error:
            raise OutputError(f"DIRECTORY {out}: can't be written ({reason(error)}); name another folder.") from None
        finally:
            if not (partial / MARK).is_file():
                clear(partial, EXPORT)
        kept = take_place(f"DIRECTORY {out}", partial, place, EXPORT)
    for name in kept:
        say(f"{out / name}: was changed since it was exported, and is kept under this name")
    return _summary(out, facts)


def _check_free(options: ExportOptions, place: Path) -> None:
    out = options.directory
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / MARK).is_file():
        raise OutputError(f"DIRECTORY {out}: exists, and `toolkit export` did not write it; name another folder.")
    if not options.overwrite:
        raise OutputError(f"DIRECTORY {out}: exists; add --overwrite to replace it, or name another folder.")


def _write(options: ExportOptions, folder: Path) -> dict[str, Any]:
    """All files, the mark last; what the mark says."""
    name = options.model
    model = _load(name)
    tokenizer, processor = load_tokenizer(name, "MODEL", HINT), load_image_processor(name, "MODEL", HINT)
    if not tokenizer.is_fast:
        raise ModelError(
            f"MODEL {name}: has no fast tokenizer (tokenizer.json), which other runtimes read; export another."
        )
    (folder / FOLDER).mkdir(parents=True)
    say(f"writing {name} as ONNX; larger models take minutes")
    transform = transform_of(processor, json.loads(processor.to_json_string()), f"MODEL {name}")
    write_graphs(model, transform(Image.new("RGB", (64, 64))).shape, folder / FOLDER, options.int8)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _save_tokenizer(tokenizer, folder)
    processor.save_pretrained(folder)
    names = sorted(_files(folder))
    for each in names:
        flush(folder / each)
    facts = {
        "toolkit": __version__,
        "model": f"{name}",
        "precisions": ["fp32", "int8"] if options.int8 else ["fp32"],
        "bytes": {each: (folder / each).stat().st_size for each in names if each.endswith(".onnx")},
        "files": {each: file_hash(folder / each) for each in names},
    }
    write_json(folder / MARK, facts)
    return facts


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # Where it is not written down, transformers.js takes "street ." for "street.", which transformers no longer does.
    cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    write_json(path, {**(read_object(path) or {}), "clean_up_tokenization_spaces": cleans})


def _load(name: str) -> Any:
    if is_exported(Path(name)):
        raise ModelError(f"MODEL {name}: is an export already; name the model that it was made from.")
    kind = model_type_of(name, "MODEL", HINT)
    if kind != OURS:
        raise ModelError(
            f"MODEL {name}: a model of type {kind}, and only a VisionEncoderDecoderModel can be exported; {HINT}."
        )
    model = load_model(name, "MODEL", HINT)
    why = why_not(model)
    if why:
        raise ModelError(f"MODEL {name}: can't be exported, because {why}; name another captioner.")
    return model.eval()


def _summary(out: Path, facts: dict[str, Any]) -> Summary:
    sizes = {name: sum(n for file, n in facts["bytes"].items() if (QUANTIZED in file) == quantized)
             for name, quantized in (("fp32", False), ("int8", True)) if name in facts["precisions"]}  # fmt: skip
    text = f"{out}: {facts['model']} as ONNX, " + ", ".join(
        f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()
    )
    text += f"\n  `toolkit batch-caption IMAGES --model {out}` captions with it; so do transformers.js and optimum (docs/export.md)"
    return Summary(text, {"directory": f"{out}", **{k: v for k, v in facts.items() if k != "files"}})
