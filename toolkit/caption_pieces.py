"""Captioning in pieces, for an engine whose workers share nothing but storage.

<output>.pieces/000000.todo      the images of a piece, pickled
<output>.pieces/000000.jsonl     its rows, finished by rename; first line: what made them

A piece is a whole number of batches, so that an image stands in the same batch as in a run without pieces. When all
are done, or a later run finds what a stopped one left, the rows go into the journal and the folder is removed.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from toolkit.captioners import load_captioner
from toolkit.engines import run
from toolkit.errors import RunError
from toolkit.files import finishing, unfinished
from toolkit.images import FoundImage
from toolkit.journal import Journal
from toolkit.modeling import Captioner, silence_transformers
from toolkit.options import BatchCaptionOptions
from toolkit.progress import Progress

PIECE_IMAGES = 128  # a minute of work on two cores, a second on a GPU
LARGEST_BATCH = 64  # of --batch-size auto

Caption = Callable[[Captioner, Sequence[FoundImage], BatchCaptionOptions, Journal], Iterator[list[tuple[Any, Any]]]]


@dataclass
class PieceCaptioner:
    """Captions pieces; picklable. `self(task)` captions one and writes its rows; the model is loaded once."""

    folder: Path
    options: BatchCaptionOptions
    caption: Caption  # the command's own way, batch by batch
    identify: Callable[[BatchCaptionOptions, Captioner], str]
    maker: str  # what `identify` must say on each node
    threads: int  # of torch on a CPU: sums of another number of threads differ in the last digit

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "captioner"}

    @cached_property
    def captioner(self) -> Captioner:
        torch.set_num_threads(self.threads)
        silence_transformers()
        captioner = load_captioner(self.options.model, self.options.device, self.options.precision)
        if self.identify(self.options, captioner) != self.maker:
            raise RunError(
                f"--model {self.options.model}: other weights, another precision ({captioner.model.dtype} here) or another "
                "toolkit on a node of the cluster than where the command runs; name --precision, and give one folder that "
                "all nodes share."
            )
        return captioner

    def __call__(self, task: dict[str, Any]) -> None:
        path = self.folder / f"{task['piece']:06d}.jsonl"
        images = pickle.loads(path.with_suffix(".todo").read_bytes())
        journal = Journal(Path(":memory:"), self.maker)  # an image that the piece holds twice is captioned once
        with finishing(path, unfinished(path)) as temporary, open(temporary, "w", encoding="ascii") as file:
            file.write(json.dumps(self.maker) + "\n")
            for batch in self.caption(self.captioner, images, self.options, journal):
                journal.add((done.found.name, done.stat, done.content, row) for done, row in batch if done.content)
                for done, row in batch:
                    file.write(json.dumps([done.found.name, done.stat, done.content, done.kept, row]) + "\n")


def caption_in_pieces(
    options: BatchCaptionOptions, images: Sequence[FoundImage], journal: Journal, folder: Path, caption: Caption,
    identify: Callable[[BatchCaptionOptions, Captioner], str],
) -> tuple[int, dict[str, str]]:  # fmt: skip
    """Captions the images where `options.engine` says, and takes the rows into the journal; returns what `gather` does.

    Raises:
        RunError: as the engine; finished pieces stand, and the next run takes them.
    """
    batch = LARGEST_BATCH if options.batch_size == "auto" else int(options.batch_size)
    size = max(1, PIECE_IMAGES // batch) * batch
    folder.mkdir()
    pieces = [images[start : start + size] for start in range(0, len(images), size)]
    for piece, part in enumerate(pieces):
        (folder / f"{piece:06d}.todo").write_bytes(pickle.dumps(list(part)))
    threads = torch.get_num_threads()
    function = PieceCaptioner(folder.absolute(), options, caption, identify, journal.maker, threads)
    given = [Path(path) for path in options.paths]
    with Progress("caption", len(images)) as progress:
        run(
            options,
            function,
            [{"piece": piece} for piece in range(len(pieces))],
            progress,
            lambda: sum(len(pieces[int(path.stem)]) for path in folder.glob("*.jsonl")),
            shared=[folder.absolute(), *(path for path in given if path.is_dir())],
            cpus=threads,
            gpus=options.device in ("auto", "cuda"),
        )
    return gather(folder, journal)


def gather(folder: Path, journal: Journal) -> tuple[int, dict[str, str]]:
    """Takes the rows of finished pieces into the journal and removes the folder.

    Returns:
        How many images were captioned or tried, and those that could not even be opened, with the reason.
    """
    new, lost = 0, dict[str, str]()
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, encoding="ascii") as file:
            if json.loads(next(file)) != journal.maker:  # of a run with other settings
                continue
            lines = [json.loads(line) for line in file]
        # An image that an earlier piece has too keeps the row that stands.
        standing = {content: journal.row(content) for _, _, content, _, _ in lines if content}
        new += sum(not kept and standing.get(content) is None for _, _, content, kept, _ in lines)
        lost.update((name, row["error"]) for name, _, content, _, row in lines if content is None)
        journal.add((name, stat, content, standing[content] or row) for name, stat, content, _, row in lines if content)
    shutil.rmtree(folder, ignore_errors=True)
    return new, lost
