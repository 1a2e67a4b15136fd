"""A captioner in torch and as ONNX, side by side in one run: sizes, encoder, decoding, files to captions, equal captions.

    python scripts/bench_onnx.py                                       # ViT-B/16 + GPT-2 sizes, random weights
    python scripts/bench_onnx.py --model model --images photographs    # a trained captioner
    python scripts/bench_onnx.py --size tiny --rounds 1 --number 4     # does it run?

The ways take turns, round by round; a ratio is the median of the rounds' ratios, with the lowest and the highest. Times are
processor time with one thread, which other processes distort less than the clock. Captions are compared with those of torch in
fp32, with the model's own settings (of random weights: 4 beams, no trigram twice, 20 new tokens) and greedily. With
--transformers-js FOLDER, which has node_modules with @huggingface/transformers, Node captions the first --node images greedily. With --dynamic also graphs by onnxruntime's quantize_dynamic.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_preprocess import PHOTOS, make_images
from notebook_baseline import build

from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.captioning.generate import decode
from toolkit.captioning.kv_cache import prepared
from toolkit.captioning.onnx_model import OnnxModel
from toolkit.commands.export import export
from toolkit.data.images import read_image
from toolkit.data.sources import find_images
from toolkit.options import ExportOptions, GenerationOptions

WAYS = {"torch": "fp32", "torch bf16": "bf16", "torch int8": "int8", "ONNX": "fp32", "ONNX int8": "int8"}
BATCH = 8


def bytes_of(folder: Path, way: str) -> int:
    if way.startswith("ONNX"):
        found = [path for path in folder.rglob("*.onnx") if ("quantized" in path.name) == (way == "ONNX int8")]
    else:
        found = list(folder.glob("*.safetensors"))
    return sum(path.stat().st_size for path in found)


def quantize_dynamically(exported: Path, folder: Path) -> Path:
    """The same export with int8 graphs by onnxruntime's usual way: a scale a column of weights, one for all activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it tells the root logger of every layer
    shutil.copytree(exported, folder)
    for path in (exported / "onnx").glob("*.onnx"):
        if "quantized" not in path.name:
            quantize_dynamic(
                path, folder / "onnx" / f"{path.stem}_quantized.onnx", op_types_to_quantize=["MatMul", "Gather"],
                per_channel=True, weight_type=QuantType.QInt8,
            )  # fmt: skip
    return folder


def parts_of(captioner: Captioner, paths: list[Path], options: GenerationOptions) -> dict[str, Callable[[], Any]]:
    model = captioner.model
    pixels = torch.from_numpy(np.stack([captioner.prepare(read_image(path)) for path in paths[:BATCH]]))
    normalised = captioner.normalizer(pixels)
    config = captioner.settings(options).config
    size = 2 if captioner.arithmetic.startswith("int8") else BATCH  # as toolkit does it

    def encode(inputs: torch.Tensor) -> Any:
        if isinstance(model, OnnxModel):
            return model.encode(inputs)
        return [prepared(model).encoder(pixel_values=part) for part in inputs.split(size)]

    return {
        "encoder, 8 images": lambda: encode(normalised),
        "encoder, one image": lambda: encode(normalised[:1]),
        "pixels to captions, 8 images": lambda: decode(model, config, normalised),
        "pixels to a caption, one image": lambda: decode(model, config, normalised[:1]),
        "files to captions": lambda: captioner.caption(paths[: 2 * BATCH], options, BATCH),
    }


def measure(captioners: dict[str, Captioner], paths: list[Path], options: GenerationOptions, rounds: int) -> None:
    parts = {way: parts_of(captioner, paths, options) for way, captioner in captioners.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for part in parts["torch"]:
                for way in captioners:
                    started = time.process_time()
                    parts[way][part]()
                    if number:  # the first round lays out weights
                        seconds.setdefault((part, way), []).append(time.process_time() - started)
    print("\n| seconds | " + " | ".join(captioners) + " |\n| --- |" + " ---: |" * len(captioners))
    for part in parts["torch"]:
        print(f"| {part} | " + " | ".join(f"{statistics.median(seconds[part, way]):.3f}" for way in captioners) + " |")
    print(
        "\n| times as fast as torch | "
        + " | ".join(list(captioners)[1:])
        + " |\n| --- |"
        + " ---: |" * (len(captioners) - 1)
    )
    for part in parts["torch"]:
        cells = []
        for way in list(captioners)[1:]:
            ratios = [a / b for a, b in zip(seconds[part, "torch"], seconds[part, way], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {part} | " + " | ".join(cells) + " |")


def compare(captioners: dict[str, Captioner], paths: list[Path], options: GenerationOptions) -> list[str]:
    """Prints how many captions are torch's; those of ONNX without beams."""
    greedy: list[str] = []
    for name, asked in (
        ("own settings", options),
        ("greedy", GenerationOptions(num_beams=1, max_length=options.max_length)),
    ):
        rows = {
            way: [row.caption for row in captioner.caption(paths, asked, BATCH)]
            for way, captioner in captioners.items()
        }
        for way in list(captioners)[1:]:
            same = sum(a == b for a, b in zip(rows["torch"], rows[way], strict=True))
            print(f"{name}, {way}: {same} of {len(paths)} captions are torch's in fp32")
        greedy = [str(caption) for caption in rows["ONNX"]]
    return greedy


def compare_node(home: Path, folder: Path, paths: list[Path], wanted: list[str]) -> None:
    listing = folder.parent / "images.txt"
    listing.write_text("\n".join(str(path.absolute()) for path in paths), encoding="utf-8")
    script = Path(__file__).with_name("caption.mjs")
    done = subprocess.run(
        ["node", script, folder, "fp32", listing],
        env={**os.environ, "TRANSFORMERS_JS": str(home)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = [json.loads(line)["caption"] for line in done.stdout.splitlines()]
    same = sum(a == b for a, b in zip(wanted, found, strict=True))
    print(
        f"transformers.js: {same} of {len(paths)} captions are those of ONNX, greedy; {done.stderr.strip().splitlines()[-1]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--model", help="a trained captioner, instead of random weights")
    parser.add_argument("--images", type=Path, help="a folder of images, instead of made ones")
    parser.add_argument("--number", type=int, default=16, help="of images whose captions are compared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transformers-js", type=Path, help="a folder with node_modules")
    parser.add_argument("--dynamic", action="store_true", help="also quantize_dynamic")
    parser.add_argument("--node", type=int, default=20, help="images that transformers.js captions")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.images is None:
            make_images(folder, PHOTOS, arguments.number, (500, 375))
            arguments.images = folder / "Images"
        paths = [image.path for image in islice(find_images([arguments.images]), arguments.number)]
        options = GenerationOptions()
        model = Path(arguments.model or folder / "model")
        if arguments.model is None:
            options = GenerationOptions(num_beams=4, no_repeat_ngram_size=3, max_length=21)
            for part in build(arguments.size, ["a dog runs on the green grass"] * 10):
                part.save_pretrained(model)
        started = time.process_time()
        export(ExportOptions(str(model), folder / "exported", int8=True))
        print(f"export: {time.process_time() - started:.0f} s of processor time")
        captioners = {
            way: load_captioner(folder / "exported" if way.startswith("ONNX") else model, "cpu", precision)
            for way, precision in WAYS.items()
        }
        if arguments.dynamic:
            other = quantize_dynamically(folder / "exported", folder / "dynamic")
            captioners["ONNX quantize_dynamic"] = load_captioner(other, "cpu", "int8")
        sizes = {
            way: bytes_of(folder / "exported" if way.startswith("ONNX") else model, way)
            for way in ("torch", "ONNX", "ONNX int8")
        }
        print("MB on disk: " + ", ".join(f"{way} {size / 1e6:.1f}" for way, size in sizes.items()))
        measure(captioners, paths, options, arguments.rounds)
        print()
        greedy = compare(captioners, paths, options)
        if arguments.transformers_js is not None:
            compare_node(
                arguments.transformers_js.absolute(),
                folder / "exported",
                paths[: arguments.node],
                greedy[: arguments.node],
            )


if __name__ == "__main__":
    main()
