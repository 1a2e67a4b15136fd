"""`toolkit batch-caption`: a caption for every image below some folders, or in some data sets, as rows of a file.

    find images -> caption those that have no caption yet (pipeline, or shards on a cluster) -> journal -> export

The journal is `<output>.state`, and stays there: a rerun captions only what is not in it. Its rows are written to the
output in the sorted order of the images, one at a time.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from toolkit.cache.uploads import Outbox
from toolkit.captioning.attention import Attention
from toolkit.captioning.captioner import Captioner, faster_precision, load_captioner
from toolkit.captioning.inputs import check_caches, check_no_cache, find_inputs
from toolkit.captioning.journal import IN_MEMORY, Fingerprint, Journal
from toolkit.captioning.pipeline import Captioned as Done
from toolkit.captioning.pipeline import caption_images, known_result, model_fingerprint
from toolkit.captioning.prompts import Earlier, Prompts, with_prompts
from toolkit.captioning.server import Server, ask_images
from toolkit.captioning.settings import Settings, with_words
from toolkit.captioning.shards import caption_in_shards, gather
from toolkit.data.reviews import review_of
from toolkit.data.sources import FoundImage, FoundImages
from toolkit.errors import InputError, OutputError
from toolkit.evaluation.hypotheses import read_hypotheses
from toolkit.evaluation.shown import percent
from toolkit.options import BatchCaptionOptions
from toolkit.outputs.clip_scores import Captioned, ClipScores
from toolkit.outputs.exports import Export, polish
from toolkit.outputs.writers import format_of
from toolkit.records import CaptionResult, Summary
from toolkit.reports.gallery import gallery_output, write_caption_gallery
from toolkit.runtime.copies import fetch_model, with_copies
from toolkit.runtime.files import beside
from toolkit.runtime.overwrite import Output
from toolkit.runtime.progress import Progress, printable, say
from toolkit.runtime.remote import check_dry_run, local_only, url_of
from toolkit.runtime.swap import held

SHOWN_IMAGES = 5  # of a dry run
SUFFIX_OF = {"coco": "json"}


def batch_caption(options: BatchCaptionOptions) -> Summary:
    """Captions what has no caption yet.

    Raises:
        InputError: a path that does not exist or holds no image.
        ModelError: `--model` is no captioner, or `--clip-score` no CLIP model.
        OutputError: the output can't be written, or is somebody else's.
        RunError: stopped half way; the same command goes on.
    """
    local_only(options, "gallery")
    check_dry_run(options, "paths", "model", "clip_score", "output")
    options = replace(options, generation=with_words(options.generation), prompting=with_prompts(options.prompting))
    options = with_copies(options, model=fetch_model, clip_score=fetch_model)
    url, among = _url_of_output(options)
    if url is None:
        return _batch_caption(options, among_images=False)
    with Outbox(url, texts=options.format == "txt") as outbox:
        outbox.prepare_captions()
        summary = _batch_caption(replace(options, output=outbox.file), among)
        outbox.put_captions()
        return summary


def _url_of_output(options: BatchCaptionOptions) -> tuple[str | None, bool]:
    """Where the output goes if that is a URL, and whether it is among the images."""
    url = url_of(options.output) if options.output is not None else None
    folders = [url_of(path) for path in options.paths]
    among = options.format in ("txt", "imagefolder") and options.output is None and any(folders)
    if not among and not (url and options.format == "imagefolder"):
        return url, False
    folder = folders[0] if len(folders) == 1 else None
    file = f"{folder}/metadata.jsonl"
    if folder is None or (options.format == "imagefolder" and url not in (None, folder, file)):
        raise InputError(
            f"--format {options.format}: writes among the images of one folder; give one, without --output, or choose "
            "another format."
        )
    return (file, True) if options.format == "imagefolder" else (folder, True)


def _batch_caption(options: BatchCaptionOptions, among_images: bool) -> Summary:
    format = format_of(options.format, options.output)
    output = _place(options, format)
    images = find_inputs(options)
    if options.limit is not None:
        images = images.first(options.limit)
    _check_names(images)
    _check_output(output, format, [] if among_images else images)
    earlier = _earlier(options, output, format)
    page = None
    if options.gallery is not None:
        files = (image.path for image in images if isinstance(image.root, Path))
        inputs = [output, Path(options.model), *files, *(images_in.path for images_in in images.sets)]
        page = gallery_output(options.gallery, inputs, options.overwrite, len(images))
    if options.dry_run:
        return _dry_run(options, format, output, images, earlier)
    with held(f"--output {output}", output, "writing it", "file"):
        state = beside(output, ".state")
        journal = Journal(state if state.exists() else IN_MEMORY)  # what is refused leaves nothing behind
        try:
            with _told(output):
                export = Export(options, format, output, images, journal)
            captioner = _captioner(options, images)
            prompts = captioner.prompts(options.prompting, options.generation.seed, earlier)
            attention = None
            if options.attention and isinstance(captioner, Captioner):
                attention = Attention(captioner, f"--model {options.model}")
            fingerprint = _fingerprint(captioner, options)
            with _told(output):
                if not state.exists():
                    journal.close()
                    journal = export.journal = Journal(state)
                journal.begin(fingerprint, options.existing == "overwrite")
                settings = captioner.settings(options.generation)
                export.several = settings.config.num_return_sequences > 1
                clip = _clip_scores(options, settings)
                run = _Run(
                    options, output, images, captioner, settings, attention, journal, export, page, prompts, clip
                )
                return run.summary()
        finally:
            journal.close()


def _dry_run(
    options: BatchCaptionOptions, format: str, output: Path, images: FoundImages, earlier: Earlier | None
) -> Summary:
    """What would be captioned; the model is loaded, for it decides whose captions are there, and nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        state = beside(output, ".state")
        copy = Path(folder, state.name)
        for end in ("", "-journal", "-wal"):  # what a run that was killed has left counts, too
            if Path(f"{state}{end}").exists():
                shutil.copyfile(f"{state}{end}", f"{copy}{end}")
        journal = Journal(copy)
        try:
            Export(options, format, output, images, journal)  # refuses what it would refuse
            captioner = _captioner(options, images)
            prompts = captioner.prompts(options.prompting, options.generation.seed, earlier)
            if options.attention and isinstance(captioner, Captioner):
                Attention(captioner, f"--model {options.model}")
            _clip_scores(options, captioner.settings(options.generation))
            journal.begin(_fingerprint(captioner, options), options.existing == "overwrite")
            todo = FoundImages(image for image in images.to_read() if known_result(image, journal, prompts) is None)
        finally:
            journal.close()
    settings, first = captioner.settings(options.generation), [image.name for image in islice(todo, SHOWN_IMAGES)]
    values = {
        "dry_run": True,
        "output": f"{output}",
        "format": format,
        "images": len(images),
        "captioned": len(images) - len(todo),
        "new": len(todo),
        "first": first,
        "settings": settings.to_json(),
    }
    text = (
        f"{output}: {len(images)} images, {values['captioned']} captioned already, {len(todo)} would be captioned or tried; a "
        "dry run, nothing was written."
    )
    text += f"\n  first: {', '.join(map(printable, first))}" if first else ""
    return Summary(f"{text}\n  {settings.sentence()}", values)


def _captioner(options: BatchCaptionOptions, images: FoundImages) -> Captioner | Server:
    """What captions: a model here, or one behind --endpoint."""
    if options.endpoint is not None:
        check_no_cache(images, "--endpoint")
        return Server.of(options)
    captioner = load_captioner(options.model, options.device, options.precision)
    check_caches(captioner, options.model, images, options.prompting.given)
    return captioner


def _fingerprint(captioner: Captioner | Server, options: BatchCaptionOptions) -> Fingerprint:
    if isinstance(captioner, Server):
        return captioner.fingerprint(options.generation)
    return model_fingerprint(captioner, options.generation)


def _clip_scores(options: BatchCaptionOptions, settings: Settings) -> ClipScores | None:
    """
    Raises:
        InputError: there is one caption an image, and nothing to rerank.
        ModelError: the CLIP model can't be loaded.
    """
    if options.clip_score is None:
        return None
    if options.rerank != "none" and settings.config.num_return_sequences < 2:
        raise InputError(
            f"--rerank {options.rerank}: chooses among several captions, but the model's folder asks for one; add "
            "--num-captions."
        )
    from toolkit.models.clip import load_clip

    clip = load_clip(options.clip_score, "--clip-score", options.device, options.precision)
    return ClipScores(clip, options.rerank == "clip", options.num_workers)


@dataclass
class _Run:
    """One run with all that it has: captions, then writes.

    Attributes:
        lost: images whose bytes say nothing (not opened, out of memory): tried again each time, with the reason.
        count: of what was exported: errors, weak, uncompared.
    """

    options: BatchCaptionOptions
    output: Path
    images: FoundImages
    captioner: Captioner | Server
    settings: Settings
    attention: Attention | None
    journal: Journal
    export: Export
    page: Output | None
    prompts: Prompts | None
    clip: ClipScores | None
    lost: dict[str, str] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=lambda: {"errors": 0, "weak": 0, "uncompared": 0})
    first_error: CaptionResult | None = None

    def summary(self) -> Summary:
        new = self._caption()
        self.export.write(self._polished())
        if self.page is not None:  # what the model said: its words have their heat maps
            results = [row.result for row in self._results()]
            write_caption_gallery(self.page, results, list(self.images), self.attention, self.options.num_workers)
        return self._summary(new)

    def _caption(self) -> int:
        """How many images were captioned or tried."""
        options, journal = self.options, self.journal
        if self.export.format == "txt" and any(
            a == b.name + ".txt" for a, b in zip(self.export.names, self.images, strict=True)
        ):
            say("images whose names differ only in the suffix get texts with it: a.jpg.txt, a.png.txt")
        shards = beside(self.output, ".pieces")
        gather(shards, journal)  # those that a stopped run has finished
        todo = FoundImages(
            image for image in self.images.to_read() if known_result(image, journal, self.prompts) is None
        )
        if len(todo) < len(self.images):
            say(f"{self.output}: {len(self.images) - len(todo)} of {len(self.images)} images are captioned already")
        if todo:
            say(self.settings.sentence())
            faster = None
            if isinstance(self.captioner, Captioner) and options.precision == "auto":
                faster = faster_precision(self.captioner)
            if faster:
                say(faster)
        if options.engine != "local" and todo and isinstance(self.captioner, Captioner):
            options = replace(options, precision=self.captioner.precision)  # decided here, once for all nodes
            new, self.lost = caption_in_shards(options, todo, journal, shards, self.prompts)
            return new
        new = 0
        with Progress("caption", len(todo)) as progress:
            for batch in self._batches(todo):
                self.lost.update((done.found.name, done.result.error or "") for done in batch if done.key is None)
                journal.add((done.found.place, done.state, done.key, done.result) for done in batch if done.key)
                new += sum(not done.kept for done in batch)
                progress.update(len(batch))
        return new

    def _batches(self, todo: FoundImages) -> Iterator[list[Done]]:
        captioner, options, journal = self.captioner, self.options, self.journal
        if not isinstance(captioner, Server):
            return caption_images(captioner, todo.to_read(), options, journal, self.prompts)
        if todo:
            say(captioner.sentence(len(todo)))
        assert self.prompts is not None
        return ask_images(captioner, todo.to_read(), options, journal, self.prompts)

    def _results(self) -> Iterator[Captioned]:
        """The captions of each image as the model generated them, with --clip-score judged by it."""
        rows = self._captioned()
        return rows if self.clip is None else self.clip.add(rows, len(self.images))

    def _captioned(self) -> Iterator[Captioned]:
        for image in self.images:
            known = None if image.name in self.lost else known_result(image, self.journal, self.prompts)
            if known is None:
                error = self.lost.get(image.name, "changed during the run")
                yield Captioned(image, None, CaptionResult(image.name, error=error), True)
            else:
                key, result = known
                content = key.partition(":")[0]  # without the prompt's
                yield Captioned(image, content, replace(result, image=image.name), self.journal.is_compared(key))

    def _polished(self) -> Iterator[CaptionResult]:
        for row in self._results():
            result = polish(row.result, self.options)
            if result.image not in self.export.changed:  # a changed row is kept instead of ours
                self.count["errors"] += result.error is not None
                self.count["weak"] += bool(result.weak)
                self.count["uncompared"] += not row.compared
                if result.error is not None and self.first_error is None:
                    self.first_error = result
            yield result

    def _summary(self, new: int) -> Summary:
        options, count, kept, first = self.options, self.count, self.export.kept, self.first_error
        text = f"{self.output}: {len(self.images)} images, {new} captioned or tried in this run."
        values: dict[str, Any] = {"output": f"{self.output}", "images": len(self.images), "new": new}
        values["errors"] = count["errors"]
        if first is not None:
            text += (
                f"\n  {count['errors']} could not be read (first: {printable(first.image)}, {first.error}); "
                "each has a row with its reason"
            )
        if options.min_score is not None:
            text += f"\n  {count['weak']} are weak: their score is below {options.min_score}"
            values["weak"] = count["weak"]
        reviewed = review_of(self.output)
        if reviewed.is_file():
            text += (
                f"\n  people have reviewed these captions: {reviewed} stays as it is; `toolkit review {self.output} --export FILE` "
                "puts their word over the model's"
            )
            values["reviewed"] = f"{reviewed}"
        if kept:
            text += (
                f"\n  {len(kept)} were changed since they were written and are kept (first: "
                f"{printable(kept[0])}); --overwrite replaces them"
            )
            values["kept"] = len(kept)
        if self.export.left_out:
            text += (
                f"\n  {self.export.left_out} rows that it had are of other images, and no longer in it; their captions stay in "
                f"{beside(self.output, '.state')}, and come back when those images are named too"
            )
            values["left_out"] = self.export.left_out
        if count["uncompared"]:
            text += (
                f"\n  {count['uncompared']} captions were made by toolkit 0.1 with the same weights and options; whether its "
                "tokenizer, image processor and the model's own settings were the same could not be compared; --existing "
                "overwrite captions them again"
            )
            values["uncompared"] = count["uncompared"]
        if self.journal.anew:
            text += f"\n  {self.journal.anew} had a caption by toolkit 0.1 with other weights or options, and were captioned again"
        if self.clip is not None:
            text += f"\n  {self._told_of_clip(values)}"
        text += f"\n  {self.settings.sentence()}"
        values["settings"] = self.settings.to_json()
        return Summary(text, values, exit_code=3 if first is not None else 0)

    def _told_of_clip(self, values: dict[str, Any]) -> str:
        clip, unseen = self.clip, len(self.clip.unseen) if self.clip is not None else 0
        assert clip is not None
        mean = clip.total / clip.count if clip.count else None
        values["clip_score"] = {"mean": mean, "images": clip.count, "model": clip.model.signature, "unseen": unseen}
        told = "none" if mean is None else f"{percent(mean)} on average, times 100"
        text = f"CLIPScore by {self.options.clip_score}: {told}"
        if clip.rerank:
            values["reranked"] = clip.changed
            text += f"; of {clip.changed} images another caption comes first than the captioner's best"
        if unseen:
            text += f"; {unseen} images can't be read any more and have none (first: {printable(clip.unseen[0])})"
        return text


# ---- captions so far ------------------------------------------------------------------------------------------------


def _earlier(options: BatchCaptionOptions, output: Path, format: str) -> Earlier | None:
    """The captions of --captions-from, by image name.

    Raises:
        InputError: they can't be read; or what is written would be what is read in the next run.
    """
    prompts = Prompts.of(options.prompting)
    path = options.prompting.captions_from
    if prompts is None or not prompts.take_caption:
        return None
    if path is None:
        roots = [Path(given) for given in options.paths if format == "txt"]
        if any(os.path.realpath(output) == os.path.realpath(root) for root in roots):
            raise InputError(
                "--format txt: would replace the texts that {caption} is taken from; name an --output elsewhere, or give "
                "--captions-from."
            )
        return None
    if url_of(path):
        raise InputError(f"--captions-from {path}: must be a file here; copy it first.")
    if os.path.realpath(path) == os.path.realpath(output):
        raise InputError(
            f"--captions-from {path}: is the output, and would be other captions then; name another --output."
        )
    rows = read_hypotheses(path, "--captions-from").rows
    return Earlier((name, row.caption) for row in rows if row.caption is not None for name in row.names)


# ---- places ---------------------------------------------------------------------------------------------------------


@contextmanager
def _told(output: Path) -> Iterator[None]:
    """What the file system or the state file can't do, as one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"--output {output}: can't be written ({reason}); name another file.") from None


def _check_names(images: FoundImages) -> None:
    """A row is known by its image's name, so two folders may not bring the same one."""
    for one, other in pairwise(images):  # sorted by name
        if one.name == other.name:
            raise InputError(
                f"{one.path} and {other.path}: both would be reported as {one.name}; caption them in two runs, or give the "
                "folder above both."
            )


def _place(options: BatchCaptionOptions, format: str) -> Path:
    """The file written; for txt the folder that the sidecars go below."""
    if format not in ("txt", "imagefolder"):
        return options.output or Path(f"captions.{SUFFIX_OF.get(format, format)}")
    folder = options.output
    if folder is None:
        if len(options.paths) != 1 or not Path(options.paths[0]).is_dir():
            raise InputError(
                f"--format {format}: captions are written beside the images of one folder; give one folder, or an --output."
            )
        folder = Path(options.paths[0])
    if folder.name in ("", ".."):  # which nothing can be named after, as the state beside it is
        folder = Path(os.path.realpath(folder))
    return folder if format == "txt" or folder.name == "metadata.jsonl" else folder / "metadata.jsonl"


def _check_output(output: Path, format: str, images: Iterable[FoundImage]) -> None:
    if format == "txt" and os.path.realpath(output) == "/":
        raise OutputError(f"--output {output}: is /, where nothing is written; name another folder.")
    if format == "txt" and output.exists() and not output.is_dir():
        raise OutputError(f"--output {output}: a file; --format txt needs a folder.")
    if format == "imagefolder" and not all((output.parent / image.name).exists() for image in images):
        raise OutputError(f"--output {output}: metadata.jsonl must be in the folder of the images; leave out --output.")
    if format != "txt" and output.is_dir():
        raise OutputError(f"--output {output}: a folder; name a file.")
    if not output.parent.is_dir():
        raise OutputError(f"--output {output}: there is no folder {output.parent}; make it, or name another file.")
