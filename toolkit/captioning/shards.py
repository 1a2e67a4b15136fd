"""Captioning in shards, for an engine whose workers share nothing but storage.

<output>.pieces/000000.todo      the images of a shard, one a line, with what is filled into their prompts
<output>.pieces/000000.jsonl     its rows, renamed into place when finished; the first line is the model fingerprint

A shard is a whole number of batches, so each image is in the same batch as in a run without shards. When all shards are
finished, or when a later run finds those of a stopped run, the rows go into the journal and the folder is removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.captioning.journal import IN_MEMORY, Fingerprint, Journal
from toolkit.captioning.pipeline import caption_images, model_fingerprint
from toolkit.captioning.prompts import Earlier, Prompts
from toolkit.data.sources import FoundImage, FoundImages
from toolkit.errors import ImageError, OutputError, RunError
from toolkit.options import BatchCaptionOptions
from toolkit.records import CaptionResult
from toolkit.runtime.copies import Copy
from toolkit.runtime.engines import ENGINES
from toolkit.runtime.files import finishing, unfinished
from toolkit.runtime.processes import Resources
from toolkit.runtime.progress import Progress

SHARD_IMAGES = 128  # a minute of work on two cores, a second on a GPU
LARGEST_BATCH = 64  # of --batch-size auto
OURS = re.compile(r"\d{6,}\.(todo|jsonl)(\.[0-9a-f]{8}\.tmp)?")  # the names of our files in the folder


@dataclass
class ShardCaptioner:
    """Captions shards; picklable. `self(task)` captions one shard and writes its rows; the model is loaded once."""

    folder: Path
    options: BatchCaptionOptions
    fingerprint: Fingerprint  # of the captioner, the same on every node
    threads: int  # of torch on a CPU: with another number of threads sums differ in the last digit
    prompts: Prompts | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "captioner"}

    @cached_property
    def captioner(self) -> Captioner:
        torch.set_num_threads(self.threads)
        captioner = load_captioner(self.options.model, self.options.device, self.options.precision)
        if model_fingerprint(captioner, self.options.generation) != self.fingerprint:
            raise RunError(
                f"--model {self.options.model}: a node of the cluster has other weights, another precision "
                f"({captioner.precision} there) or another version of toolkit than the machine where the command runs; set "
                "--precision, and use a model folder that all nodes share."
            )
        return captioner

    def __call__(self, task: dict[str, Any]) -> None:
        path = self.folder / f"{task['shard']:06d}.jsonl"
        places: dict[FoundImage, str] = {}
        fields: dict[FoundImage, dict[str, str | None]] = {}
        for root, url, name, place, *filled in _lines(path.with_suffix(".todo")):
            image = FoundImage(Copy.of(url, Path(root)) if url else Path(root), name)
            places[image] = place
            fields.update((image, values) for values in filled)
        prompts = None if self.prompts is None else replace(self.prompts, found=fields)
        journal = Journal(IN_MEMORY, self.fingerprint)  # an image that is in the shard twice is captioned once
        with finishing(path, unfinished(path)) as temporary, open(temporary, "w", encoding="ascii") as file:
            file.write(json.dumps(self.fingerprint.now) + "\n")
            for batch in caption_images(self.captioner, list(places), self.options, journal, prompts):
                journal.add((places[one.found], one.state, one.key, one.result) for one in batch if one.key)
                for one in batch:
                    row = one.result.to_row(kept=True)
                    line = [places[one.found], one.found.name, one.state, one.key, one.kept, row]
                    file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> Iterator[Any]:
    """The JSON value of each line; written as ASCII, which can hold names that are not UTF-8."""
    with open(path, encoding="ascii") as file:
        for line in file:
            yield json.loads(line)


def caption_in_shards(
    options: BatchCaptionOptions,
    images: FoundImages,
    journal: Journal,
    folder: Path,
    prompts: Prompts | None = None,
) -> tuple[int, dict[str, str]]:
    """Captions the images with `options.engine`, and adds the rows to the journal; returns what `gather` returns.

    Raises:
        RunError: the engine failed; finished shards are kept, and the next run uses them.
    """
    batch = LARGEST_BATCH if options.batch_size == "auto" else int(options.batch_size)
    size = max(1, SHARD_IMAGES // batch) * batch
    folder.mkdir()
    count, rest = -(-len(images) // size), iter(images)
    for number in range(count):
        with open(folder / f"{number:06d}.todo", "w", encoding="ascii") as file:
            for found in islice(rest, size):
                url = found.root.url if isinstance(found.root, Copy) else None
                line: list[Any] = [str(found.root), url, found.name, found.place]
                if prompts is not None:
                    line.append(_fields(prompts, found))
                file.write(json.dumps(line) + "\n")
    threads = torch.get_num_threads()
    function = ShardCaptioner(
        folder.absolute(), options, journal.fingerprint, threads, prompts and replace(prompts, earlier=None)
    )
    tasks = [{"shard": number} for number in range(count)]
    given = (path for path in map(Path, options.paths) if path.is_dir())
    resources = Resources(
        options.num_workers,
        options.ray_address,
        cpus=threads,
        gpus=options.device in ("auto", "cuda"),
        shared=(folder.absolute(), *given),
    )

    def done() -> int:
        return sum(min(size, len(images) - int(path.stem) * size) for path in folder.glob("*.jsonl"))

    with Progress("caption", len(images)) as progress:
        ENGINES[options.engine](function, tasks, resources, progress, done)
    return gather(folder, journal)


def _fields(prompts: Prompts, found: FoundImage) -> dict[str, Any]:
    """An unreadable text beside an image is as none: the node says that there is no caption."""
    try:
        return dict(prompts.fields(found))
    except ImageError:
        return dict(replace(prompts, earlier=Earlier(())).fields(found))


def gather(folder: Path, journal: Journal) -> tuple[int, dict[str, str]]:
    """Adds the rows of finished shards to the journal and removes the folder.

    Returns:
        How many images were captioned or tried; and the images that could not be read at all, with the reason.

    Raises:
        OutputError: there is something else in the folder.
    """
    new, lost = 0, dict[str, str]()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if any(not OURS.fullmatch(path.name) for path in files):
        raise OutputError(
            f"{folder}: holds files that batch-caption did not write; move them, or name another --output."
        )
    for path in files:
        if path.suffix != ".jsonl":
            continue
        lines = _lines(path)
        if next(lines) != journal.fingerprint.now:  # from a run with other settings
            continue
        rows = list(lines)
        # An image that was in an earlier shard too keeps its first row.
        known = {key: journal.result(key) for _, _, _, key, _, _ in rows if key}
        new += sum(not kept and known.get(key) is None for _, _, _, key, kept, _ in rows)
        lost.update((name, row["error"]) for _, name, _, key, _, row in rows if key is None)
        journal.add(
            (place, tuple(state), key, known[key] or CaptionResult.from_row(row))
            for place, _, state, key, _, row in rows
            if key
        )
    for path in files:
        path.unlink()
    with suppress(FileNotFoundError):
        folder.rmdir()
    return new, lost
