"""What batch-caption is given: folders, files, globs, URLs, and everything with images inside that `preprocess` reads.

    options -> FoundImages, in which the images of a data set have it as their root

The kinds of sources are in `SETS`; `auto` tells them by what is there, and takes anything else for images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from toolkit.cache.images import CacheImages
from toolkit.cache.schema import MANIFEST, Cache
from toolkit.cache.uploads import fetch_cache
from toolkit.captioning.base import Captioner
from toolkit.data.annotations import Columns, hub, parquet, webdataset
from toolkit.data.pixels import PixelTransform
from toolkit.data.sets import ENDINGS, ImageSet, TableImages, TarImages
from toolkit.data.sources import FoundImage, FoundImages, fetch_annotations, find_images, has_images
from toolkit.errors import InputError, ModelError
from toolkit.options import BatchCaptionOptions
from toolkit.runtime.copies import as_path
from toolkit.runtime.progress import say
from toolkit.runtime.remote import lies_below, url_of

SETS: dict[str, Callable[[Path, Columns], ImageSet]] = {
    "cache": CacheImages,
    "hub": lambda path, columns: TableImages(path, columns, is_hub=True),
    "parquet": lambda path, columns: TableImages(path, columns, is_hub=False),
    "webdataset": TarImages,
}


def find_inputs(options: BatchCaptionOptions) -> FoundImages:
    """The images of all paths.

    Raises:
        InputError: a path does not exist, holds no image, or is a broken data set; or an option has no effect.
    """
    kinds = {given: options.source if options.source != "auto" else _kind(given, options) for given in options.paths}
    files = [given for given, kind in kinds.items() if kind == "images"]
    if files:
        for name, value in (("split", options.split), ("image-column", options.image_column),
                            ("split-column", options.split_column), ("split-map", " ".join(options.split_map))):  # fmt: skip
            if value:
                raise InputError(
                    f"--{name} {value}: only applies to data sets and caches, and {files[0]} is neither; leave it out."
                )
    found = find_images(files, options.recursive)
    for given, kind in kinds.items():
        if kind != "images":
            _add_set(found, _open(given, kind, options), options)
    if found.sets:
        _check_sets(found, options)
    return found


def _kind(given: str, options: BatchCaptionOptions) -> str:
    """What a path is, by what is there; "images" for anything that is no data set."""
    name = given.lower()
    if url_of(given):
        return ("parquet" if name.endswith(".parquet") else "webdataset") if name.endswith(ENDINGS) else "images"
    path = Path(given)
    if path.is_file():
        return next((kind for kind in ("webdataset", "parquet") if SUFFIXED[kind](path)), "images")
    if not path.is_dir():
        return "images"
    if (path / MANIFEST).is_file() and (path / "dataset_dict.json").is_file():
        return "cache"
    if hub.detect(path):
        return "hub"
    if has_images(path, options.recursive):
        return "images"
    return next((kind for kind in ("webdataset", "parquet") if SUFFIXED[kind](path)), "images")


SUFFIXED = {"webdataset": webdataset.detect, "parquet": parquet.detect}


def _open(given: str, kind: str, options: BatchCaptionOptions) -> ImageSet:
    url = url_of(given)
    path = as_path(given) if url is None else fetch_cache(url) if kind == "cache" else fetch_annotations(url)
    if kind != "hub" and not path.exists():
        raise InputError(f"{path}: no such file or folder; name a {kind}.")
    return SETS[kind](path, Columns.of_names(options.image_column, options.split_column, options.split_map))


def _add_set(found: FoundImages, images: ImageSet, options: BatchCaptionOptions) -> None:
    """Its images of the split that is asked for."""
    splits, count = set[str | None](), 0
    for entry in images.entries():
        splits.add(entry.split)
        if options.split in (None, "all", entry.split):
            found.add(FoundImage(images, entry.name, entry.row))
            count += 1
    for note in images.notes.sentences():
        say(f"  {note}")
    if count:
        return
    named = sorted(split for split in splits if split is not None)
    if not splits:
        raise InputError(f"{images.path}: holds no image; name another data set.")
    raise InputError(
        f"--split {options.split}: {images.path} has no image in it, but in {', '.join(named)}; name one of these."
        if named
        else f"--split {options.split}: {images.path} has no splits; leave it out."
    )


def _check_sets(found: FoundImages, options: BatchCaptionOptions) -> None:
    """Refuses what needs image files, or one picture in a file of its own."""
    path = found.sets[0].path
    if options.engine != "local":
        raise InputError(
            f"--engine {options.engine}: captions image files, and {path} is a data set; use --engine local."
        )
    if options.format == "imagefolder":
        raise InputError(
            f"--format imagefolder: is written among image files, and {path} is a data set; choose another format."
        )
    if options.format == "txt":
        if options.output is None:
            raise InputError(f"--format txt: {path} is a data set; name a folder for the texts with --output.")
        wrong = next((image.name for image in found if not lies_below(image.name)), None)
        if wrong is not None:
            raise InputError(f"--format txt: the id {wrong} in {path} can't be a file's name; choose --format jsonl.")
    caches = [images for images in found.sets if isinstance(images, CacheImages)]
    for name, value in (("attention", options.attention), ("clip-score", options.clip_score)):
        if caches and value:
            raise InputError(
                f"--{name}: needs the whole images, and {caches[0].path} has the model's pixels of them; leave it out."
            )


def check_pixels(captioner: Captioner, model: str, cache: Cache, source: str) -> None:
    """Whether a cache's pixels are those that this captioner makes of the images.

    Raises:
        ModelError: they are not.
    """
    if captioner.prompted == "must":
        raise ModelError(
            f"--model {model}: has to be told what to do, and takes images as they are, not the pixels of {source}; run "
            "`toolkit batch-caption --prompt ...` on the images themselves."
        )
    ours = asdict(captioner.transform) if isinstance(captioner.transform, PixelTransform) else {}
    stored = dict(cache.manifest["pixels"])

    def plain(value: object) -> object:
        return list(value) if isinstance(value, tuple) else value

    differs = [
        name
        for name in ("size", "shortest_edge", "crop", "resample")
        if name not in ours or plain(ours[name]) != plain(stored[name])
    ]
    if differs:
        raise ModelError(
            f"--model {model}: prepares images differently from {source} ({', '.join(differs)}); "
            "run `toolkit preprocess` with the encoder of this model."
        )


def check_caches(captioner: Captioner, model: str, found: FoundImages, prompted: bool = False) -> None:
    """The same for all caches among the sources, whose pixels no prompt can be about.

    Raises:
        InputError: there is a prompt, and a cache.
        ModelError: as there.
    """
    for images in found.sets:
        if isinstance(images, CacheImages):
            if prompted:
                raise InputError(
                    f"--prompt: {images.path} is a cache, whose pixels are not asked about; name the images themselves."
                )
            check_pixels(captioner, model, images.cache, f"{images.path}")


def check_no_cache(found: FoundImages, option: str) -> None:
    """
    Raises:
        InputError: a cache is among the sources, and `option` needs the images.
    """
    for images in found.sets:
        if isinstance(images, CacheImages):
            raise InputError(
                f"{option}: needs the whole images, and {images.path} has a model's pixels of them; leave it out."
            )
