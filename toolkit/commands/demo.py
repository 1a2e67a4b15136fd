"""`toolkit demo`: the whole path on a drawn sample, with the very functions that the commands run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from toolkit.cache.urls import local_only
from toolkit.data.scenes import draw_sample, judge
from toolkit.errors import OutputError
from toolkit.evaluation.metrics import health
from toolkit.options import BatchCaptionOptions, DemoOptions, EvaluateOptions, FinetuneOptions, PreprocessOptions
from toolkit.options.fields import to_json
from toolkit.records import Summary
from toolkit.runtime.files import finishing
from toolkit.runtime.overwrite import Output, is_page
from toolkit.runtime.progress import say

MARK = "demo.json"

COMMANDS = """The same on your own folder, which holds captions.txt and Images/:

  toolkit preprocess
  toolkit finetune
  toolkit batch-caption FOLDER"""


def demo(options: DemoOptions) -> Summary:
    """Draws, preprocesses, trains, captions the test images, judges them and writes a gallery and an evaluation.

    Raises:
        OutputError: the folder holds something else.
    """
    local_only(options, "directory")
    root, started = options.directory, time.monotonic()
    _prepare(root, options)
    page, gallery = _page(root, "evaluation").path, _page(root, "gallery").path
    if not (root / "data").exists():
        say(f"1/5 drawing {options.images} captioned scenes")
        draw_sample(root / "data", options.images, options.seed)
    # Imported one by one: preprocess starts its processes before torch is in memory.
    from toolkit.commands.preprocess import preprocess

    say("2/5 preprocess")
    cache = root / "cache" / "dataset"
    preprocess(
        PreprocessOptions(
            annotations=root / "data" / "captions.txt",
            images=root / "data" / "Images",
            out=cache,
            preset="tiny",
            seed=options.seed,
            num_workers=options.num_workers,
        )
    )
    from toolkit.commands.finetune import finetune

    say("3/5 finetune: a small ViT and GPT-2, from scratch")
    finetune(FinetuneOptions(cache=cache, output_dir=root / "model", epochs=options.epochs, seed=options.seed))
    from toolkit.commands.batch_caption import batch_caption

    say("4/5 batch-caption: images the model has never seen")
    scenes = _rows(root / "data" / "scenes.jsonl")
    held_out = {scene["image"]: scene for scene in scenes if scene["split"] == "test"}
    paths = tuple(str(root / "data" / "Images" / name) for name in held_out)
    output = root / "captions.jsonl"
    batch_caption(BatchCaptionOptions(paths=paths, model=str(root / "model"), output=output, batch_size="32"))
    rows = _rows(output)
    right = {row["image"]: judge(row["caption"], held_out[row["image"]]) for row in rows}
    share = sum(right.values()) / len(right)
    state = health([row["caption"] for row in rows], [row["ended"] for row in rows])
    _gallery(root, rows, right, share)
    from toolkit.commands.evaluate import evaluate

    say("5/5 evaluate")
    scores = evaluate(EvaluateOptions(hypotheses=output, references=cache, page=page, human=True)).values["metrics"]
    seconds = time.monotonic() - started
    values = {
        "directory": str(root),
        "gallery": str(gallery),
        "test_images": len(right),
        "exactly_right": round(share, 4),
        "evaluation": str(page),
        "cider": round(scores["cider"]["score"], 4),
        "bleu_4": round(scores["bleu_4"]["score"], 4),
        "ended": state["ended"],
        "loops": state["loops"],
        "seconds": round(seconds, 1),
    }
    text = (
        f"{share:.1%} of {len(right)} captions of unseen test images are exactly right, {state['ended']:.0%} ended by "
        f"themselves, {state['loops']:.0%} loop ({seconds:.0f} s in all).\n"
        f"CIDEr {100 * scores['cider']['score']:.1f}, BLEU-4 {100 * scores['bleu_4']['score']:.1f}: {page}\n"
        f"Look at them: {gallery}\n\n{COMMANDS}"
    )
    return Summary(text, values)


def _prepare(root: Path, options: DemoOptions) -> None:
    """A new folder, or one of an earlier run with the same options, which then goes on."""
    mark = {k: v for k, v in to_json(options).items() if k in ("images", "epochs", "seed")}
    if os.path.lexists(root) and not root.is_dir():
        raise OutputError(f"{root}: is a link to nowhere or a file; name a folder for the demo.")
    if root.is_dir() and any(root.iterdir()):
        try:
            before = json.loads((root / MARK).read_bytes())
        except (OSError, ValueError):  # there is none, or it is another's
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


def _rows(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _gallery(root: Path, rows: list[dict[str, Any]], right: dict[str, bool], share: float) -> None:
    from toolkit.cache.schema import open_cache
    from toolkit.data.images import read_image
    from toolkit.reports.gallery import Card, write_gallery
    from toolkit.reports.html import thumbnail

    test = open_cache(root / "cache" / "dataset")["test"]
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
    facts = [("unseen images", str(len(rows))), ("exactly right", f"{share:.1%}"), ("order", "the wrong ones first")]
    write_gallery(_page(root, "gallery"), "Captions of images the model has never seen", cards, facts)
