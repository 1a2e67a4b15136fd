"""Options of `toolkit batch-caption`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from toolkit.options.fields import (
    CAPTION_PRECISIONS,
    DEVICES,
    ENGINES,
    Groups,
    Options,
    check,
    check_at_least,
    check_engine,
    check_split_map,
    check_unused,
    default_workers,
    nested,
    option,
)
from toolkit.options.generation import ALL, GenerationOptions, check_generation
from toolkit.options.prompts import PROMPTS, PromptOptions

API_KEY = "TOOLKIT_API_KEY"  # the environment variable, and nothing else, that has the key of a server
SOURCES = ("auto", "images", "cache", "hub", "parquet", "webdataset")
SPLIT_CHOICES = ("train", "validation", "test", "all")
FORMATS = ("auto", "jsonl", "csv", "parquet", "txt", "coco", "imagefolder")


@dataclass(frozen=True)
class BatchCaptionOptions(Options):
    """Options of `toolkit batch-caption`."""

    groups: ClassVar[Groups] = {
        "Model and output": ("model", "output", "format", "existing", "overwrite", "gallery", "attention"),
        "What is captioned": (
            "recursive", "limit", "dry_run", "source", "split", "image_column", "split_column", "split_map",
        ),
        "Speed": ("batch_size", "device", "precision", "num_workers", "engine", "ray_address"),
        "Captions": ("prefix", "suffix", "strip_period", "min_score", "clip_score", "rerank", "add_column"),
        "Decoding": (
            "num_beams", "max_length", "max_new_tokens", "length_penalty", "no_repeat_ngram_size", "early_stopping",
            "min_length", "repetition_penalty", "bad_words", "start_with", "num_captions", "sample", "top_k", "top_p",
            "temperature", "seed",
        ),
        "Prompts": ("prompt", "prompt_file", "system_prompt", "captions_from", "keep_raw"),
        "A server": ("endpoint", "requests", "request_timeout", "retries", "max_image_size"),
    }  # fmt: skip

    generation: GenerationOptions = nested(GenerationOptions(), ALL)
    prompting: PromptOptions = nested(PromptOptions(), PROMPTS)
    paths: tuple[str, ...] = option(
        (),
        "Images, folders or globs, here or at URLs such as s3://...; or data sets: saved by `datasets`, Parquet, "
        "WebDataset, a cache.",
        path=True,
        positional=True,
        required=True,
    )
    model: str = option("model", "A captioner: the folder that finetune wrote, any other, or a hub name.", path=True)
    endpoint: str | None = option(
        None, "Caption by a server instead, with --model NAME and --prompt: the URL of an OpenAI-compatible interface, as "
        "http://localhost:8000/v1. The key is in TOOLKIT_API_KEY.", by_hand=True,
    )  # fmt: skip
    requests: int = option(8, "With --endpoint: requests at a time.")
    request_timeout: float = option(120.0, "With --endpoint: seconds to wait for an answer.")
    retries: int = option(6, "With --endpoint: how often a request that fails is tried again.")
    max_image_size: int = option(
        1024, "With --endpoint: images are sent with at most this height and width, in pixels."
    )
    output: Path | None = option(
        None, "The file written, or for txt and imagefolder the folder. [default: captions.jsonl]", output=True
    )
    source: str = option(
        "auto", "What the paths are: auto (by what is there), images, cache, hub (also one saved by `datasets`), parquet "
        "or webdataset; only hub takes the name of a data set on the hub.", choices=SOURCES,
    )  # fmt: skip
    split: str | None = option(
        None,
        "Of data sets and caches caption only this split: train, validation or test. [default: all]",
        choices=SPLIT_CHOICES,
    )
    image_column: str | None = option(
        None, "Of data sets: the column (in tars the ending) of the images, if it isn't found automatically."
    )
    split_column: str | None = option(None, "Of data sets: the column or key with the split of an image.")
    split_map: tuple[str, ...] = option(
        (), "Of data sets: call a split by another name: eval=validation; give the option once for each.",
        show_default=False,
    )  # fmt: skip
    recursive: bool = option(True, "Also caption the images in subfolders.")
    batch_size: str = option("auto", "Images per batch: a number, or auto.")
    num_workers: int = option(default_workers(), "Threads that decode images. [default: the cores]", show_default=False)
    limit: int | None = option(None, "Caption only the first N images, in the order of their names.")
    dry_run: bool = option(
        False, "Say what would be done (how many images, which first, the settings), and write nothing.", flag=True
    )
    existing: str = option(
        "skip",
        "Images that have a caption already: skip them, or overwrite the captions.",
        choices=("skip", "overwrite"),
        by_hand=("overwrite",),
    )
    format: str = option(
        "auto",
        "auto (by the suffix of --output), jsonl, csv, parquet, txt, coco or imagefolder.",
        choices=FORMATS,
        by_hand=("txt",),
    )
    add_column: str | None = option(
        None, "With --format parquet: write a copy of the data set instead, with the captions as this column."
    )
    min_score: float | None = option(None, "Mark captions with a lower score, in the column weak.")
    clip_score: str | None = option(
        None, "Add the CLIPScore of each caption, by this CLIP model: a folder or a hub name.", path=True
    )
    rerank: str = option(
        "none",
        "Which of --num-captions comes first: the captioner's best (none), or that of --clip-score (clip).",
        choices=("none", "clip"),
    )
    prefix: str = option("", "Text before every caption, exactly as given, such as a trigger word.", show_default=False)
    suffix: str = option("", "Text after every caption, exactly as given.", show_default=False)
    strip_period: bool = option(False, "Remove the full stop at the end of a caption.", flag=True)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", suggested=DEVICES)
    precision: str = option(
        "auto",
        "auto, fp32, bf16, fp16 or int8; bf16 and int8 are faster on a CPU that has them, auto is fp32 there.",
        choices=CAPTION_PRECISIONS,
    )
    gallery: Path | None = option(None, "Also write a page with images and captions: one HTML file.", output=True)
    overwrite: bool = option(
        False, "Let --output and --gallery replace files that batch-caption did not write.", flag=True, by_hand=True
    )
    attention: bool = option(False, "With --gallery: show for each word where the model looked.", flag=True)
    engine: str = option("local", "Where the work is done: local (on this machine) or ray.", choices=ENGINES)
    ray_address: str | None = option(
        None, "With --engine ray: a running cluster, host:port or auto. [default: Ray is started here]", by_hand=True
    )

    def validate(self) -> None:
        check_generation(self.generation, draws=self.prompting.prompt_file is not None)
        check_engine(self)
        self._check_endpoint()
        check(self.add_column is None or bool(self.add_column.strip()), "add_column", repr(self.add_column),
              "is blank; name a column")  # fmt: skip
        for name in ("min_score", "clip_score"):
            check(self.add_column is None or getattr(self, name) is None, name, getattr(self, name),
                  "is for a column of its own, which a copy of a data set does not get; leave it out")  # fmt: skip
        check_split_map(self)
        check_at_least(self, 1, "num_workers", "limit")
        check(not self.attention or self.gallery is not None, "attention", "on",
              "is shown on a page; add --gallery")  # fmt: skip
        check(self.rerank == "none" or self.clip_score is not None, "rerank", self.rerank,
              "needs a CLIP model; name one with --clip-score")  # fmt: skip
        check(self.rerank == "none" or self.generation.num_captions != 1, "rerank", self.rerank,
              "chooses among several captions; add --num-captions")  # fmt: skip
        check(self.clip_score is None or self.rerank != "none" or self.gallery is not None or self.format != "txt",
              "clip_score", self.clip_score,
              "has no place in --format txt; choose another format, or add --rerank clip or --gallery")  # fmt: skip
        check(self.batch_size == "auto" or (self.batch_size.isdigit() and int(self.batch_size) > 0), "batch_size",
              self.batch_size, "must be auto, or a number of at least 1")  # fmt: skip

    def _check_endpoint(self) -> None:
        check_at_least(self, 1, "requests", "max_image_size")
        check_at_least(self, 0, "retries")
        check(
            0 < self.request_timeout < float("inf"),
            "request_timeout",
            self.request_timeout,
            "must be above 0, and finite",
        )
        if self.endpoint is None:
            names = ("requests", "request_timeout", "retries", "max_image_size")
            check_unused(self, names, "only applies with --endpoint; add that")
            return
        try:
            url = urlsplit(self.endpoint)
            is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_url = False
        check(is_url and not url.query and not url.fragment, "endpoint", self.endpoint,
              "must be a URL such as http://localhost:8000/v1")  # fmt: skip
        check("@" not in url.netloc, "endpoint", "with a name or a password in it",
              "put the key into TOOLKIT_API_KEY instead")  # fmt: skip
        check(self.model != "model", "model", self.model, "name the model that the server is to use")
        check_unused(self, ("batch_size", "device", "precision", "min_score", "attention", "engine"),
                     "has no effect with --endpoint, where a server captions and gives no scores; leave it out")  # fmt: skip
