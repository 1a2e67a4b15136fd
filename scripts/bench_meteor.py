"""METEOR, ours against pycocoevalcap's jar: whole process against whole process, start-up included, and the largest difference.

    python scripts/bench_meteor.py captions.txt [--images 1000 5000] [--runs 3]

captions.txt is a table `image,caption` with several captions an image (Flickr8k's, or `toolkit sample`'s): the first is judged
by the others. Each run is a fresh Python that reads the words from a JSON file; pycocoevalcap's starts Java besides.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from toolkit.evaluation.ptb import ptb_tokenize_lines

OURS = """
import json, sys
from toolkit.evaluation.java import pycocoevalcap_folder
from toolkit.evaluation.meteor import score_meteor
words, references = json.load(open(sys.argv[1]))
corpus, per_image = score_meteor(pycocoevalcap_folder("meteor"), references, words)
print(json.dumps([corpus, list(per_image)]))
"""
THEIRS = """
import json, sys
from pycocoevalcap.meteor.meteor import Meteor
words, references = json.load(open(sys.argv[1]))
said = {i: [" ".join(one) for one in all_] for i, all_ in enumerate(references)}
corpus, per_image = Meteor().compute_score(said, {i: [" ".join(caption)] for i, caption in enumerate(words)})
print(json.dumps([corpus, per_image]))
"""


def read(path: Path, images: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Words of the first captions, and of the others by image."""
    said: dict[str, list[str]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for image, caption in list(csv.reader(file))[1:]:
            said.setdefault(image, []).append(caption)
    chosen = [captions for captions in said.values() if len(captions) > 1][:images]
    words = iter(list(ptb_tokenize_lines([caption for captions in chosen for caption in captions])))
    cut = [[next(words) for _ in captions] for captions in chosen]
    return [captions[0] for captions in cut], [captions[1:] for captions in cut]


class Run(NamedTuple):
    """Seconds of the clock and of processors; score of the corpus and of each image."""

    seconds: float
    cpu: float
    scores: list[float]


def run(code: str, path: Path) -> Run:
    """A fresh Python that runs `code`."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    corpus, per_image = json.loads(done.stdout.splitlines()[-1])
    return Run(seconds, cpu, [corpus, *per_image])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print("| images | pairs | the jar s | ours s | ratio | the jar CPU s | ours CPU s | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for images in options.images:
        words, references = read(options.captions, images)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "words.json")
            path.write_text(json.dumps([words, references]))
            runs = [(run(THEIRS, path), run(OURS, path)) for _ in range(options.runs)]
        theirs, ours = (statistics.median(pair[k].seconds for pair in runs) for k in (0, 1))
        theirs_cpu, ours_cpu = (statistics.median(pair[k].cpu for pair in runs) for k in (0, 1))
        difference = max(abs(a - b) for a, b in zip(runs[0][0].scores, runs[0][1].scores, strict=True))
        pairs = sum(map(len, references))
        figures = f"{theirs:.1f} | {ours:.1f} | {theirs / ours:.2f} | {theirs_cpu:.1f} | {ours_cpu:.1f}"
        print(f"| {len(words)} | {pairs} | {figures} | {difference:.1g} |", flush=True)


if __name__ == "__main__":
    main()
