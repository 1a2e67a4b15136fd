"""The captions as a person finds them: one file, or a text file for each image; and what people have changed there.

What was written is in the journal by content hash. A text file, or a row of jsonl and imagefolder, that has changed since
is a person's work: it is kept, counted and named. csv, parquet and coco can't be told row by row: changed, the file as a
whole is refused. `--overwrite` replaces all of it, and also what batch-caption has not written.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from heapq import merge
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.captioning.journal import Journal
from toolkit.data.sources import FoundImages
from toolkit.errors import InputError, OutputError, ToolkitError
from toolkit.evaluation.hypotheses import read_hypotheses
from toolkit.options import BatchCaptionOptions
from toolkit.outputs.set_copies import check_copy, write_copy
from toolkit.outputs.writers import WRITERS, Row, metadata_of, sidecar_names, sidecar_text, write_jsonl
from toolkit.records import CaptionResult
from toolkit.runtime.files import finishing
from toolkit.runtime.hashing import hash_int
from toolkit.runtime.overwrite import Output, content_hash
from toolkit.runtime.shelf import Shelf

NAME_OF = {"jsonl": "image", "imagefolder": "file_name"}  # forms with a row a line: where it names its image
CHUNK = 512  # text files a transaction


def polish(result: CaptionResult, options: BatchCaptionOptions) -> CaptionResult:
    """Captions as they are exported; the journal keeps them as the model generated them."""

    def clean(text: str) -> str:
        text = text.rstrip().removesuffix(".").rstrip() if options.strip_period else text
        return options.prefix + text + options.suffix

    if result.captions:
        captions = tuple(clean(text) for text in result.captions)
        result = replace(result, caption=captions[0], captions=captions)
    if options.min_score is not None:
        result = replace(result, weak=result.score is not None and result.score < options.min_score)
    return result


class Export:
    """The output of one run.

    Attributes:
        several: whether the rows have several captions, which the model's folder may say; set before `write`.
        kept: names of the text files or rows that a person has changed, after `write`.
        left_out: how many rows the file had that are of other images than this run's, after `write`.
        changed: by image, the rows of the file that a person has changed, which stand in the place of ours.

    Raises:
        OutputError: (when made) it would replace something that is not ours.
    """

    def __init__(
        self, options: BatchCaptionOptions, format: str, output: Path, images: FoundImages, journal: Journal
    ) -> None:
        self.options, self.format, self.output, self.images, self.journal = options, format, output, images, journal
        self.several = (options.generation.num_captions or 1) > 1
        self.kept: list[str] = []
        self.left_out = 0
        self.changed: dict[str, Row] = {}
        self._seen: str | None = None  # hash of the file whose rows were kept
        if options.add_column is not None:
            if format != "parquet":
                raise InputError(
                    f"--add-column {options.add_column}: writes a copy of a data set as Parquet; add --format parquet."
                )
            check_copy(options.add_column, images)
        if format == "txt":
            self.names = sidecar_names(images)
            self._adopt_sidecars()
            self._check_sidecars()
            return
        self._adopt_file()
        inputs = [options.model, *(path for path in options.paths if not Path(path).is_dir())]
        inputs += [str(found.path) for found in images.sets]
        try:
            self._file = Output("--output", output, inputs, options.overwrite, self._is_ours)
        except OutputError:
            self._check_no_image(output)
            raise
        if options.overwrite:
            self._check_no_image(output)

    def write(self, results: Iterable[CaptionResult]) -> None:
        """Writes the captions of the images, given in the order of the images."""
        if self.format == "txt":
            self._write_sidecars(zip(self.names, results, strict=True))
        else:
            self._write_file(results)

    def _check_no_image(self, path: Path) -> None:
        with suppress(OSError):
            state = path.stat()
            if f"{state.st_dev}:{state.st_ino}" in self._inputs:
                raise OutputError(f"--output {path}: is one of the images; name another output.")

    @cached_property
    def _inputs(self) -> Shelf:
        found = Shelf()
        files = (image.path for image in self.images if isinstance(image.root, Path))
        for path in chain(files, *(images.files for images in self.images.sets)):
            with suppress(OSError):
                state = path.stat()
                found.setdefault(f"{state.st_dev}:{state.st_ino}", None)
        return found

    # ---- one file ---------------------------------------------------------------------------------------------------

    def _is_ours(self, path: Path) -> bool:
        """Whether the file may be replaced: what a person has changed in it is kept, or there is nothing of the kind."""
        content = content_hash(path)
        if self._seen is not None:
            return content == self._seen
        known = self.journal.exported(path.name)
        if content in known or not known or self.options.overwrite or self.format not in NAME_OF:
            return content in known
        self._changed_rows()  # raises where it is no such file any more
        return True

    def _write_file(self, results: Iterable[CaptionResult]) -> None:
        hashes = bytearray()
        with self._file.writing() as temporary:
            if self.format in NAME_OF:
                self.changed = {} if self.options.overwrite else self._changed_rows()
                self.kept = sorted(self.changed)
                write_jsonl(temporary, self._merged(results, hashes))
            elif self.options.add_column is not None:
                pairs = zip(self.images, results, strict=True)
                write_copy(temporary, self.options.add_column, pairs, self.images, self.several)
            else:
                WRITERS[self.format](temporary, results, self.several, self.options.clip_score is not None)
            # With rows of a person's the file as a whole is not what we wrote.
            written = content_hash(temporary)
            if self._seen not in (None, written) and self.output.is_file():  # a file of rows, read just now
                self.left_out = self._of_other_images()
            content = ("kept " if self.kept else "") + written
            self.journal.export([(self.output.name, content, bytes(hashes) or None)])
        self.journal.settle([(self.output.name, content)])

    def _of_other_images(self) -> int:
        """How many rows of the file that stands there are of images that this run doesn't have, and not kept."""
        names = Shelf()
        for image in self.images:
            names.setdefault(image.name, None)
        found = (row.get(NAME_OF[self.format]) for _, row in self._lines())
        with suppress(OutputError):  # edited meanwhile into something else: `Output` tells of that
            return sum(name not in self.changed and name not in names for name in found if isinstance(name, str))
        return 0

    def _merged(self, results: Iterable[CaptionResult], hashes: bytearray) -> Iterator[Row]:
        """Our rows, whose hashes are noted, and a person's, in the order of their images."""
        name, with_images = NAME_OF[self.format], self.format == "imagefolder"

        def ours() -> Iterator[Row]:
            for result in results:
                # `datasets` opens the image of every row of an imagefolder.
                if result.image not in self.changed and not (with_images and result.error is not None):
                    row = metadata_of(result) if with_images else result.to_row()
                    hashes.extend(row_hash(row))
                    yield row

        return merge(ours(), (self.changed[key] for key in self.kept), key=lambda row: str(row[name]))

    def _changed_rows(self) -> dict[str, Row]:
        """By image: the rows of the file that stands there which are not as we wrote them.

        Raises:
            OutputError: it is no file of such rows any more.
        """
        if not self.output.is_file():
            return {}
        self._seen = None
        content = content_hash(self.output)
        known = self.journal.exported(self.output.name)
        changed: dict[str, Row] = {}
        if content not in known:
            hashes = np.sort(np.frombuffer(b"".join(blob or b"" for blob in known.values()), ">u8").astype(np.uint64))
            for number, row in self._lines():
                name = row.get(NAME_OF[self.format])
                ours = np.uint64(int.from_bytes(row_hash(row), "big"))
                if ours in hashes[hashes.searchsorted(ours) :][:1]:
                    continue
                if not isinstance(name, str) or name in changed:
                    raise self._no_rows(number)
                changed[name] = row
        self._seen = content
        return changed

    def _lines(self) -> Iterator[tuple[int, Row]]:
        with open(self.output, encoding="utf-8", errors="backslashreplace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise self._no_rows(number)
                yield number, row

    def _no_rows(self, number: int) -> OutputError:
        return OutputError(
            f"--output {self.output}: line {number}, which was changed, is not the row of one image any more; correct it, name "
            "another file, or add --overwrite to replace it."
        )

    # ---- a text file for each image -----------------------------------------------------------------------------------

    def _check_sidecars(self) -> None:
        if len(self.names) < len(self.images):
            raise InputError(
                "--format txt: two images would share one text file; rename one, or choose --format jsonl."
            )
        for name in self.names:
            path = self.output / name
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if not stat.S_ISREG(mode):
                raise OutputError(f"--output {path}: is not a regular file; name another output.")
            if self.journal.exported(name):
                continue
            self._check_no_image(path)
            if not self.options.overwrite:
                raise OutputError(
                    f"--output {path}: exists and is not what this command wrote; name another output, or add --overwrite "
                    "to replace it."
                )

    def _write_sidecars(self, results: Iterable[tuple[str, CaptionResult]]) -> None:
        texts = ((name, sidecar_text(result)) for name, result in results if result.error is None)
        temporary = f".toolkit-{secrets.token_hex(4)}.tmp"  # short, for names that are as long as names can be
        while some := list(islice(texts, CHUNK)):
            ours, others = [], []
            for name, text in some:
                stands = self._stands(name, text)
                if stands is None:
                    self.kept.append(name)
                else:
                    ours.append((name, sha256(text).hexdigest()))
                    if not stands:
                        others.append((name, text))
            self.journal.export((name, content, None) for name, content in ours)
            for name, text in others:
                path = self.output / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with finishing(path, path.parent / temporary, lasting=False) as unfinished:
                    unfinished.write_bytes(text)
            self.journal.settle(ours)

    def _stands(self, name: str, text: bytes) -> bool | None:
        """Whether the text stands there already; None where a person's does, which is kept."""
        path = self.output / name
        if not os.path.lexists(path):
            return False
        stands = path.read_bytes()
        if stands == text:
            return True
        return False if self.options.overwrite or sha256(stands).hexdigest() in self.journal.exported(name) else None

    # ---- what toolkit 0.1 wrote ---------------------------------------------------------------------------------------
    # Its journal has the paths of what it wrote, but not what: ours is what has no other captions than the journal.

    @cached_property
    def _former(self) -> set[str]:
        """All captions of the journal, with and without what the options add."""
        said = set()
        for result in self.journal.results():
            said |= {"", *result.captions, *polish(result, self.options).captions}
        return said

    def _adopt_file(self) -> None:
        name = self.output.name
        if not self.output.is_file() or self.journal.exported(name) or not self.journal.was_written(name):
            return
        content, hashes = content_hash(self.output), None
        try:
            if self.format in NAME_OF:
                rows = [row for _, row in self._lines()]
                ours = [row_hash(row) for row in rows if self._is_former(row)]
                content = content if len(ours) == len(rows) else f"kept {content}"
                hashes = b"".join(ours)
            elif not {row.caption or "" for row in read_hypotheses(self.output).rows} <= self._former | {""}:
                return
        except ToolkitError:  # no file of captions any more
            return
        self.journal.export([(name, content, hashes)])
        self.journal.settle([(name, content)])

    def _is_former(self, row: Row) -> bool:
        said: Any = row.get("caption", row.get("text"))
        return (said is None and bool(row.get("error"))) or (isinstance(said, str) and said in self._former)

    def _adopt_sidecars(self) -> None:
        found = []
        for name in self.names:
            if not self.journal.was_written(name) or self.journal.exported(name):
                continue
            with suppress(OSError):
                text = (self.output / name).read_bytes()
                lines = set(text.decode("utf-8", "backslashreplace").splitlines())
                ours = bool(lines) and self._former >= lines
                found.append((name, ("" if ours else "kept ") + sha256(text).hexdigest()))
        self.journal.export((name, content, None) for name, content in found)
        self.journal.settle(found)


def row_hash(row: Row) -> bytes:
    """8 bytes that do not depend on how the row is written down."""
    return hash_int(json.dumps(row, sort_keys=True)).to_bytes(8, "big")
