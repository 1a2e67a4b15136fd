"""Where the images of a file of captions are: captions name them relative to the folder that batch-caption was given."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from toolkit.captioning.journal import places_in
from toolkit.data.images import IMAGE_SUFFIXES
from toolkit.data.sources import ImageSource, image_names
from toolkit.errors import ImageError, InputError
from toolkit.options.preprocess import PreprocessOptions
from toolkit.runtime.files import beside


def find_folders(captions: Path, names: Sequence[str], images: Path | None) -> list[tuple[Path, str]]:
    """The folder that each name is relative to: `images`; else the one that batch-caption noted in its state file; else
    the folder of the captions, or Images.

    Raises:
        InputError: the first of the images is in none of these.
    """
    if images is not None:
        if not images.is_dir():
            raise InputError(f"--images {images}: no such folder; name the folder of the images of {captions}.")
        return [(images, name) for name in names]
    noted = _noted(beside(captions, ".state"), names)
    others = _others(captions)
    rest = next((folder for folder in others if any((folder / name).is_file() for name in names[:10])), None)
    if rest is None and not any((noted[name] / name).is_file() for name in names[:10] if name in noted):
        raise InputError(
            f"{captions}: its images (the first is {names[0]}) are not found beside it; name their folder with --images."
        )
    return [(noted.get(name, rest or captions.parent), name) for name in names]


def find_images_of(captions: Path, names: Sequence[str], images: Path | None) -> list[tuple[Path, str]]:
    """The same for names that may lack the suffix of their file, as `a.txt` names `a`: (folder, name of the file).

    Such a name is looked for in `images`, else beside the captions or in Images; where no file fits, or several, it is left
    as it is.

    Raises:
        InputError: as `find_folders`.
    """
    bare: dict[str, tuple[Path, str]] = {}
    for folder in _others(captions) if images is None else [images]:
        if not bare and folder.is_dir():
            bare = _by_stem(folder, names)
    rest = [name for name in names if name not in bare]
    found = bare | (dict(zip(rest, find_folders(captions, rest, images), strict=True)) if rest else {})
    return [found[name] for name in names]


def _others(captions: Path) -> list[Path]:
    """Where images are that nothing has been noted of."""
    return [captions if captions.is_dir() else captions.parent, PreprocessOptions().images]


def _by_stem(folder: Path, names: Sequence[str]) -> dict[str, tuple[Path, str]]:
    """Of the names without the suffix of an image that are no files in the folder, those that are one with a suffix."""
    source = ImageSource.of(folder)
    bare = (name for name in names if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES)
    lost = {name for name in bare if not _is_there(source, name)}
    files: dict[str, list[str]] = {}
    for file in image_names(folder) if lost else ():
        if (stem := os.path.splitext(file)[0]) in lost:
            files.setdefault(stem, []).append(file)
    return {stem: (folder, fit[0]) for stem, fit in files.items() if len(fit) == 1}


def _is_there(source: ImageSource, name: str) -> bool:
    try:
        source.find(name)
    except ImageError:
        return False
    return True


def _noted(state: Path, names: Sequence[str]) -> dict[str, Path]:
    """The folder of each name for which a state file of batch-caption has a place; of several the most common one."""
    candidates: dict[str, list[str]] = {}
    wanted, counts = set(names), Counter[str]()
    for place in places_in(state):
        at = 0
        while at >= 0:
            if place[at:] in wanted:
                folder = place[:at].rstrip("/") or "/"
                candidates.setdefault(place[at:], []).append(folder)
                counts[folder] += 1
            at = place.find("/", at) + 1 or -1
    best = {name: max(folders, key=lambda folder: counts[folder]) for name, folders in candidates.items()}
    return {name: Path(folder) for name, folder in best.items() if os.path.isabs(folder)}
