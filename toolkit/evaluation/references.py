"""Reference captions: from a split of a cache, or from annotations of any format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.cache.schema import MANIFEST, Cache, open_cache
from toolkit.captioning.places import find_images_of
from toolkit.data.annotations import Columns, images_beside, read_annotations
from toolkit.data.images import read_image
from toolkit.data.pixels import centre
from toolkit.data.sources import ImageSource
from toolkit.errors import InputError
from toolkit.evaluation.hypotheses import Hypotheses
from toolkit.options import EvaluateOptions
from toolkit.records import SPLITS
from toolkit.runtime.copies import as_path


@dataclass(frozen=True)
class References:
    """Reference captions of one split, and the names of all images of its source.

    Attributes:
        split: the split asked for, or "all" if the source has no splits.
        captions: image id -> captions, of this split.
        paths: image id -> path below the images' folder, of all splits.
        train: captions of the train split; None if there is none.
        notes: sentences for the reader.
        images: the folder that paths are relative to; None if the images are elsewhere.
        rows: image id -> (split, row) in the cache.
        folders: image id -> the folder that its path is relative to, where images are of several.
        reason: why no image has a reference caption; None where there are some.
    """

    source: str
    split: str
    captions: dict[str, list[str]]
    paths: dict[str, str]
    train: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    cache: Cache | None = None
    images: Path | None = None
    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    reason: str | None = None

    @property
    def name(self) -> str:
        if self.reason is not None:
            return self.source
        return f"all of {self.source}" if self.split == "all" else f"the {self.split} split of {self.source}"

    def picture(self, image_id: str) -> Any:
        """The image from the cache, else from its file; None without a folder of images.

        Raises:
            ImageError: the file can't be read.
        """
        if self.cache is not None:
            split, row = self.rows[image_id]
            return np.array(centre(self.cache[split][row]["pixel_values"], *self.cache.seen))
        folder = self.folders.get(image_id, self.images)
        return None if folder is None else read_image(ImageSource.of(folder).read(self.paths[image_id]).data)


@dataclass(frozen=True)
class Source:
    """Where references are: a cache, or annotations with what `read_annotations` needs to read them.

    Attributes:
        option: that the user named the source with.
        instead: what can be done without this source, as the end of a sentence.
    """

    path: Path
    images: Path | None = None
    format: str = "auto"
    columns: Columns | None = None
    option: str = "--references"
    instead: str = ""

    @classmethod
    def of(cls, options: EvaluateOptions) -> Source:
        instead = "; where there are no references, name a CLIP model with --clip-score"
        return cls(options.references, options.images, options.format, Columns.of(options), instead=instead)


def read_references(source: Source, split: str, find: bool = False) -> References:
    """The references of a split.

    Args:
        split: one of `SPLITS`, or "all".
        find: the images will be opened, so names that lead to no file are searched for.

    Raises:
        InputError: no such source, a broken one, or nothing in the split.
    """
    path, option = source.path, source.option
    if not path.exists() and source.format != "hub":
        raise InputError(
            f"{option} {path}: no such file or folder (relative to the current directory); name a cache (`toolkit preprocess` "
            f"writes one) or annotations{source.instead}."
        )
    if (path / MANIFEST).is_file():
        for name, value, usual in (("images", source.images, None), ("format", source.format, "auto")):
            if value != usual:
                raise InputError(f"--{name} {value}: only applies to annotations, but {path} is a cache; leave it out.")
        if source.columns is not None:
            source.columns.refuse(f"{path} is a cache, whose columns are known")
        return _of_cache(path, split, option)
    return _of_annotations(source, split, find)


def _of_cache(path: Path, split: str, option: str) -> References:
    cache = open_cache(path)
    captions: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    rows: dict[str, tuple[str, int]] = {}
    train: list[str] = []
    bare = 0
    for name in SPLITS:
        reader = cache[name]
        ids, said = reader.column("image_id"), reader.column("captions")
        paths.update(zip(ids, reader.column("path"), strict=True))
        if name == "train":
            train = [caption for of_image in said for caption in of_image]
        if split in (name, "all"):
            rows.update((image_id, (name, row)) for row, image_id in enumerate(ids))
            captions.update((image_id, of_image) for image_id, of_image in zip(ids, said, strict=True) if of_image)
            bare += sum(not of_image for of_image in said)
    if not captions:
        raise InputError(f"{option} {path}: its {split} split has no captions; name another --split.")
    notes = [f"{bare} images of {path} have no references and are left out"] if bare else []
    return References(f"{path}", split, captions, paths, train or None, notes, cache=cache, rows=rows)


def _of_annotations(source: Source, split: str, find: bool) -> References:
    path, option = source.path, source.option
    images = images_beside(path, source.images)
    try:
        found = read_annotations(path, images, source.format, columns=source.columns, find=find)
        records = list(found.records)
    except InputError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        raise InputError(f"{option} {error}") from None
    splits = {record.split for record in records if record.split is not None}
    notes = found.notes.sentences()
    if not splits and split != "all":
        notes.append(f"{path} has no splits, so all of its images are used")
        split = "all"
    if split != "all" and split not in splits:
        raise InputError(
            f"{option} {path}: has no {split} split, only {', '.join(sorted(splits))}; name one of these with --split."
        )
    wanted = {r.image_id: list(r.captions) for r in records if r.captions and split in (r.split, "all")}
    train = [caption for record in records if record.split == "train" for caption in record.captions]
    paths = {record.image_id: record.path for record in records}
    return References(f"{path}", split, wanted, paths, train or None, notes, images=found.images)


def unreferenced(hypotheses: Hypotheses, images: Path | None, reason: str) -> References:
    """The images of captions that have no references: those that the captions name.

    Args:
        images: the folder that the names are relative to; None looks where batch-caption noted it, and beside the captions.
        reason: why there are no references.

    Raises:
        InputError: the images are not found.
    """
    names = list(dict.fromkeys(row.names[-1] for row in hypotheses.rows))
    places = dict(zip(names, find_images_of(Path(hypotheses.source), names, images), strict=True))
    note = (
        f"without references ({reason}): BLEU, ROUGE-L, CIDEr, RefCLIPScore and the comparison with a person are left out, because "
        "they compare captions with references"
    )
    return References(
        source=hypotheses.source,
        split="all",
        captions={name: [] for name in names},
        paths={name: file for name, (_, file) in places.items()},
        notes=[note],
        folders={name: folder for name, (folder, _) in places.items()},
        reason=reason,
    )


def read_idf(idf: str, references: References, source: Source) -> tuple[dict[str, list[str]], str]:
    """The corpus for CIDEr's word weights, and its name.

    `train` is the train split of the references. A path is a cache or annotations: their train split, or everything
    if they have no splits.
    """
    if idf == "train" and references.train is None:
        raise InputError(f"--idf train: {references.source} has no train split; name a cache or annotations instead.")
    source = replace(source, option="--idf", instead="") if idf == "train" else Source(as_path(idf), option="--idf")
    corpus = read_references(source, "train")
    return corpus.captions, corpus.name
