"""What options of `toolkit finetune` change, on the drawn sample with the tiny preset: each way is a string of options.

    OMP_NUM_THREADS=1 python scripts/bench_ablation.py none "--augment light"
    OMP_NUM_THREADS=1 python scripts/bench_ablation.py none --images 40 --epochs 1 --seeds 1   # does it run?

Printed are the loss on validation (nats a token), CIDEr there (times 100), and the share of test captions that say exactly
what was drawn, each of the checkpoint that is kept. With one seed the weights and the order of images are the same in all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from drawn import captions_of_test, share_right

from toolkit.commands.preprocess import preprocess
from toolkit.data.drawing import draw_sample
from toolkit.options import PreprocessOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+", help="options of finetune, a string each, or none")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pixel-margin", type=int, default=0, help="of the cache: see preprocess")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print("| seed | options | loss | CIDEr | right |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for seed in range(1, arguments.seeds + 1):
        with tempfile.TemporaryDirectory() as name:
            data, cache, model = Path(name, "data"), Path(name, "cache"), Path(name, "model")
            draw_sample(data, arguments.images, seed)
            preprocess(
                PreprocessOptions(
                    data / "captions.txt", data / "Images", out=cache, preset="tiny", seed=seed,
                    pixel_margin=arguments.pixel_margin,
                )
            )  # fmt: skip
            for way in arguments.ways:
                given = ["--epochs", arguments.epochs, "--seed", str(seed), "--output-dir", str(model), "--overwrite"]
                command = [
                    sys.executable,
                    "-m",
                    "toolkit",
                    "finetune",
                    str(cache),
                    *given,
                    *(way.split() if way != "none" else []),
                ]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                rows = [json.loads(line) for line in (model / "training.jsonl").read_text().splitlines()]
                best = min((row for row in rows if "eval_loss" in row), key=lambda row: row["eval_loss"])
                right = share_right(captions_of_test(model, data), data)
                print(f"| {seed} | {way} | {best['eval_loss']:.4f} | {100 * best['eval_cider']:.1f} | {right:.1%} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
