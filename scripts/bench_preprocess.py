"""Preprocessing, images/s and peak memory, side by side: the notebook's way, the bare limit, ours.

    python scripts/bench_preprocess.py --images 2000 --workers 2
    python scripts/bench_preprocess.py --images 100000 --size 64x48 --pixels 64 --only toolkit --repeats 1     # memory
    python scripts/bench_preprocess.py --images 8000 --only rerun                        # nothing to do

Inputs are random crops, flips and brightnesses of real photographs, saved as JPEG of quality 90, five captions each.

- notebook: `Dataset.map` over caption rows; each decodes its image and runs the Hugging Face processor into float32.
  Only as many images as it does in some seconds.
- limit: Pillow decode and resize to 224 x 224 in all processes; nothing hashed, labelled or written.
- toolkit: the whole command; `build` is its part without start-up, tokenizer and manifest.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

PHOTOS = Path(__file__).parent.parent / "tests" / "data" / "photos" / "Images"
CAPTION = "A brown dog is running over the green grass number {} of the park ."


def make_images(folder: Path, photos: Path, number: int, size: tuple[int, int]) -> None:
    """`number` JPEGs below `folder`/Images, and captions.txt."""
    sources = [Image.open(path).convert("RGB") for path in sorted(photos.iterdir()) if path.suffix in (".jpg", ".png")]
    rng = random.Random(0)
    (folder / "Images").mkdir()
    with open(folder / "captions.txt", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i in range(number):
            source = rng.choice(sources)
            scale = rng.uniform(0.6, 1.0)
            width, height = int(source.width * scale), int(source.height * scale)
            x, y = rng.randint(0, source.width - width), rng.randint(0, source.height - height)
            image = source.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
            image = ImageOps.mirror(image) if rng.random() < 0.5 else image
            ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3)).save(
                folder / "Images" / f"{i:06d}.jpg", quality=90
            )
            writer.writerows((f"{i:06d}.jpg", CAPTION.format(k)) for k in range(5))


def make_processors(folder: Path, pixels: int) -> None:
    """Local placeholders for a ViT's image processor and GPT-2's tokenizer."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from toolkit.models.presets import train_tokenizer

    ViTImageProcessorPil(size={"height": pixels, "width": pixels}).save_pretrained(folder / "encoder")
    train_tokenizer([CAPTION.format(k) for k in range(5)]).save_pretrained(folder / "decoder")


# ---- the ways, each in a process of its own -------------------------------------------------------------------------


def notebook(folder: Path, workers: int, number: int) -> float:
    from datasets import Dataset
    from transformers import AutoImageProcessor, AutoTokenizer

    processor = AutoImageProcessor.from_pretrained(folder / "encoder", backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
    with open(folder / "captions.txt", newline="") as file:
        rows = list(csv.DictReader(file))[: number * 5]

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(folder / "Images" / row["image"]).convert("RGB")
        labels = tokenizer(row["caption"], padding="max_length", max_length=50, truncation=True).input_ids
        return {"pixel_values": processor(image, return_tensors="np").pixel_values[0], "labels": labels}

    began = time.perf_counter()
    Dataset.from_list(rows).map(
        prepare, num_proc=workers, cache_file_name=str(folder / "notebook.arrow"), load_from_cache_file=False
    )
    return time.perf_counter() - began


def decode(paths: list[str]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)


def limit(folder: Path, workers: int, number: int) -> float:
    paths = sorted(str(path) for path in (folder / "Images").iterdir())[:number]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        began = time.perf_counter()
        pool.map(decode, [paths[i : i + 64] for i in range(0, len(paths), 64)], chunksize=1)
        return time.perf_counter() - began


def toolkit(folder: Path, workers: int, number: int) -> float:
    """Seconds of the build alone; the whole is measured from outside."""
    import toolkit.commands.preprocess as module
    from toolkit.options import PreprocessOptions

    seconds = [0.0]
    real = module._run

    def timed(*args: Any) -> int:
        began = time.perf_counter()
        decoded = real(*args)
        seconds[0] = time.perf_counter() - began
        return decoded

    module._run = timed  # type: ignore[assignment]
    os.chdir(folder)
    module.preprocess(PreprocessOptions(encoder="encoder", decoder="decoder", num_workers=workers))
    return seconds[0]


WAYS = {"notebook": notebook, "limit": limit, "toolkit": toolkit, "rerun": toolkit}


def measure(way: str, folder: Path, workers: int, number: int) -> dict[str, float]:
    """Runs this file again for one way, and watches the memory of its processes."""
    command = [sys.executable, __file__, "--child", way, "--folder", str(folder), "--workers", str(workers)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--images", str(number)], stdout=subprocess.PIPE, text=True)
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for pid in family(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), peak_memory(pid))
        time.sleep(0.1)
    text = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(f"{way} failed")
    whole = time.perf_counter() - began
    children = [peak for pid, peak in peaks.items() if pid != process.pid]
    memory = {"parent_mb": peaks.get(process.pid, 0), "child_mb": max(children, default=0)}
    return {"seconds": float(text.splitlines()[-1]), "whole": whole, **memory}


def family(parent: int) -> list[int]:
    """The process and its forks; not the one that fetches the processors, which is a program of its own (torch)."""
    found = [parent]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent and "toolkit.models.processors" not in (path.parent / "cmdline").read_text():
                found.append(int(path.parent.name))
        except (OSError, IndexError):
            continue
    return found


def peak_memory(pid: int) -> float:
    """The largest resident set so far, MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--notebook-images", type=int, default=60)
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--pixels", type=int, default=224, help="the encoder's image size; the limit keeps to 224")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of photographs to cut the inputs from")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--folder", type=Path, help="inputs made by an earlier run, or where to keep them")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(WAYS[arguments.child](arguments.folder, arguments.workers, arguments.images))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        if not (folder / "captions.txt").exists():
            width, height = map(int, arguments.size.split("x"))
            make_processors(folder, arguments.pixels)
            make_images(folder, arguments.photos, arguments.images, (width, height))
        compare(folder, arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    ways = [arguments.only] if arguments.only else list(WAYS)
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):
        for way in ways:
            if way == "toolkit" or (way == "rerun" and not (folder / "cache").exists()):
                shutil.rmtree(folder / "cache", ignore_errors=True)
            if way == "rerun" and not (folder / "cache").exists():
                measure("toolkit", folder, arguments.workers, arguments.images)
            number = arguments.notebook_images if way == "notebook" else arguments.images
            results[way].append(measure(way, folder, arguments.workers, number))
    size = sum(path.stat().st_size for path in (folder / "Images").iterdir()) / arguments.images / 1024
    print(f"{arguments.images} images {arguments.size}, {size:.0f} KB each, {arguments.workers} processes, "
          f"median of {arguments.repeats}")  # fmt: skip
    rates = {}
    for way, runs in results.items():
        number = arguments.notebook_images if way == "notebook" else arguments.images
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        memory = f"peak {middle['parent_mb']:.0f} MB, largest child {middle['child_mb']:.0f} MB"
        if way == "rerun":
            print(f"{'toolkit, nothing to do':24} {middle['whole']:8.2f} s whole; {memory}")
            continue
        rates[way] = number / middle["seconds"]
        print(f"{way:24} {rates[way]:8.1f} images/s; {memory}")
        if way == "toolkit":
            rates["whole"] = number / middle["whole"]
            print(f"{'toolkit, whole command':24} {rates['whole']:8.1f} images/s ({middle['whole']:.1f} s)")
    for a, b in (("toolkit", "notebook"), ("whole", "notebook"), ("toolkit", "limit"), ("whole", "limit")):
        if a in rates and b in rates:
            print(f"{a} / {b}: {rates[a] / rates[b]:.2f}")


if __name__ == "__main__":
    main()
