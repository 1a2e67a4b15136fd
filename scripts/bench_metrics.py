"""Metrics, ours against pycocoevalcap: tokenizer + BLEU + ROUGE-L + CIDEr, whole process against whole process.

    python scripts/bench_metrics.py [--images 1000 5000] [--references 5] [--runs 5]

Each run is a fresh Python that reads the captions from a JSON file, tokenizes, scores and prints the corpus figures;
pycocoevalcap's starts Java besides. Captions are drawn from a seed: 8 to 14 words, of a vocabulary of 5,000 with
Zipf's frequencies, an image's captions sharing part of their words.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import json, sys
from toolkit.evaluation.metrics import score
hypotheses, references = json.load(open(sys.argv[1]))
print(json.dumps(score(hypotheses, references).corpus))
"""
THEIRS = """
import contextlib, json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
hypotheses, references = json.load(open(sys.argv[1]))
tokenizer = PTBTokenizer()
references = tokenizer.tokenize({i: [{"caption": c} for c in references[i]] for i in sorted(references)})
hypotheses = tokenizer.tokenize({i: [{"caption": hypotheses[i]}] for i in sorted(hypotheses)})
figures = {f"bleu_{n + 1}": float(x) for n, x in enumerate(Bleu(4).compute_score(references, hypotheses, verbose=0)[0])}
figures["rouge_l"] = float(Rouge().compute_score(references, hypotheses)[0])
figures["cider"] = float(Cider().compute_score(references, hypotheses)[0])
print(json.dumps(figures))
"""


def captions(n_images: int, n_references: int, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Drawn hypotheses and references."""
    rng = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    vocabulary = ["a", "the", "in", "on", "of", "with", "man's", "T-shirt", "two", "well-dressed"]
    vocabulary += list(dict.fromkeys("".join(rng.choices(syllables, k=rng.choice((2, 2, 3)))) for _ in range(9000)))
    vocabulary = vocabulary[:5000]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(vocabulary) + 1)))
    hypotheses, references = {}, {}
    for image in range(n_images):
        shared = rng.choices(vocabulary, cum_weights=weights, k=12)
        drawn = []
        for _ in range(n_references + 1):
            words = [w if rng.random() < 0.6 else rng.choices(vocabulary, cum_weights=weights)[0] for w in shared]
            drawn.append(" ".join(words[: rng.randint(8, 12)]).capitalize() + rng.choice((".", " .", "", "!")))
        hypotheses[f"{image:06d}.jpg"], references[f"{image:06d}.jpg"] = drawn[0], drawn[1:]
    return hypotheses, references


def run(code: str, path: Path) -> tuple[float, dict[str, float]]:
    """Seconds of a fresh Python that runs `code`, and the figures that it prints."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print("| images x references | pycocoevalcap s | ours s | ratio | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    for n_images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "captions.json"
            path.write_text(json.dumps(captions(n_images, options.references)))
            pairs = [(run(THEIRS, path), run(OURS, path)) for _ in range(options.runs)]
        theirs, ours = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
        figures = pairs[0][0][1], pairs[0][1][1]
        difference = max(abs(figures[0][name] - figures[1][name]) for name in figures[0])
        print(
            f"| {n_images:,} x {options.references} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} | {difference:.1e} |"
        )
        if difference > 1e-6:
            sys.exit("The figures differ by more than 1e-6.")


if __name__ == "__main__":
    main()
