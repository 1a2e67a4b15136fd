"""Options of `toolkit evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import (
    CAPTION_PRECISIONS,
    DEVICES,
    TOKENIZE,
    Groups,
    Options,
    check,
    check_at_least,
    check_seed,
    check_split_map,
    check_unused,
    nested,
    option,
)
from toolkit.options.generation import BEAM_SEARCH, CONTROL, GenerationOptions, check_generation
from toolkit.options.preprocess import FORMATS

METRICS = ("bleu", "rouge_l", "cider", "cider_d", "cider_plain", "meteor", "spice", "spider")
SPLIT_CHOICES = ("train", "validation", "test", "all")
DECODING = (*BEAM_SEARCH, *CONTROL)


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Options of `toolkit evaluate`."""

    groups: ClassVar[Groups] = {
        "Captions and references": (
            "hypotheses", "references", "split", "model", "against", "human", "by", "missing",
        ),
        "Metrics": ("metrics", "tokenize", "idf", "clip_score", "pac_score", "resamples", "seed"),
        "Output": ("per_image", "page", "overwrite"),
        "Captioning with --model": (
            "batch_size", "device", "precision", "num_beams", "max_length", "length_penalty", "no_repeat_ngram_size",
            "min_length", "repetition_penalty", "bad_words", "start_with",
        ),
        "References that are annotations": (
            "images", "format", "image_column", "caption_column", "split_column", "split_map",
        ),
    }  # fmt: skip

    hypotheses: Path | None = option(
        None, "Captions to judge, in any form that batch-caption writes, or COCO results. [default: captions.jsonl]"
    )
    references: Path = option(
        Path("cache/dataset"),
        "Reference captions: a cache, an annotation set of any format, or a COCO captions file. none, or where the default "
        "isn't there, judges by --clip-score and --pac-score alone.",
    )
    split: str = option("test", "Split of the references: train, validation, test or all.", choices=SPLIT_CHOICES)
    model: str | None = option(
        None,
        "Caption the split with this captioner first, from the cache's pixels, instead of --hypotheses.",
        path=True,
    )
    against: tuple[Path, ...] = option(
        (),
        "Other captions of the same images: differences from --hypotheses, with p-values; give the option once for each.",
        show_default=False,
    )
    by: str | None = option(
        None,
        "Also break the metrics down by this column of the annotations, also those that the cache was made from; without "
        "references by this column of the captions.",
    )
    human: bool = option(False, "Also score each reference against the others: what a person would get.", flag=True)
    metrics: str = option(
        "bleu,rouge_l,cider",
        f"Which metrics, with commas between: {', '.join(METRICS)}; meteor, spice and spider need pycocoevalcap, the last two also Java.",
        suggested=METRICS,
    )
    clip_score: str | None = option(
        None,
        "Also CLIPScore and RefCLIPScore with this CLIP model, a folder or a hub name; it looks at the images themselves.",
        path=True,
    )
    pac_score: str | None = option(
        None, "Also PAC-S and RefPAC-S: the same form with CLIP weights trained for it, which this names.", path=True
    )
    tokenize: str = option(
        "auto",
        "What a word is: ptb (English, as COCO counts), intl (any language with spaces), char, or auto: by the references' script.",
        choices=TOKENIZE,
    )
    idf: str = option(
        "evaluated",
        "Where CIDEr's word weights come from: evaluated (the references of the images judged), train (of the references), a cache or annotations.",
        path=True,
    )
    missing: str = option(
        "skip",
        "An image without a caption, or with an error instead of one: skip it, or count it as empty.",
        choices=("skip", "empty"),
    )
    images: Path | None = option(
        None,
        "If the references are annotations: the folder of the images. [default: Images beside them] Without references: the "
        "folder that the captions' image names are relative to. [default: found as in review]",
    )
    format: str = option("auto", f"If the references are annotations: {', '.join(FORMATS)}.", choices=FORMATS)
    image_column: str | None = option(
        None,
        "If the references are annotations: column or key with the images or their names, if it isn't found automatically.",
    )
    caption_column: tuple[str, ...] = option(
        (),
        "If the references are annotations: column or key with captions; give the option once for each.",
        show_default=False,
    )
    split_column: str | None = option(
        None, "If the references are annotations: column or key with the split of an image."
    )
    split_map: tuple[str, ...] = option(
        (),
        "If the references are annotations: call a split by another name: eval=validation; give the option once for each.",
        show_default=False,
    )
    resamples: int = option(1000, "Resamples of the images, for intervals and p-values.")
    seed: int = option(42, "Seed of the resamples.")
    per_image: Path | None = option(
        None, "Also write the metrics of each image: FILE.csv or FILE.parquet.", output=True
    )
    page: Path | None = option(None, "Also write a page to look through: one HTML file.", output=True)
    overwrite: bool = option(
        False, "Let --per-image and --page replace files that evaluate did not write.", flag=True, by_hand=True
    )
    batch_size: int = option(32, "With --model: images per batch.")
    generation: GenerationOptions = nested(
        GenerationOptions(), DECODING, lambda name, text: f"With --model: {text[0].lower()}{text[1:]}"
    )
    device: str = option(
        "auto", "With --model, --clip-score or --pac-score: auto, cpu, cuda, cuda:1 or mps.", suggested=DEVICES
    )
    precision: str = option(
        "auto",
        "With --model, --clip-score or --pac-score: auto, fp32, bf16, fp16 or int8, as in batch-caption.",
        choices=CAPTION_PRECISIONS,
    )

    def validate(self) -> None:
        check_split_map(self)
        check_at_least(self, 1, "resamples", "batch_size")
        check_seed(self)
        check(bool(self.metric_names) and set(self.metric_names) <= set(METRICS), "metrics", self.metrics,
              f"name some of {', '.join(METRICS)}, with commas between")  # fmt: skip
        check(self.model is None or self.hypotheses is None, "model", self.model,
              "captions the split itself; leave out --hypotheses")  # fmt: skip
        if self.model is None:
            why = "only applies with --model; add that, or leave it out"
            check_unused(self, ("batch_size",), why)
            check_unused(self.generation, DECODING, why)
            if not self.clips:
                why = "only applies with --model, --clip-score or --pac-score; add one of these, or leave it out"
                check_unused(self, ("device", "precision"), why)
                check(not self.no_references, "references", self.references,
                      "needs a CLIP model to judge by; name one with --clip-score, or name references")  # fmt: skip
            check(self.precision != "int8", "precision", self.precision,
                  "is for captioners, not for CLIP models; choose another, or leave it out")  # fmt: skip
        else:
            check(not self.no_references, "references", self.references,
                  "--model captions the pixels of a cache; name one")  # fmt: skip
            check_generation(self.generation)
        check(self.idf == "evaluated" or any(name.startswith("cider") for name in self.metric_names), "idf", self.idf,
              "only applies to CIDEr, which is not among --metrics; leave it out")  # fmt: skip
        check(self.per_image is None or self.per_image.suffix in (".csv", ".parquet"), "per_image", self.per_image,
              "name a file that ends in .csv or .parquet")  # fmt: skip
        check(self.page is None or self.page.suffix in (".html", ".htm"), "page", self.page,
              "name a file that ends in .html")  # fmt: skip

    @property
    def clips(self) -> dict[str, str]:
        """The metrics by a CLIP model, with its name."""
        named = {"clip_score": self.clip_score, "pac_score": self.pac_score}
        return {metric: model for metric, model in named.items() if model is not None}

    @property
    def no_references(self) -> bool:
        """Whether `--references none` asks for figures without any. A file or folder of this name is a source like others."""
        return self.references == Path("none") and not self.references.exists()

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for name in self.metrics.split(",") if name.strip()))
