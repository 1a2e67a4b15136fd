"""The circle of review and training on the drawn sample: what correcting the captions that look weakest brings.

    python scripts/bench_review.py                                   # about eight minutes a seed on one core
    python scripts/bench_review.py --images 120 --epochs 1 --seeds 1   # does it run?

Of the train captions 15 % are made wrong: each is given to another image than its own. A captioner is trained on them. The 10 %
of the train captions that it finds least probable, as `toolkit review cache --model model` lists them, go to a program that
knows the scenes and plays the person: a wrong caption is edited, a right one accepted. Then the cache is made with
`--reviewed` and the captioner trained on from its weights; beside it, as a control, just as long on the captions as they
were. Printed is the share of captions of unseen test images that say exactly what was drawn, and of the wrong captions the
share that was among those looked at.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from pathlib import Path
from typing import Any

from drawn import captions_of_test, scenes_of, share_right

from toolkit.cache.schema import open_cache
from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.likelihood import split_log_probs
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.data.drawing import draw_sample
from toolkit.data.reviews import Action, Review, review_of
from toolkit.data.scenes import captions_of, judge
from toolkit.options import FinetuneOptions, PreprocessOptions, ReviewOptions
from toolkit.reviewing.listing import list_cache

WRONG, LOOKED_AT = 0.15, 0.10


def make_wrong(data: Path, scenes: dict[str, Any], rng: random.Random) -> int:
    """Rewrites captions.txt; how many train captions are wrong from now on."""
    with open(data / "captions.txt", newline="") as file:
        header, *rows = csv.reader(file)
    train = [i for i, (image, _) in enumerate(rows) if scenes[image]["split"] == "train"]
    chosen = rng.sample(train, round(WRONG * len(train)))
    for i in chosen:
        while judge(rows[i][1], scenes[rows[i][0]]):
            rows[i][1] = rng.choice(captions_of(scenes[rows[rng.choice(train)][0]]))
    with open(data / "captions.txt", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return len(chosen)


def play_person(cache: Path, model: Path, scenes: dict[str, Any]) -> tuple[int, int]:
    """Looks at the weakest captions; how many, and how many of them were wrong."""
    scores = split_log_probs(load_captioner(model, "cpu"), f"{model}", open_cache(cache), "train")
    items = sorted(list_cache(ReviewOptions(path=cache), scores).items, key=lambda item: -item.weakness)
    review, actions, wrong = Review(review_of(cache)), list[Action](), 0
    for item in items[: round(LOOKED_AT * len(items))]:
        right = judge(item.caption or "", scenes[item.id])
        wrong += not right
        text = item.caption if right else captions_of(scenes[item.id])[0]
        actions.append(Action(item.id, "accept" if right else "edit", text, item.caption))
    review.append(actions)
    return len(actions), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=None, help="of each training [default: the tiny preset's]")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    print("| seed | wrong train captions | looked at | of these wrong | right before | after | control |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(1, arguments.seeds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data, cache, model = folder / "data", folder / "cache", folder / "model"
            draw_sample(data, arguments.images, seed)
            scenes = scenes_of(data)
            wrong = make_wrong(data, scenes, random.Random(seed))
            options: Any = {"annotations": data / "captions.txt", "images": data / "Images", "seed": seed}
            preprocess(PreprocessOptions(out=cache, preset="tiny", **options))
            train: Any = {"epochs": arguments.epochs, "seed": seed}
            finetune(FinetuneOptions(cache, model, **train))
            again: Any = {"init_from": f"{model}", **train}
            finetune(FinetuneOptions(cache, folder / "control", **again))
            looked, found = play_person(cache, model, scenes)
            own: Any = {
                "encoder": f"{model}",
                "decoder": f"{model}",
            }  # its tokenizer, not one of the corrected captions
            preprocess(PreprocessOptions(out=cache, reviewed=review_of(cache), **own, **options))
            finetune(FinetuneOptions(cache, folder / "model-2", **again))
            shares = [
                f"{share_right(captions_of_test(folder / name, data), data):.1%}"
                for name in ("model", "model-2", "control")
            ]
            print(f"| {seed} | {wrong} | {looked} | {found} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
