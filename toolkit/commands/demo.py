"""`toolkit demo`: all commands on a drawn sample, with the functions that the commands run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from toolkit.data.drawing import draw_sample
from toolkit.data.scenes import judge
from toolkit.errors import OutputError
from toolkit.evaluation.health import health
from toolkit.options import BatchCaptionOptions, DemoOptions, EvaluateOptions, FinetuneOptions, PreprocessOptions
from toolkit.options.fields import to_json
from toolkit.records import Summary
from toolkit.runtime.files import finishing
from toolkit.runtime.overwrite import Output, is_page
from toolkit.runtime.progress import say
from toolkit.runtime.remote import local_only

MARK = "demo.json"
CACHE = Path("cache/dataset")  # below the folder of the demo

COMMANDS = """To do the same with your own data, in a folder with captions.txt and Images/:

  toolkit preprocess
  toolkit finetune
  toolkit batch-caption FOLDER"""


def demo(options: DemoOptions) -> Summary:
    """Draws, preprocesses, trains, captions the test images, scores the captions and writes a gallery and an evaluation.

    Raises:
        OutputError: the folder holds other files.
    """
    local_only(options, "directory")
    started = time.monotonic()
    _prepare(options.directory, options)
    page, gallery = _page(options.directory, "evaluation"), _page(options.directory, "gallery")
    rows, right = _run(options)
    _write_gallery(gallery, options.directory, rows, right)
    from toolkit.commands.evaluate import evaluate

    say("5/5 evaluate")
    hypotheses, cache = options.directory / "captions.jsonl", options.directory / CACHE
    scores = evaluate(EvaluateOptions(hypotheses=hypotheses, references=cache, page=page.path, human=True))
    state = health([row["caption"] for row in rows], [row["ended"] for row in rows])
    values = {
        "directory": str(options.directory),
        "gallery": str(gallery.path),
        "test_images": len(right),
        "exactly_right": round(sum(right.values()) / len(right), 4),
        "evaluation": str(page.path),
        **{name: round(scores.values["metrics"][name]["score"], 4) for name in ("cider", "bleu_4")},
        "ended": state.ended,
        "loops": state.loops,
        "seconds": round(time.monotonic() - started, 1),
    }
    return Summary(_text(values), values)


def _text(values: dict[str, Any]) -> str:
    return (
        f"{values['exactly_right']:.1%} of {values['test_images']} captions of unseen test images are exactly right, "
        f"{values['ended']:.0%} ended by themselves, {values['loops']:.0%} loop ({values['seconds']:.0f} s in total).\n"
        f"CIDEr {100 * values['cider']:.1f}, BLEU-4 {100 * values['bleu_4']:.1f}: {values['evaluation']}\n"
        f"Images with captions: {values['gallery']}\n\n{COMMANDS}"
    )


def _run(options: DemoOptions) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """Steps 1 to 4: the rows of captions.jsonl, and whether the caption of each image is right."""
    root, data = options.directory, options.directory / "data"
    if not data.exists():
        say(f"1/5 sample: {options.images} captioned scenes")
        draw_sample(data, options.images, options.seed)
    # Imported one by one: preprocess starts its processes before torch is in memory.
    from toolkit.commands.preprocess import preprocess

    say("2/5 preprocess")
    preprocess(
        PreprocessOptions(
            annotations=data / "captions.txt",
            images=data / "Images",
            out=root / CACHE,
            preset="tiny",
            seed=options.seed,
            num_workers=options.num_workers,
        )
    )
    from toolkit.commands.finetune import finetune

    say("3/5 finetune: a small ViT and GPT-2, from scratch")
    finetune(FinetuneOptions(cache=root / CACHE, output_dir=root / "model", epochs=options.epochs, seed=options.seed))
    from toolkit.commands.batch_caption import batch_caption

    say("4/5 batch-caption: images that the model has never seen")
    test = {scene["image"]: scene for scene in _rows(data / "scenes.jsonl") if scene["split"] == "test"}
    paths, output = tuple(str(data / "Images" / name) for name in test), root / "captions.jsonl"
    batch_caption(BatchCaptionOptions(paths=paths, model=str(root / "model"), output=output, batch_size="32"))
    rows = _rows(output)
    return rows, {row["image"]: judge(row["caption"], test[row["image"]]) for row in rows}


def _prepare(root: Path, options: DemoOptions) -> None:
    """Makes the folder, or continues in that of an earlier run with the same options."""
    mark = {k: v for k, v in to_json(options).items() if k in ("images", "epochs", "seed")}
    if os.path.lexists(root) and not root.is_dir():
        raise OutputError(f"{root}: is a file or a broken link; name a folder for the demo.")
    if root.is_dir() and any(root.iterdir()):
        try:
            before = json.loads((root / MARK).read_bytes())
        except (OSError, ValueError):  # missing, or not written by the demo
            before = None
        if before != mark:
            raise OutputError(f"{root}: holds files that this demo did not write; name another folder.")
        return
    root.mkdir(parents=True, exist_ok=True)
    with finishing(root / MARK) as temporary:
        temporary.write_text(json.dumps(mark))


def _page(root: Path, kind: str) -> Output:
    path = root / f"{kind}.html"
    try:
        return Output("demo", path, ours=is_page(kind))
    except OutputError:
        raise OutputError(f"{path}: was not written by this demo; move it away, or name another folder.") from None


def _rows(path: Path) -> list[Any]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write_gallery(page: Output, root: Path, rows: list[dict[str, Any]], right: dict[str, bool]) -> None:
    from toolkit.cache.schema import open_cache
    from toolkit.data.images import read_image
    from toolkit.reports.gallery import Card, write_gallery
    from toolkit.reports.html import thumbnail

    test = open_cache(root / CACHE)["test"]
    references = dict(zip(test.column("image_id"), test.column("captions"), strict=True))
    cards = [
        Card(
            name=row["image"],
            thumbnail=thumbnail(read_image(root / "data" / "Images" / row["image"])),
            caption=row["caption"],
            score=row["score"],
            references=tuple(references.get(row["image"], ())),
            verdict=right[row["image"]],
        )
        for row in sorted(rows, key=lambda row: (right[row["image"]], row["score"]))
    ]
    share = sum(right.values()) / len(right)
    facts = [("unseen images", str(len(rows))), ("exactly right", f"{share:.1%}"), ("order", "wrong ones first")]
    write_gallery(page, "Captions of images that the model has never seen", cards, facts)
