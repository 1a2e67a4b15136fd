"""Options of `toolkit preprocess`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import (
    ENGINES,
    Groups,
    Options,
    check,
    check_at_least,
    check_engine,
    check_seed,
    check_split_map,
    default_workers,
    option,
)

FORMATS = (
    "auto",
    "flickr8k",
    "flickr8k-token",
    "flickr30k",
    "karpathy",
    "coco",
    "lavis",
    "imagefolder",
    "sidecar",
    "parquet",
    "webdataset",
    "hub",
)
DEFAULT_ENCODER = "google/vit-base-patch16-224"
DEFAULT_DECODER = "gpt2"
TINY_POSITIONS = 64  # tokens that the tiny preset's decoder has positions for
# Decoders with random weights, by the reserved words of --decoder, with the tokens that each has positions for.
NEW_DECODERS = {"tiny": TINY_POSITIONS, "small": 128}
BYTE_TOKENS = 257  # of a byte-level tokenizer before it has learnt anything: the bytes, and the end of text


@dataclass(frozen=True)
class PreprocessOptions(Options):
    """Options of `toolkit preprocess`."""

    groups: ClassVar[Groups] = {
        "Input and output": ("annotations", "images", "out", "format", "overwrite"),
        "Models": ("encoder", "decoder", "preset", "max_length", "vocab_size", "pixel_margin"),
        "Splits": ("val_fraction", "test_fraction", "train_list", "val_list", "test_list", "strict_splits", "seed"),
        "What is read": (
            "limit", "dry_run", "image_column", "caption_column", "split_column", "split_map", "reviewed",
            "max_rejected",
        ),
        "Machine": ("num_workers", "engine", "ray_address"),
    }  # fmt: skip

    annotations: Path = option(
        Path("captions.txt"), "Annotation file or folder; inputs and outputs may be URLs: s3://..."
    )
    images: Path = option(Path("Images"), "Folder that the image names are relative to.")
    out: Path = option(Path("cache/dataset"), "Where the cache is written.", output=True)
    format: str = option("auto", f"Annotation format: {', '.join(FORMATS)}.", choices=FORMATS)
    image_column: str | None = option(
        None, "Column or key with the images or their names, if it isn't found automatically."
    )
    caption_column: tuple[str, ...] = option(
        (), "Column or key with captions; give the option once for each.", show_default=False
    )
    split_column: str | None = option(None, "Column or key with the split of an image.")
    split_map: tuple[str, ...] = option(
        (), "Call a split by another name: eval=validation; give the option once for each.", show_default=False
    )
    encoder: str | None = option(
        None,
        f"Vision encoder: hub name or local folder. Its processor decides the pixels. [default: {DEFAULT_ENCODER}]",
        path=True,
    )
    decoder: str | None = option(
        None,
        "Text decoder: hub name or local folder, whose tokenizer makes the labels; or small or tiny: a GPT-2 with random "
        f"weights, and a tokenizer trained on the train captions. [default: {DEFAULT_DECODER}]",
        path=True,
    )
    vocab_size: int | None = option(
        None, "With --decoder small or tiny: tokens of the trained tokenizer. [default: by the train captions]"
    )
    preset: str | None = option(
        None,
        "'tiny': a small ViT and GPT-2 from scratch, instead of --encoder and --decoder; nothing downloaded.",
        suggested=("tiny",),
    )
    pixel_margin: int = option(
        0, "Pixels that images are stored higher and wider than the encoder takes, for --augment to crop; even."
    )
    max_length: int = option(50, "Longest label row in tokens, EOS included; longer captions are cut, EOS kept.")
    val_fraction: float = option(
        0.1,
        "Share of images for validation, if the source has no splits of its own, or lists but none for validation.",
    )
    test_fraction: float = option(0.1, "Share of images for test, in the same case.")
    train_list: Path | None = option(
        None, "File with the image names of train, one per line; without it, train is all images that no list names."
    )
    val_list: Path | None = option(
        None, "File with the image names of validation; without it, validation is drawn from train."
    )
    test_list: Path | None = option(
        None, "File with the image names of test; without it, test has no images, if there are other lists."
    )
    reviewed: Path | None = option(
        None,
        "A .review that `toolkit review` keeps: captions that a person edited replace those of the annotations, and rejected "
        "images are left out.",
    )
    strict_splits: bool = option(False, "Stop if an image is in two of the source's splits.", flag=True)
    seed: int = option(42, "Seed of the splits.")
    num_workers: int = option(default_workers(), "Worker processes. [default: the cores]", show_default=False)
    max_rejected: float = option(0.05, "Stop without a cache if a larger share of the images and rows can't be read.")
    limit: int | None = option(None, "Read only the first N images of the annotations.")
    dry_run: bool = option(
        False, "Say what would be done (how many images, which first, the settings), and write nothing.", flag=True
    )
    overwrite: bool = option(False, "Replace a cache of another data set at --out.", flag=True, by_hand=True)
    engine: str = option(
        "local", "Where the work is done: local (in processes of this machine) or ray.", choices=ENGINES
    )
    ray_address: str | None = option(
        None, "With --engine ray: a running cluster, host:port or auto. [default: Ray is started here]", by_hand=True
    )

    def validate(self) -> None:
        check_split_map(self)
        check_seed(self)
        check_at_least(self, 1, "num_workers", "limit")
        check_at_least(self, 2, "max_length")
        check_at_least(self, 0, "val_fraction", "test_fraction", "max_rejected", "pixel_margin")
        check(self.pixel_margin % 2 == 0, "pixel_margin", self.pixel_margin,
              "must be even, half of it for each side")  # fmt: skip
        check(self.val_fraction + self.test_fraction < 1, "val_fraction", self.val_fraction,
              f"with --test-fraction {self.test_fraction} nothing is left to train on")  # fmt: skip
        check(self.preset in (None, "tiny"), "preset", self.preset, "the only preset is tiny")
        for name in ("encoder", "decoder"):
            check(self.preset is None or getattr(self, name) is None, name, getattr(self, name),
                  f"--preset {self.preset} has its own; leave one of the two out")  # fmt: skip
        new = self.decoder in NEW_DECODERS
        check(new or self.vocab_size is None, "vocab_size", self.vocab_size,
              "only applies with --decoder small or tiny; add that")  # fmt: skip
        check_at_least(self, BYTE_TOKENS, "vocab_size")
        positions = NEW_DECODERS[self.decoder] if self.decoder is not None and new else self.max_length
        check(self.max_length <= positions, "max_length", self.max_length,
              f"--decoder {self.decoder} has positions for {positions} tokens; use that or less")  # fmt: skip
        check(self.preset is None or self.max_length <= TINY_POSITIONS, "max_length", self.max_length,
              f"the decoder of --preset {self.preset} has positions for {TINY_POSITIONS} tokens; use that or less")  # fmt: skip
        check_engine(self)
