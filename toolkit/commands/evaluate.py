"""`toolkit evaluate`: captions against references: metrics with confidence intervals, and a signature to repeat them.

    hypotheses + references -> match by image -> scores -> intervals -> a table, a file, a page

Metrics are fractions in `--json` and `--per-image` (CIDEr: 0 to 10); the table and the page show them times 100, as
papers do.
"""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cache.uploads import fetch_source
from toolkit.data.pixels import centre
from toolkit.data.sources import fetch_annotations, fetch_images
from toolkit.errors import InputError
from toolkit.evaluation.clip_score import ClipJudge
from toolkit.evaluation.hypotheses import Hypotheses, Hypothesis, read_hypotheses
from toolkit.evaluation.judge import Evaluation, System, group_table, health_sentences, judge, label, with_interval
from toolkit.evaluation.references import References, Source, read_references, unreferenced
from toolkit.evaluation.shown import NAMES, percent
from toolkit.evaluation.significance import LEVEL
from toolkit.options import EvaluateOptions
from toolkit.options.fields import check_unused, default_workers
from toolkit.records import Summary
from toolkit.reports.evaluation_page import write_evaluation_page
from toolkit.runtime.copies import fetch_model, with_copies
from toolkit.runtime.overwrite import Output, is_page
from toolkit.runtime.progress import Progress, printable, say
from toolkit.runtime.remote import local_only

if TYPE_CHECKING:
    from toolkit.captioning.settings import Settings

DEFAULT_HYPOTHESES = Path("captions.jsonl")
ONLY_WITH_REFERENCES = (
    "split", "human", "metrics", "idf", "format", "image_column", "caption_column", "split_column", "split_map",
)  # fmt: skip


def evaluate(options: EvaluateOptions) -> Summary:
    """Scores captions; writes nothing but `--per-image` and `--page`.

    Raises:
        InputError: captions or references are missing, broken, or not of the same images.
        ModelError: `--model` is no captioner, or needs other pixels than the cache has; `--clip-score` is no CLIP model.
        OutputError: `--per-image` or `--page` can't be written, or would replace a file that the toolkit did not write.
        ToolkitError: METEOR or SPICE can't run here.
    """
    local_only(options, "per_image", "page")
    outputs = _outputs(options)
    captions = dict.fromkeys(("hypotheses", "against"), fetch_annotations)
    sources = dict.fromkeys(("references", "idf"), fetch_source)
    models = dict.fromkeys(("model", "clip_score", "pac_score"), fetch_model)
    options = with_copies(options, **captions, **sources, **models, images=fetch_images)
    return _evaluate(options, outputs)


def _outputs(options: EvaluateOptions) -> tuple[Output | None, Output | None]:
    """`--per-image` and `--page`, checked."""
    hypotheses = DEFAULT_HYPOTHESES if options.hypotheses is None and options.model is None else options.hypotheses
    idf = None if options.idf in ("evaluated", "train") else options.idf
    models = (options.model, *options.clips.values())
    inputs = (hypotheses, *options.against, options.references, options.images, idf, *models)
    table, page = options.per_image, options.page
    return (
        None if table is None else Output("--per-image", table, inputs, options.overwrite),
        None if page is None else Output("--page", page, inputs, options.overwrite, is_page("evaluation")),
    )


def _evaluate(options: EvaluateOptions, outputs: tuple[Output | None, Output | None]) -> Summary:
    hypotheses, references, settings = _read(options)
    given = [hypotheses]
    given += [read_hypotheses(path, "--against") for path in options.against]
    found = judge(given, references, options, clip_judges(options))
    if found.words.usual:
        say(found.words.sentence or "")
    text = _text(found)
    if settings is not None:
        text += f"\n{printable(settings.sentence())}"
    table, page = outputs
    if table is not None:
        write_per_image(table, found)
        text += "\n" + printable(f"{table.path}: metrics of each image")
    if page is not None:
        write_evaluation_page(page, found)
        text += "\n" + printable(f"{page.path}: the same as a page")
    values = _values(found, options)
    values["settings"] = None if settings is None else settings.to_json()
    return Summary(text, values)


def _read(options: EvaluateOptions) -> tuple[Hypotheses, References, Settings | None]:
    """The captions to judge, what to judge them by, and with `--model` what they were decoded with."""
    captions = options.hypotheses or DEFAULT_HYPOTHESES
    if (reason := _no_references(options)) is not None:
        why = f"needs references, and there are none ({reason}); name some with --references, or leave it out"
        check_unused(options, ONLY_WITH_REFERENCES, why)
        hypotheses = read_hypotheses(captions, column=options.by)
        return hypotheses, unreferenced(hypotheses, options.images, reason), None
    find = options.images is not None or options.page is not None or bool(options.clips)
    references = read_references(Source.of(options), options.split, find)
    if options.model is None:
        return read_hypotheses(captions), references, None
    hypotheses, settings = caption_split(options.model, references, options)
    return hypotheses, references, settings


def _no_references(options: EvaluateOptions) -> str | None:
    """Why captions are judged without references; None if there are some, or have to be."""
    if options.no_references:
        return "--references none"
    default = type(options)().references
    if options.clips and options.model is None and options.references == default and not default.exists():
        return f"{default} is not there"
    return None


def clip_judges(options: EvaluateOptions) -> list[ClipJudge]:
    """The metrics by a CLIP model that are asked for.

    Raises:
        ModelError: a model can't be loaded.
    """
    if not options.clips:
        return []
    from toolkit.models.clip import load_clip

    return [
        ClipJudge(
            metric,
            load_clip(model, f"--{metric.replace('_', '-')}", options.device, options.precision),
            default_workers(),
        )
        for metric, model in options.clips.items()
    ]


# ---- captioning the split -------------------------------------------------------------------------------------------


def caption_split(model: str, references: References, options: EvaluateOptions) -> tuple[Hypotheses, Settings]:
    """Captions of the pixels in the cache, and what they were decoded with.

    Raises:
        InputError: the references are no cache.
        ModelError: `--model` can't be loaded, or resizes images in another way than the cache was made.
    """
    cache = references.cache
    if cache is None:
        raise InputError(
            f"--model {model}: captions the pixels of a cache, but {references.source} is not one; run "
            "`toolkit batch-caption` on the images, then evaluate its output."
        )
    import numpy as np

    from toolkit.captioning.captioner import Batches, load_captioner
    from toolkit.captioning.inputs import check_pixels
    from toolkit.captioning.settings import with_words

    generation = with_words(options.generation)
    captioner = load_captioner(model, options.device, options.precision)
    check_pixels(captioner, model, cache, references.source)
    settings, rows = captioner.settings(generation), list[Hypothesis]()
    readers = {split: cache[split] for split, _ in references.rows.values()}
    ids = list(references.captions)
    batches = Batches(captioner, generation, options.batch_size)
    with Progress("caption", len(ids)) as progress:
        for start in range(0, len(ids), options.batch_size):
            batch = ids[start : start + options.batch_size]
            cells = [references.rows[i] for i in batch]
            images = [centre(np.asarray(readers[split][row]["pixel_values"]), *cache.seen) for split, row in cells]
            for image_id, decoded in zip(batch, batches.generate(images), strict=True):
                rows.append(Hypothesis((image_id,), decoded.captions[0], decoded.ended[0]))
            progress.update(len(batch))
    return Hypotheses(f"{model}", "model", rows), settings


# ---- outputs --------------------------------------------------------------------------------------------------------


def write_per_image(table: Output, found: Evaluation) -> None:
    """A row per image in the order of the references, CSV or Parquet by the suffix. Also readable as hypotheses."""
    columns: dict[str, list[Any]] = {"image_id": found.ids, "image": [found.references.paths[i] for i in found.ids]}
    others = ["against_" if k == 1 else f"against_{k}_" for k in range(1, len(found.systems))]
    for system, prefix in zip(found.systems, ("", *others), strict=True):
        place = {image_id: row for row, image_id in enumerate(system.scores.image_ids)}
        rows = [place[i] for i in found.ids]
        columns[f"{prefix}caption"] = [system.captions[i] for i in found.ids]
        columns |= {prefix + name: values[rows].tolist() for name, values in system.scores.per_image.items()}
    columns["signature"] = [found.signature] * len(found.ids)
    with table.writing() as temporary:
        if table.path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(columns), temporary)
        else:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))


def _values(found: Evaluation, options: EvaluateOptions) -> dict[str, Any]:
    others = [
        {**_system_values(system), "differences": {name: asdict(d) for name, d in differences.items()}}
        for system, differences in zip(found.systems[1:], found.differences, strict=True)
    ]
    return {
        **_system_values(found.systems[0]),
        "references": found.references.source if found.references.reason is None else None,
        "split": found.references.split if found.references.reason is None else None,
        "images": len(found.ids),
        "images_in_split": len(found.references.captions),
        "signature": found.signature,
        "references_health": None if found.people is None else asdict(found.people),
        "references_diversity": None if found.people_diversity is None else asdict(found.people_diversity),
        "against": others[0] if others else None,
        "comparisons": others,
        "human": None if found.human is None else asdict(found.human),
        "notes": found.notes,
        "per_image": None if options.per_image is None else str(options.per_image),
        "page": None if options.page is None else str(options.page),
    }


def _system_values(system: System) -> dict[str, Any]:
    return {
        "hypotheses": system.name,
        "format": system.format,
        "metrics": {name: asdict(metric) for name, metric in system.metrics.items()},
        "health": asdict(system.health),
        "diversity": None if system.diversity is None else asdict(system.diversity),
        "by": None if system.groups is None else [asdict(group) for group in system.groups],
        "matching": system.matched.to_json(),
    }


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _text(found: Evaluation) -> str:
    """The table; all metrics times 100."""
    systems, human, several = found.systems, found.human, len(found.differences) > 1
    n_references = sum(len(found.references.captions[i]) for i in found.ids)
    title = " and ".join(system.name for system in systems)
    title += f" against {found.references.name}" if n_references else " without references"
    title += f": {len(found.ids):,} images" + (f", {n_references:,} references" if n_references else "")
    title += f"; metrics x 100, [{LEVEL} % interval]"
    rows = [["", *(label(system.name) for system in systems)]]
    for number in range(1, len(systems)):
        rows[0] += [f"difference {number}", f"p {number}, Holm"] if several else ["difference", "p"]
    rows[0] += ["a person", "captions, same references"] if human is not None else []
    for name in systems[0].metrics:
        row = [NAMES[name], *(with_interval(system.metrics[name]) for system in systems)]
        for differences in found.differences:
            p = differences[name].p_holm
            row += [with_interval(differences[name]), "–" if p is None else f"{p:.3f}"]
        row += [percent(human.human.get(name)), percent(human.same.get(name))] if human is not None else []
        rows.append(row)
    lines = [title, *_table(rows)]
    if several:
        lines.append(f"  difference: each of the others less {label(systems[0].name)}; p-values by Holm's correction")
    if human is not None:
        lines.append(
            f"  a person: each reference scored against the others, {human.rounds} rounds over {human.images:,} images; beside it "
            "the captions scored against those same references"
        )
    for system in systems:
        if system.groups is not None:
            lines += [f"{label(system.name)} by {found.by}:", *_table(group_table(system.groups))]
    lines += [
        f"{name}: {sentence}" for name, sentence in health_sentences(found, [label(system.name) for system in systems])
    ]
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(map(printable, [*lines, f"signature: {found.signature}"]))
