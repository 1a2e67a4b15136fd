"""Whether a cache is what a command would build: told from file states alone, without reading an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.cache.index import read_index
from toolkit.cache.schema import Manifest
from toolkit.data.sources import ImageSource
from toolkit.options import PreprocessOptions
from toolkit.options.fields import to_json
from toolkit.options.preprocess import DEFAULT_DECODER, DEFAULT_ENCODER, NEW_DECODERS
from toolkit.runtime.copies import Copy, list_names, look_up
from toolkit.runtime.files import file_state
from toolkit.runtime.hashing import Hasher
from toolkit.runtime.hub import MODEL_FILES, cached
from toolkit.runtime.shelf import Shelf

# Options that decide what is in a cache. The others (where it goes, how many workers) leave no trace in it, so that
# the same inputs give the same bytes.
CONTENT_OPTIONS = (
    "annotations", "images", "format", "encoder", "decoder", "vocab_size", "preset", "pixel_margin", "max_length", "val_fraction", "test_fraction",
    "train_list", "val_list", "test_list", "seed", "limit",
    "image_column", "caption_column", "split_column", "split_map", "reviewed",
)  # fmt: skip
# Raised when the same annotations and images give other records than before (captions, names, splits): then a cache is
# read anew, though no image is decoded again.
READING = 2
LARGEST_READ = 2**26  # annotations up to here are known by their bytes; a container of images by its size and time


def models(options: PreprocessOptions) -> tuple[str, str]:
    """Encoder and decoder, named or by default; where a preset takes their place they say nothing."""
    return options.encoder or DEFAULT_ENCODER, options.decoder or DEFAULT_DECODER


def content_options(options: PreprocessOptions) -> dict[str, Any]:
    """The options that decide what is in the cache, as its manifest has them."""
    encoder, decoder = models(options)
    values = {**to_json(options), "encoder": encoder, "decoder": decoder}
    for name in ("vocab_size", "limit", "pixel_margin", "reviewed"):  # unused, as before there were these options
        if not values[name]:
            del values[name]
    return {name: values[name] for name in CONTENT_OPTIONS if name in values}


def is_current(manifest: Manifest, source: str, options: PreprocessOptions, place: Path) -> bool:
    """Whether the finished cache at `place` is what `options` would build.

    Args:
        source: `source_fingerprint` of now.
    """
    made = {**content_options(PreprocessOptions()), **manifest["options"]}  # older caches lack options that are newer
    if made != content_options(options) or manifest["inputs"]["annotations"] != source:
        return False
    if manifest["inputs"].get("reading") != READING:
        return False
    if manifest["inputs"]["processors"] != processor_identity(options):
        return False
    if any(file_state(place / name)[0] != size for name, size in manifest["files"].items()):
        return False
    if manifest["inputs"]["images"] is None:  # inside containers, whose fingerprint is in `source`
        return True
    images_there = ImageSource.of(_given_path(options, Path(manifest["inputs"]["images"])))
    images = 0
    for _, _, table in read_index(place):
        images += len(table)
        columns = (table[name].to_pylist() for name in ("path", "size", "mtime_ns", "split", "reason"))
        for path, size, mtime_ns, split, reason in zip(*columns, strict=True):
            if (split or reason) and images_there.state(path) != (size, mtime_ns):
                return False
    return images == manifest["counts"]["images"]


def _given_path(options: PreprocessOptions, root: Path) -> Path:
    """The images folder of a manifest, as one that stands for a URL if the user's folder above it does."""
    for given in (options.images, options.annotations):
        if isinstance(given, Copy) and root.is_relative_to(given):
            return given / root.relative_to(given)
    return root


def source_fingerprint(options: PreprocessOptions, place: Path) -> str:
    """A hash of the annotations as they lie on disk: a file's bytes, a folder's names, sizes and times.

    A data set on the hub is known by its name alone, and so never looks changed.
    """
    digest = Hasher()
    path = options.annotations
    lists = [p for p in (options.train_list, options.val_list, options.test_list, options.reviewed) if p]
    if path.is_dir():
        for file, size, mtime_ns in _files_below(path, place):
            digest.update(f"{file}\0{size}\0{mtime_ns}\n")
    elif path.is_file():
        # Lists that lie beside the annotations are picked up by the readers.
        lists += [path, *sorted(path.parent.glob("*Images.txt"))]
    for list_file in lists:
        size, mtime_ns = file_state(list_file)
        digest.update(f"{list_file.name}\0{size}\0")
        if 0 <= size <= LARGEST_READ:
            digest.update_from(list_file)
        else:
            digest.update(f"{mtime_ns}")
    return digest.hex()


def _files_below(root: Path, place: Path) -> Iterator[tuple[str, int, int]]:
    """(name, size, mtime_ns) of every file below a folder, links to folders followed, but for the cache itself and what
    is built beside it."""
    if isinstance(root, Copy):
        # In the order of a walk, as if images that are only listed lay there.
        for name in sorted(list_names(root), key=lambda name: (name.split("/")[:-1], name)):
            yield name, *(look_up(root, name) or (-1, -1))
        return
    ours = {place.name, *(place.name + suffix for suffix in (".partial", ".stale", ".lock", ".review"))}
    visited = set()
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        folders, files = list[str](), Shelf()
        with suppress(OSError), os.scandir(folder) as entries:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in visited:
                continue
            visited.add((state.st_dev, state.st_ino))
            passed_over = ours if os.path.realpath(folder) == str(place.parent) else ()
            for entry in entries:
                if entry.name in passed_over:
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                else:
                    files.setdefault(entry.name, None)
        for name in files.in_order():
            file = os.path.join(folder, name)
            state = os.lstat(file)
            yield os.path.relpath(file, root), state.st_size, state.st_mtime_ns
        waiting += (os.path.join(folder, name) for name in sorted(folders, reverse=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def processor_identity(options: PreprocessOptions) -> str:
    """A hash of the encoder's and decoder's small files where they are on this machine, else of their names alone."""
    if options.preset is not None:
        return f"preset {options.preset} of toolkit {__version__}"
    digest = Hasher()
    encoder, decoder = models(options)
    new = decoder in NEW_DECODERS
    if new:
        digest.update(f"decoder {decoder} of toolkit {__version__}\0")
    for model in (encoder,) if new else (encoder, decoder):
        digest.update(f"{model}\0")
        for name in MODEL_FILES:
            file = Path(model) / name if Path(model).is_dir() else cached(model, name)
            if file is not None and file.is_file():
                digest.update(f"{name}\0")
                digest.update(file.read_bytes())
    return digest.hex()
