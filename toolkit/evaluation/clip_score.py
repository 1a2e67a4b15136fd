"""Figures that look at the image: CLIPScore and RefCLIPScore, and PAC-S and RefPAC-S of the same form.

    CLIPScore = w * max(cos(image, caption), 0)
    RefCLIPScore = harmonic mean of CLIPScore and max(0, the largest cos(reference, caption))

over the vectors of a CLIP model, of captions and references behind the words "A photo depicts". CLIPScore: Hessel et al.
2021, w = 2.5. PAC-S: Sarto et al. 2023, w = 2, with CLIP weights of their own. Captions go in as they are written.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolkit.data.annotations import images_beside
from toolkit.data.pixels import centre
from toolkit.data.sources import ImageSource
from toolkit.errors import InputError
from toolkit.evaluation.metrics import Scores
from toolkit.evaluation.references import References
from toolkit.models.vectors import Picture
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.progress import Progress

PREFIX = "A photo depicts "
WEIGHTS = {"clip_score": 2.5, "pac_score": 2.0}
EXAMPLES = 3


class Model(Protocol):
    """What `toolkit.models.clip.Clip` is to this file."""

    @property
    def signature(self) -> str: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...

    def images(self, pictures: Iterable[Picture], workers: int) -> Generator[np.ndarray | str, None, None]: ...


def clip_score(images: np.ndarray, captions: np.ndarray, weight: float = WEIGHTS["clip_score"]) -> np.ndarray:
    """(n, D) and (n, D), of norm 1 -> (n,): from 0 to `weight`."""
    return weight * np.maximum(np.einsum("nd,nd->n", images, captions, dtype=np.float64), 0.0)


def with_references(scores: np.ndarray, captions: np.ndarray, references: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """RefCLIPScore: harmonic means of (n,) scores and each caption's largest similarity to a reference.

    Args:
        captions: (n, D) of norm 1.
        references: (m, D) of norm 1, at least one a caption.
        owner: (m,), which caption each belongs to.
    """
    similar = np.zeros(len(captions))  # the paper's max(..., 0), which the authors' program leaves out
    np.maximum.at(similar, owner, np.einsum("md,md->m", captions[owner], references, dtype=np.float64))
    total = scores + similar
    return np.divide(2 * scores * similar, total, out=np.zeros(len(scores)), where=total > 0)


def prefixed(captions: Iterable[str]) -> list[str]:
    return [PREFIX + caption for caption in captions]


@dataclass(frozen=True)
class ClipJudge:
    """One of these metrics with its model.

    Attributes:
        metric: of `WEIGHTS`; `option` is that of its model.
        workers: threads that read images.
    """

    metric: str
    model: Model
    workers: int

    @property
    def option(self) -> str:
        return f"--{self.metric.replace('_', '-')}"

    def judge(
        self, scores: Sequence[Scores], captions: Sequence[Mapping[str, str]], references: References
    ) -> tuple[list[Scores], str, str | None]:
        """The systems' scores with this metric, and with references the one that uses them.

        An empty caption scores 0.

        Returns:
            The scores; what the signature says; a note for the reader.

        Raises:
            InputError: an image can't be read.
        """
        ids = scores[0].image_ids
        where, pictures, note = pictures_of(references, ids, self.option)
        vectors = self._images(ids, pictures, references)
        counts = [len(references.captions[i]) for i in ids]
        owner = np.repeat(np.arange(len(ids)), counts)
        said = self.model.texts(prefixed(c for i in ids for c in references.captions[i])) if len(owner) else None
        weight, judged = WEIGHTS[self.metric], []
        for system, given in zip(scores, captions, strict=True):
            texts = self.model.texts(prefixed(given[i] for i in ids))
            there = np.array([bool(given[i].strip()) for i in ids])
            per_image = {self.metric: clip_score(vectors, texts, weight) * there}
            if said is not None:
                per_image[f"ref_{self.metric}"] = with_references(per_image[self.metric], texts, said, owner) * there
            corpus = {name: float(values.mean()) for name, values in per_image.items()}
            judged.append(
                replace(system, corpus={**system.corpus, **corpus}, per_image={**system.per_image, **per_image})
            )
        return judged, f"{self.metric}(w={weight:g},{self.model.signature},images={where})", note

    def _images(self, ids: Sequence[str], pictures: Iterable[Picture], references: References) -> np.ndarray:
        found: list[np.ndarray] = []
        wrong: list[str] = []
        with Progress(self.metric.split("_")[0], len(ids)) as progress:
            for image_id, vector in zip(ids, self.model.images(pictures, self.workers), strict=True):
                if isinstance(vector, str):
                    wrong.append(f"{references.paths[image_id]}: {vector}")
                else:
                    found.append(vector)
                progress.update(1)
        if wrong:
            raise InputError(
                f"{self.option}: {len(wrong):,} of {len(ids):,} images can't be read ({', '.join(wrong[:EXAMPLES])}); put them "
                "back, name their folder with --images, or leave their captions out."
            )
        return np.stack(found)


def judged_by_clip(
    clips: Sequence[ClipJudge], scores: list[Scores], captions: Sequence[Mapping[str, str]], references: References
) -> tuple[list[Scores], list[str], list[str]]:
    """The systems' scores with the metrics of all judges; what the signature says of each; notes for the reader."""
    signed, noted = list[str](), list[str]()
    for clip in clips:
        scores, said, note = clip.judge(scores, captions, references)
        signed.append(said)
        noted += [note] if note else []
    return scores, signed, noted


def pictures_of(references: References, ids: Sequence[str], option: str) -> tuple[str, Iterator[Picture], str | None]:
    """The images themselves: their files; of a cache whose files are gone, or were none, its pixels.

    Returns:
        "files" or "cache"; the images in order; a note for the reader.

    Raises:
        InputError: the references know no images.
    """
    folder = references.images
    if references.cache is not None:
        folder = _folder_of_cache(references)
        if folder is None or not all((folder / references.paths[i]).is_file() for i in ids):
            note = (
                f"{option}: the image files that {references.source} was made from are not all where they were, so the model "
                "saw the cache's pixels, resized for another model; figures differ a little from those of the files"
            )
            return "cache", (_of_cache(references, i) for i in ids), note
    if references.folders:
        places = references.folders
    elif folder is not None:
        places = dict.fromkeys(ids, folder)
    else:
        raise InputError(
            f"{option}: {references.source} holds its images itself; make a cache of it with `toolkit preprocess`, and name "
            "that with --references."
        )
    return "files", (Picture(None, partial(_read, places[i], references.paths[i])) for i in ids), None


def _read(folder: Path, name: str) -> bytes:
    return ImageSource.of(folder).read(name).data


def _folder_of_cache(references: References) -> Path | None:
    assert references.cache is not None
    made = references.cache.manifest["options"]
    annotations, images = Path(made["annotations"]), Path(made["images"]) if made.get("images") else None
    try:
        folder = images_beside(annotations, images)
    except InputError:
        return None
    return folder if folder is not None and folder.is_dir() else None


def _of_cache(references: References, image_id: str) -> Picture:
    assert references.cache is not None
    split, row = references.rows[image_id]
    pixels = np.array(centre(references.cache[split][row]["pixel_values"], *references.cache.seen))  # (3, H, W)
    content = hash_hex(f"{pixels.shape}", pixels.tobytes())

    def image() -> Any:
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    return Picture(content, image)
