"""Equal time: cross-entropy alone against cross-entropy and then `--objective cider`, on a drawn sample made harder.

    OMP_NUM_THREADS=1 python scripts/bench_objective.py                                          # about ten minutes a seed
    OMP_NUM_THREADS=1 python scripts/bench_objective.py --train 40 --epochs 1 --seeds 1 --images 120   # does it run?

Few training images (`--train`), and of their captions a share (`--noise`) says one wrong word: another colour, shape, size,
position or relation. Validation and test captions are as drawn. The tiny preset is trained for `--epochs`, then for
`--second-epochs` with `--objective cider`; beside it as many epochs of cross-entropy as fill the time of both, with their own
schedule. Each keeps the checkpoint with the best CIDEr on validation. Printed are the seconds of processor time of each way,
CIDEr (times 100) on the test images with 4 beams, and the share of test captions that say exactly what was drawn.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from drawn import captions_of_test, scenes_of, share_right

from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.data.drawing import draw_sample
from toolkit.data.scenes import COLOURS, SHAPES
from toolkit.evaluation.metrics import score
from toolkit.options import FinetuneOptions, PreprocessOptions

WORDS = (
    tuple(COLOURS),
    SHAPES,
    ("small", "large", "little", "big"),
    ("left", "right"),
    ("top", "bottom"),
    ("above", "below"),
)


def with_a_wrong_word(caption: str, rng: random.Random) -> str:
    words = caption.split()
    places = [(i, kind) for i, word in enumerate(words) for kind in WORDS if word in kind]
    place, kind = rng.choice(places)
    words[place] = rng.choice([word for word in kind if word != words[place]])
    return " ".join(words)


def make_harder(data: Path, train: int, noise: float, rng: random.Random) -> dict[str, list[str]]:
    """Rewrites captions.txt; the captions of the test images."""
    scenes = scenes_of(data)
    kept = rng.sample([name for name, scene in scenes.items() if scene["split"] == "train"], train)
    with open(data / "captions.txt", newline="") as file:
        header, *rows = csv.reader(file)
    test: dict[str, list[str]] = {}
    harder = []
    for name, caption in rows:
        if scenes[name]["split"] == "test":
            test.setdefault(name, []).append(caption)
        elif scenes[name]["split"] == "train":
            if name not in kept:
                continue
            caption = with_a_wrong_word(caption, rng) if rng.random() < noise else caption
        harder.append([name, caption])
    with open(data / "captions.txt", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *harder])
    return test


def judged(model: Path, data: Path, references: dict[str, list[str]]) -> tuple[float, float]:
    """CIDEr times 100, and the share of captions that say what was drawn."""
    captions = captions_of_test(model, data)
    return 100 * score(captions, references, ["cider"]).corpus["cider"], share_right(captions, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=3000, help="that are drawn: a seventh of them for validation and test"
    )
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--second-epochs", type=float, default=8)
    parser.add_argument("--lr", type=float, default=1e-4, help="of the second phase")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print(
        "| seed | cross-entropy alone | then cider | CIDEr: first phase | alone | then cider | right: first phase | alone | then cider |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(1, arguments.seeds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data, cache = folder / "data", folder / "cache"
            draw_sample(data, arguments.images, seed)
            test = make_harder(data, arguments.train, arguments.noise, random.Random(seed))
            preprocess(PreprocessOptions(data / "captions.txt", data / "Images", out=cache, preset="tiny", seed=seed))

            def trained(out: str, **options: Any) -> float:
                started = time.process_time()
                finetune(FinetuneOptions(cache, folder / out, seed=seed, eval_metric="cider", **options))  # noqa: B023
                return time.process_time() - started

            first = trained("first", epochs=arguments.epochs)
            both = first + trained(
                "second",
                objective="cider",
                init_from=f"{folder / 'first'}",
                epochs=arguments.second_epochs,
                lr=arguments.lr,
            )
            alone = trained("alone", epochs=round(arguments.epochs * both / first))
            found = [judged(folder / out, data, test) for out in ("first", "alone", "second")]
            cells = [f"{alone:.0f} s", f"{both:.0f} s", *(f"{cider:.1f}" for cider, _ in found)]
            print(f"| {seed} | " + " | ".join([*cells, *(f"{right:.1%}" for _, right in found)]) + " |", flush=True)


if __name__ == "__main__":
    main()
