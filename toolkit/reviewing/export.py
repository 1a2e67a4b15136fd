"""Captions with what people have said of them, in every format of batch-caption."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.data.reviews import Action, Key, latest, review_of
from toolkit.data.sources import FoundImage, FoundImages
from toolkit.errors import InputError, OutputError
from toolkit.options import ReviewOptions
from toolkit.outputs.writers import WRITERS, format_of, metadata_of, sidecar_names, sidecar_text, write_jsonl
from toolkit.records import CaptionResult
from toolkit.reviewing.listing import Item
from toolkit.runtime.files import finishing
from toolkit.runtime.overwrite import Output


def exported(items: Sequence[Item], standing: dict[Key, Action]) -> list[CaptionResult]:
    """A row for each image, in the order of the items. `source` is "person" where the caption is none of those that were
    there; a rejected image keeps its captions, and is marked."""
    of_image: dict[str, list[Item]] = {}
    for item in items:
        of_image.setdefault(item.id, []).append(item)
    return [
        _singles(same, standing) if same[0].single else _whole(same[0], standing.get(same[0].key))
        for same in of_image.values()
    ]


def _whole(item: Item, action: Action | None) -> CaptionResult:
    given = item.captions or (() if item.caption is None else (item.caption,))
    text = None if action is None else action.text
    captions = given if text is None else (text,)
    own = text is None or text == item.caption  # what the score and the rest are of
    row: dict[str, Any] = {name: item.row.get(name) for name in ("score", "ended", "width", "height")}
    if not own:
        row["score"] = row["ended"] = None
    return CaptionResult(
        item.id,
        captions[0] if captions else None,
        tuple(captions),
        error=None if text is not None else item.row.get("error"),
        source="model" if text is None or text in given else "person",
        rejected=action is not None and action.action == "reject",
        **row,
    )


def _singles(items: Sequence[Item], standing: dict[Key, Action]) -> CaptionResult:
    words = {item.caption: standing[item.key] for item in items if item.key in standing}
    given = tuple(item.caption for item in items if item.caption is not None)
    found = [latest(caption, words) for caption in given]
    kept = tuple(caption for caption in found if caption is not None)
    captions = kept or given
    source = "model" if set(captions) <= set(given) else "person"
    return CaptionResult(items[0].id, captions[0], captions, source=source, rejected=not kept)


class ReviewExport:
    """The file, or the text files, of `--export`, checked when made.

    Raises:
        OutputError: it may not be written.
    """

    def __init__(self, options: ReviewOptions, images: Sequence[tuple[Path, str]] | None) -> None:
        assert options.export is not None
        self.options, self.images, self.path = options, images, options.export
        self.format = format_of(options.format, options.export)
        if self.format in ("txt", "imagefolder"):
            self._check_folder()
            if self.format == "imagefolder":
                self.path = self.path / "metadata.jsonl"
        if self.format != "txt":
            self._file = Output("--export", self.path, [options.path, review_of(options.path)], options.overwrite)

    def _refused(self, why: str) -> OutputError:
        return OutputError(f"--export {self.path}: {why}.")

    def _check_folder(self) -> None:
        folder = self.path
        if not folder.is_dir() or os.path.realpath(folder) == "/":
            raise self._refused(f"--format {self.format} needs a folder that is there; make it, or name another one")
        if self.format == "imagefolder" and not all((folder / name).is_file() for _, name in self.images or ()):
            raise self._refused("metadata.jsonl must be in the folder of the images; name that folder")

    def write(self, results: Sequence[CaptionResult]) -> None:
        if self.format == "txt":
            self._write_texts(results)
            return
        with self._file.writing() as temporary:
            if self.format == "jsonl":
                write_jsonl(temporary, (result.to_row() for result in results))
            elif self.format == "imagefolder":
                write_jsonl(temporary, self._metadata(results))
            else:
                WRITERS[self.format](temporary, results, any(len(result.captions) > 1 for result in results), False)

    def _metadata(self, results: Sequence[CaptionResult]) -> Iterator[dict[str, Any]]:
        for result in results:
            if result.captions:
                yield {**metadata_of(result), "source": result.source, "rejected": result.rejected}

    def _write_texts(self, results: Sequence[CaptionResult]) -> None:
        """A text file for each image that has captions and was not rejected; all are checked before the first is written."""
        images = FoundImages(FoundImage(self.path, result.image) for result in results)
        names = dict(zip((image.name for image in images), sidecar_names(images), strict=False))
        if len(set(names.values())) < len(results):
            raise InputError("--format txt: two images would share one text file; choose another format.")
        texts = {
            self.path / names[result.image]: None if result.rejected else sidecar_text(result)
            for result in results
            if result.captions
        }
        for path, text in texts.items():
            self._check_text(path, text)
        for path, text in texts.items():
            if text is None:
                with suppress(FileNotFoundError):
                    path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with finishing(path, lasting=False) as temporary:
                temporary.write_bytes(text)

    def _check_text(self, path: Path, text: bytes | None) -> None:
        """Another text may stand there only with --overwrite; that of a rejected image then goes."""
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_file():
            raise OutputError(f"--export {path}: is not a regular file; name another folder.")
        if self.options.overwrite or path.read_bytes() == text:
            return
        why = "exists, but its image was rejected" if text is None else "exists, with another text"
        raise OutputError(f"--export {path}: {why}; name another folder, or add --overwrite to replace such files.")
