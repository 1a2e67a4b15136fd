"""Does training in bf16 end where training in fp32 ends? Both, with three seeds, on the drawn sample; the tiny preset.

    OMP_NUM_THREADS=1 python scripts/bench_loss.py                                        # about a minute a run
    OMP_NUM_THREADS=1 python scripts/bench_loss.py --images 40 --epochs 1 --seeds 1       # does it run?

For each seed the weights, the order of images and dropout are the same in both. Printed are the loss on validation (nats a
token) and the share of test captions that say exactly what was drawn; of the fp32 model that share in bf16 and int8 too,
unless this processor lacks int8 products. Without hardware for it bf16 is emulated, which shows the same and is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from drawn import captions_of_test, share_right

from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.data.drawing import draw_sample
from toolkit.models.packed import why_not_int8
from toolkit.options import FinetuneOptions, PreprocessOptions


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print("| seed | loss, fp32 | bf16 | difference | right, fp32 | trained in bf16 | fp32's in bf16 | in int8 |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(1, arguments.seeds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder, losses = Path(name), {}
            data, cache = folder / "data", folder / "cache"
            draw_sample(data, arguments.images, seed)
            preprocess(PreprocessOptions(data / "captions.txt", data / "Images", out=cache, preset="tiny", seed=seed))
            for precision in ("fp32", "bf16"):
                out = folder / precision
                finetune(FinetuneOptions(cache, out, epochs=arguments.epochs, seed=seed, precision=precision))
                losses[precision] = [row["eval_loss"] for row in rows(out / "training.jsonl") if "eval_loss" in row][-1]
            cells = [f"{losses['fp32']:.4f}", f"{losses['bf16']:.4f}", f"{losses['bf16'] / losses['fp32'] - 1:+.2%}"]
            cells += [
                f"{share_right(captions_of_test(folder / name, data, 'fp32'), data):.1%}" for name in ("fp32", "bf16")
            ]
            for precision in ("bf16", "int8"):
                missing = precision == "int8" and why_not_int8()
                cells.append(
                    "-" if missing else f"{share_right(captions_of_test(folder / 'fp32', data, precision), data):.1%}"
                )
            print(f"| {seed} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
