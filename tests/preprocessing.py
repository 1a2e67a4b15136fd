"""What the tests of preprocess share: small drawn data sets, quick runs, and a tree of files to compare."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolkit.options import PreprocessOptions
from toolkit.records import SpecialTokens, Summary

# Small shards, so that a handful of images is several of them.
SHARD_ROWS = 4


def picture(seed: int, size: tuple[int, int] | None = None) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = size or (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (4 + c) + seed) * np.cos(y / 7 + c) for c in range(3)], axis=-1)
    return Image.fromarray((waves * 100 + 128).astype(np.uint8))


class DataSet:
    """A folder with captions.txt and Images/, and the cache made of it."""

    def __init__(self, root: Path, images: int = 12) -> None:
        self.root = root
        self.images = root / "Images"
        self.annotations = root / "captions.txt"
        self.out = root / "cache" / "dataset"
        self.images.mkdir(parents=True)
        self.rows: list[tuple[str, str]] = []
        for i in range(images):
            self.add(f"{i:03d}.{'png' if i % 3 else 'jpg'}", picture(i))
        self.write()

    def add(self, name: str, image: Image.Image | None, captions: list[str] | None = None) -> None:
        """Another image with its captions; `write` tells the annotations."""
        if image is not None:
            image.save(self.images / name)
        for caption in captions if captions is not None else [f"a picture called {name}", "waves, and colours ."]:
            self.rows.append((name, caption))

    def write(self) -> None:
        with open(self.annotations, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *self.rows])

    def options(self, **options: Any) -> PreprocessOptions:
        defaults: dict[str, Any] = {
            "annotations": self.annotations,
            "images": self.images,
            "out": self.out,
            "preset": "tiny",
            "num_workers": 1,
            "val_fraction": 0.25,
            "test_fraction": 0.25,
        }
        return PreprocessOptions(**{**defaults, **options})

    def run(self, **options: Any) -> Summary:
        from toolkit.commands.preprocess import preprocess

        return preprocess(self.options(**options))

    def script(self, **options: Any) -> list[str]:
        """The same run as a process of its own, which a test may kill."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import preprocessing\n"
            "from pathlib import *; from toolkit.options import PreprocessOptions\n"
            f"preprocessing.run_alone({self.options(**options)!r})"
        )
        return [sys.executable, "-c", code, str(Path(__file__).parent)]

    def beside(self) -> list[str]:
        """What lies beside the cache."""
        return sorted(os.listdir(self.out.parent)) if self.out.parent.exists() else []


def run_alone(options: PreprocessOptions) -> None:
    """What `DataSet.script` runs: small shards, and no process for the processors, which would import torch."""
    import toolkit.commands.preprocess
    from toolkit.errors import ToolkitError

    toolkit.cache.staging.SHARD_ROWS = int(os.environ.get("TEST_SHARD_ROWS", SHARD_ROWS))
    toolkit.commands.preprocess.fetch_processors = stored_processors  # type: ignore[assignment]
    try:
        toolkit.commands.preprocess.preprocess(options)
    except ToolkitError as error:
        sys.exit(f"Error: {error}")


def stored_processors(
    encoder: str, decoder: str, preset: str | None, directory: Path
) -> tuple[dict, SpecialTokens, int]:
    """`fetch_processors` for a fixed byte-level vocabulary, without transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name in ("tokenizer", "image_processor"):
        (directory / name).mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer" / "tokenizer.json"))
    size = {"height": 32, "width": 32}
    settings = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    return settings, SpecialTokens(start=0, eos=0, pad=0), len(alphabet)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below and including a folder, with its inode and time of change."""
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in [folder, *sorted(folder.rglob("*"))]}


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the size of each image that is decoded from now on (in this process)."""
    import toolkit.cache.build

    real, calls = toolkit.cache.build.read_image, list[int]()

    def read_image(source: Any) -> Image.Image:
        calls.append(len(source))
        return real(source)

    monkeypatch.setattr(toolkit.cache.build, "read_image", read_image)
    return calls


def finish_alone(command: list[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
