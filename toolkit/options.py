"""The options of every command: frozen dataclasses, defaults written here and nowhere else.

The command line is made from these classes (`toolkit/cli.py` reads name, type, default and help of each field), and
each command saves its options as JSON beside its output. Validation happens once, in `__post_init__`; a wrong value
raises `InputError` with the option's name as it is typed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from toolkit.errors import InputError

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
ENGINES = ("local", "ray")
DEFAULT_ENCODER = "google/vit-base-patch16-224"
DEFAULT_DECODER = "gpt2"
TINY_POSITIONS = 64  # tokens that the tiny preset's decoder has positions for

# What `None` in FinetuneOptions stands for. Fine-tuning wants a small learning rate and few epochs; a model that
# starts from random weights (preset tiny) wants the opposite. CIDEr, which rewards rare wordings, is a poor judge of a
# handful of templates: there the loss decides.
TRAINING_DEFAULTS: dict[str | None, dict[str, Any]] = {
    None: {
        "epochs": 3.0,
        "batch_size": 8,
        "lr": 5e-5,
        "warmup_ratio": 0.0,
        "captions_per_image": "all",
        "eval_metric": "cider",
    },
    "tiny": {
        "epochs": 8.0,
        "batch_size": 32,
        "lr": 1.5e-3,
        "warmup_ratio": 0.06,
        "captions_per_image": "2",
        "eval_metric": "loss",
    },
}

# Low-rank updates start at zero and want a higher one: at 5e-5 they hardly move (docs/finetuning.md).
LORA_LR = 5e-4

T = TypeVar("T")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its help text; `positional=True` makes it an argument of the command, `output=True`
    says that it names what is written, `path=True` that a string may be the name of a file or folder."""
    return field(default=default, metadata={"help": help, **metadata})


def default_workers() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(condition: bool, name: str, value: Any, remedy: str) -> None:
    if not condition:
        raise InputError(f"--{name.replace('_', '-')} {value}: {remedy}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"choose one of {', '.join(choices)}")


def check_at_least(options: Any, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        finite = value is None or minimum <= value < float("inf")
        check(finite, name, value, f"must be at least {minimum}" + (", and finite" if value == float("inf") else ""))


def check_seed(options: Any) -> None:
    check(0 <= options.seed < 2**32, "seed", options.seed, "is a number from 0 to 4294967295")


SPLIT_TARGETS = ("train", "validation", "val", "test")


def check_split_map(options: Any) -> None:
    for given in options.split_map:
        name, _, split = given.partition("=")
        check(bool(name.strip()) and split in SPLIT_TARGETS, "split_map", given,
              f"is the source's name, =, and one of {', '.join(SPLIT_TARGETS)}, as eval=validation")  # fmt: skip
        twice = sum(other.partition("=")[0] == name for other in options.split_map)
        check(twice == 1, "split_map", given, f"{name} is given {twice} times; give it once")


def check_unused(options: Any, names: tuple[str, ...], why: str) -> None:
    """Refuses options that would be ignored: those of `names` that are not as they are by default."""
    for f in fields(options):
        if f.name in names:
            check(getattr(options, f.name) == f.default, f.name, getattr(options, f.name), why)


def check_generation(options: Any) -> None:
    """Refuses what a way of decoding takes no notice of."""
    if options.sample:
        check(options.num_beams in (1, GenerationOptions.num_beams), "num_beams", options.num_beams,
              "means nothing with --sample, which draws and does not search; leave one of the two out")  # fmt: skip
        check_unused(options, ("length_penalty", "early_stopping"),
                     "means nothing with --sample, which draws and does not search; leave one of the two out")  # fmt: skip
    else:
        check_unused(options, ("top_k", "top_p", "temperature"), "means something with --sample alone; add that")
        if options.num_beams == 1:
            check_unused(options, ("length_penalty", "early_stopping"),
                         "means nothing with --num-beams 1; search with several, or leave it out")  # fmt: skip


def check_engine(options: Any) -> None:
    check_choice("engine", options.engine, ENGINES)
    check(options.engine == "local" or find_spec("ray") is not None, "engine", options.engine,
          "Ray is not installed; pip install 'toolkit[ray]', on each node")  # fmt: skip
    address = options.ray_address
    check(address is None or options.engine == "ray", "ray_address", address,
          "means something with --engine ray alone; add that")  # fmt: skip
    check(not (address or "").startswith("ray://"), "ray_address", address,
          "is of Ray's client, which sees no shared storage; run the command on a node, with --ray-address auto")  # fmt: skip


def to_json(options: Any) -> dict[str, Any]:
    """An options dataclass as plain JSON values; paths as strings with "/"."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return value.as_posix()
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return {f.name: plain(getattr(options, f.name)) for f in fields(options)}


@dataclass(frozen=True)
class PreprocessOptions:
    annotations: Path = option(
        Path("captions.txt"), "Annotation file or folder; inputs and outputs may be URLs: s3://..."
    )
    images: Path = option(Path("Images"), "Folder that the image names are relative to.")
    out: Path = option(Path("cache/dataset"), "Where the cache is written.", output=True)
    format: str = option("auto", f"Annotation format: {', '.join(FORMATS)}.")
    image_column: str | None = option(
        None, "Column or key with the images or their names, where it isn't found by itself."
    )
    caption_column: tuple[str, ...] = option(
        (), "Column or key with captions; give the option once for each of several.", show_default=False
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
        f"Text decoder: hub name or local folder. Its tokenizer makes the labels. [default: {DEFAULT_DECODER}]",
        path=True,
    )
    preset: str | None = option(
        None, "'tiny': a small ViT and GPT-2 from scratch, instead of --encoder and --decoder; nothing downloaded."
    )
    max_length: int = option(50, "Longest label row in tokens, EOS included; longer captions are cut, EOS kept.")
    val_fraction: float = option(
        0.1,
        "Share of images for validation, where the source has no splits of its own or lists but none for validation.",
    )
    test_fraction: float = option(0.1, "Share of images for test, likewise.")
    train_list: Path | None = option(
        None, "File with the image names of train, one a line; without it train is what no list names."
    )
    val_list: Path | None = option(
        None, "File with the image names of validation; without it validation is drawn from train."
    )
    test_list: Path | None = option(
        None, "File with the image names of test; without it test has no images, if there are other lists."
    )
    strict_splits: bool = option(False, "Stop if an image stands in two splits of the source's own.", flag=True)
    seed: int = option(42, "Seed of the splits.")
    num_workers: int = option(default_workers(), "Worker processes. [default: the cores]", show_default=False)
    max_rejected: float = option(0.05, "Stop without a cache if a larger share of the images and rows can't be read.")
    overwrite: bool = option(False, "Replace a cache of another data set at --out.", flag=True)
    engine: str = option("local", "Where the work is done: local, in processes of this machine, or ray.")
    ray_address: str | None = option(
        None, "With --engine ray: a running cluster, host:port or auto. [default: Ray is started here]"
    )

    def __post_init__(self) -> None:
        check_split_map(self)
        check_choice("format", self.format, FORMATS)
        check_seed(self)
        check_at_least(self, 1, "num_workers")
        check_at_least(self, 2, "max_length")
        check_at_least(self, 0, "val_fraction", "test_fraction", "max_rejected")
        check(self.val_fraction + self.test_fraction < 1, "val_fraction", self.val_fraction,
              f"with --test-fraction {self.test_fraction} nothing is left to train on")  # fmt: skip
        check(self.preset in (None, "tiny"), "preset", self.preset, "the only preset is tiny")
        for name in ("encoder", "decoder"):
            check(self.preset is None or getattr(self, name) is None, name, getattr(self, name),
                  f"--preset {self.preset} has its own; leave one of the two out")  # fmt: skip
        check(self.preset is None or self.max_length <= TINY_POSITIONS, "max_length", self.max_length,
              f"the decoder of --preset {self.preset} has positions for {TINY_POSITIONS} tokens; take that or less")  # fmt: skip
        check_engine(self)


@dataclass(frozen=True)
class GenerationOptions:
    """How captions are decoded; the same names and meanings as in `transformers.GenerationConfig`."""

    num_beams: int = option(4, "Beams of the search; 1 is greedy.")
    max_length: int = option(50, "Longest caption in tokens, start token and EOS included.")
    length_penalty: float = option(2.0, "Above 0 favours longer captions, below 0 shorter ones.")
    no_repeat_ngram_size: int = option(3, "No run of this many tokens occurs twice; 0 allows it.")
    early_stopping: str = option("false", "When beam search stops: false, true or never.")
    sample: bool = option(False, "Draw tokens instead of searching.", flag=True)
    top_k: int = option(50, "With --sample: draw from the k most likely tokens; 0 for all.")
    top_p: float = option(1.0, "With --sample: draw from the smallest set with this much probability.")
    temperature: float = option(1.0, "With --sample: below 1 is bolder towards the likely.")
    num_captions: int = option(1, "Captions an image.")
    seed: int = option(42, "Seed of --sample.")

    def __post_init__(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "num_beams", "num_captions")
        check_at_least(self, 2, "max_length")
        check_at_least(self, 0, "no_repeat_ngram_size", "top_k")
        check_choice("early_stopping", self.early_stopping, ("false", "true", "never"))
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1")
        check(self.temperature > 0, "temperature", self.temperature, "must be above 0")
        check(self.sample or self.num_captions <= self.num_beams, "num_captions", self.num_captions,
              f"needs as many beams (--num-beams is {self.num_beams}) or --sample")  # fmt: skip


GENERATION_FIELDS = tuple(f.name for f in fields(GenerationOptions))


@dataclass(frozen=True)
class FinetuneOptions:
    cache: Path = option(Path("cache/dataset"), "The cache that preprocess wrote.", positional=True)
    output_dir: Path = option(Path("model"), "Where the model is written.", output=True)
    epochs: float | None = option(None, "Passes over the images. [default: 3; tiny preset: 8]")
    max_steps: int = option(-1, "Stop after so many updates, whatever --epochs says; -1 for no limit.")
    batch_size: int | None = option(
        None, "Images a step of each process, with their captions. [default: 8; tiny preset: 32]"
    )
    eval_batch_size: int = option(32, "Images a batch in evaluation.")
    lr: float | None = option(None, "Peak learning rate. [default: 5e-5, with --lora-rank 5e-4; tiny preset: 1.5e-3]")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    warmup_steps: int | None = option(None, "Updates until the learning rate is at its peak.")
    warmup_ratio: float | None = option(None, "The same as a share of all updates. [default: 0; tiny preset: 0.06]")
    gradient_accumulation_steps: int = option(1, "Batches an update.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16; auto is bf16 on a GPU that has it, else fp32.")
    captions_per_image: str | None = option(
        None, "Captions of an image used each epoch: all, or a number drawn anew. [default: all; tiny preset: 2]"
    )
    label_smoothing: float = option(0.0, "Share of the target probability spread over the vocabulary.")
    init_from: str | None = option(
        None, "Go on from this captioner, a folder or hub name, instead of the cache's encoder and decoder.", path=True
    )
    freeze_encoder: bool = option(False, "Train the decoder alone.", flag=True)
    unfreeze_last: int | None = option(None, "Of the encoder, train the last so many layers alone.")
    cache_features: bool = option(
        False, "Freeze the encoder and run it once an image; its states are kept in the cache.", flag=True
    )
    feature_precision: str = option("fp16", "What --cache-features stores: fp16, bf16 or fp32.")
    lora_rank: int | None = option(
        None, "Train low-rank updates of the attention instead of all weights; 8 and 16 are usual. Needs peft."
    )
    lora_targets: str = option("both", "With --lora-rank: encoder, decoder or both.")
    lora_save: str = option("merged", "With --lora-rank: merged saves a plain model, adapter the updates alone.")
    compile: bool = option(False, "Compile the model: minutes at the start for faster steps.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, a third slower.", flag=True
    )
    fsdp: bool = option(
        False,
        "Under torchrun: spread weights, gradients and optimizer over the GPUs, instead of a copy on each.",
        flag=True,
    )
    seed: int = option(42, "Seed of initial weights, data order and dropout.")
    early_stopping_patience: int | None = option(None, "Stop after so many evaluations without a better one.")
    eval_metric: str | None = option(
        None, "What makes a checkpoint the best: cider, bleu_4, rouge_l or loss. [default: cider; tiny preset: loss]"
    )
    save_total_limit: int = option(1, "Checkpoints kept besides the best.")
    resume: bool = option(True, "Go on from the last checkpoint of an unfinished run, or extend a finished one.")
    num_beams: int = option(4, "Beams in evaluation, and the saved model's default.")
    no_repeat_ngram_size: int = option(3, "No run of this many tokens occurs twice in a caption; 0 allows it.")
    length_penalty: float = option(2.0, "Above 0 favours longer captions.")
    max_length: int = option(50, "Longest caption in tokens, start token and EOS included.")
    report_to: str = option("none", "none, tensorboard, or another reporter that transformers knows.")
    num_workers: int = option(0, "Loader processes; 0 suits cached pixels, which cost no decoding.")
    overwrite: bool = option(False, "Train anew and replace the finished model at --output-dir.", flag=True)

    def __post_init__(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "batch_size", "eval_batch_size", "gradient_accumulation_steps", "num_beams")
        check_at_least(self, 0, "epochs", "lr", "weight_decay", "warmup_steps", "num_workers", "no_repeat_ngram_size")
        check_at_least(self, 1, "early_stopping_patience", "save_total_limit")
        check_at_least(self, 2, "max_length")
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_choice("eval_metric", self.eval_metric or "cider", ("cider", "bleu_4", "rouge_l", "loss"))
        check_at_least(self, 1, "unfreeze_last", "lora_rank")
        check_choice("feature_precision", self.feature_precision, ("fp16", "bf16", "fp32"))
        check_choice("lora_targets", self.lora_targets, ("both", "encoder", "decoder"))
        check_choice("lora_save", self.lora_save, ("merged", "adapter"))
        frozen = "--cache-features" if self.cache_features else "--freeze-encoder" if self.freeze_encoder else None
        check(not (frozen and self.unfreeze_last), "unfreeze_last", self.unfreeze_last,
              f"{frozen} freezes all of the encoder; leave one of the two out")  # fmt: skip
        check(self.lora_rank is None or self.unfreeze_last is None, "unfreeze_last", self.unfreeze_last,
              "with --lora-rank no layer is trained whole; leave one of the two out")  # fmt: skip
        check(not (frozen and self.lora_rank and self.lora_targets != "decoder"), "lora_targets", self.lora_targets,
              f"{frozen} leaves the encoder as it is; add --lora-targets decoder")  # fmt: skip
        check(self.lora_rank is not None or self.lora_targets == "both", "lora_targets", self.lora_targets,
              "means something with --lora-rank alone; name a rank")  # fmt: skip
        check(self.lora_rank is not None or self.lora_save == "merged", "lora_save", self.lora_save,
              "means something with --lora-rank alone; name a rank")  # fmt: skip
        check(self.cache_features or self.feature_precision == "fp16", "feature_precision", self.feature_precision,
              "means something with --cache-features alone; add that")  # fmt: skip
        check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "must be from 0 to below 1")
        check(self.captions_per_image in (None, "all") or (self.captions_per_image.isdigit()
              and int(self.captions_per_image) > 0), "captions_per_image", self.captions_per_image,
              "is all or a number from 1 on")  # fmt: skip
        check(self.warmup_ratio is None or self.warmup_steps is None, "warmup_ratio", self.warmup_ratio,
              f"--warmup-steps {self.warmup_steps} says it already; leave one of the two out")  # fmt: skip
        check(self.warmup_ratio is None or 0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio,
              "is a share from 0 to below 1")  # fmt: skip

    @property
    def trains_no_encoder(self) -> bool:
        """Or but its last layers."""
        return self.freeze_encoder or self.cache_features or self.unfreeze_last is not None

    def resolved(self, preset: str | None) -> FinetuneOptions:
        """The same options with each `None` of `TRAINING_DEFAULTS` filled in for this preset."""
        preset = preset if self.init_from is None else None  # which is not from random weights any more
        known = {k: v for k, v in TRAINING_DEFAULTS[preset].items() if getattr(self, k) is None}
        if self.lora_rank is not None and preset is None and self.lr is None:
            known["lr"] = LORA_LR
        if self.warmup_steps is not None:  # the user's own count beats the preset's share
            known.pop("warmup_ratio", None)
        return replace(self, **known)

    @property
    def generation(self) -> GenerationOptions:
        return GenerationOptions(**{k: getattr(self, k) for k in GENERATION_FIELDS if k in _FINETUNE_GENERATION})


_FINETUNE_GENERATION = ("num_beams", "no_repeat_ngram_size", "length_penalty", "max_length")


@dataclass(frozen=True)
class BatchCaptionOptions(GenerationOptions):
    paths: tuple[str, ...] = option(
        (), "Images, folders or globs; here or at URLs such as s3://...", path=True, positional=True, required=True
    )
    model: str = option("model", "A captioner: the folder that finetune wrote, any other, or a hub name.", path=True)
    output: Path | None = option(
        None, "The file written, or for txt and imagefolder the folder. [default: captions.jsonl]", output=True
    )
    recursive: bool = option(True, "Look into folders below a folder.")
    batch_size: str = option("auto", "Images a batch: a number, or auto.")
    num_workers: int = option(default_workers(), "Threads that decode images. [default: the cores]", show_default=False)
    existing: str = option("skip", "Captions that are there already: skip, or overwrite to make them anew.")
    format: str = option("auto", "auto (by the suffix of --output), jsonl, csv, parquet, txt, coco or imagefolder.")
    min_score: float | None = option(None, "Mark captions with a lower score: the column weak.")
    prefix: str = option("", "Text before every caption, as it is: a trigger word.", show_default=False)
    suffix: str = option("", "Text after every caption, as it is.", show_default=False)
    strip_period: bool = option(False, "Leave out the full stop at a caption's end.", flag=True)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16.")
    gallery: Path | None = option(None, "Also write a page with images and captions: one HTML file.", output=True)
    overwrite: bool = option(
        False, "Let --output and --gallery replace files that batch-caption did not write.", flag=True
    )
    attention: bool = option(False, "With --gallery: show for each word where the model looked.", flag=True)
    engine: str = option("local", "Where the work is done: local, on this machine, or ray.")
    ray_address: str | None = option(
        None, "With --engine ray: a running cluster, host:port or auto. [default: Ray is started here]"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_generation(self)
        check_engine(self)
        check_at_least(self, 1, "num_workers")
        check_choice("existing", self.existing, ("skip", "overwrite"))
        check_choice("format", self.format, ("auto", "jsonl", "csv", "parquet", "txt", "coco", "imagefolder"))
        check(not self.attention or self.gallery is not None, "attention", "on",
              "is shown in a page; name one with --gallery")  # fmt: skip
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check(self.batch_size == "auto" or (self.batch_size.isdigit() and int(self.batch_size) > 0), "batch_size",
              self.batch_size, "is auto or a number from 1 on")  # fmt: skip

    @property
    def generation(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in GENERATION_FIELDS})


@dataclass(frozen=True)
class CaptionOptions(GenerationOptions):
    images: tuple[str, ...] = option((), "Images; - is standard input.", path=True, positional=True, required=True)
    model: str = option("model", "A captioner: the folder that finetune wrote, any other, or a hub name.", path=True)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_generation(self)
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))

    @property
    def generation(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in GENERATION_FIELDS})


METRICS = ("bleu", "rouge_l", "cider", "cider_d", "cider_plain", "meteor", "spice")


@dataclass(frozen=True)
class EvaluateOptions:
    hypotheses: Path | None = option(
        None, "Captions to judge, in any form that batch-caption writes, or COCO results. [default: captions.jsonl]"
    )
    references: Path = option(
        Path("cache/dataset"), "What people said: a cache, an annotation set of any format, or a COCO captions file."
    )
    split: str = option("test", "Split of the references: train, validation, test or all.")
    model: str | None = option(
        None,
        "Caption the split with this captioner first, from the cache's pixels, instead of --hypotheses.",
        path=True,
    )
    against: Path | None = option(None, "Other captions of the same images: differences and whether they are chance.")
    human: bool = option(False, "Also judge each reference by the others: what a person would get.", flag=True)
    metrics: str = option("bleu,rouge_l,cider", f"Of {', '.join(METRICS)}; the last two need Java.")
    idf: str = option(
        "evaluated",
        "Where CIDEr's word weights come from: evaluated, train (of the references), a cache or annotations.",
        path=True,
    )
    missing: str = option(
        "skip", "An image without a caption, or with an error for one: skip it, or count it as empty."
    )
    images: Path | None = option(
        None, "Of references that are annotations: the folder of the images. [default: Images beside them]"
    )
    format: str = option("auto", f"Of references that are annotations: {', '.join(FORMATS)}.")
    image_column: str | None = option(
        None,
        "Of references that are annotations: column or key with the images or their names, where it isn't found by itself.",
    )
    caption_column: tuple[str, ...] = option(
        (),
        "Of references that are annotations: column or key with captions; give the option once for each of several.",
        show_default=False,
    )
    split_column: str | None = option(
        None, "Of references that are annotations: column or key with the split of an image."
    )
    split_map: tuple[str, ...] = option(
        (),
        "Of references that are annotations: call a split by another name: eval=validation; give the option once for each.",
        show_default=False,
    )
    resamples: int = option(1000, "Of the images, for intervals and p-values.")
    seed: int = option(42, "Seed of the resamples.")
    per_image: Path | None = option(
        None, "Also write the figures of each image: FILE.csv or FILE.parquet.", output=True
    )
    page: Path | None = option(None, "Also write a page to judge by: one HTML file.", output=True)
    overwrite: bool = option(False, "Let --per-image and --page replace files that evaluate did not write.", flag=True)
    batch_size: int = option(32, "With --model: images a batch.")
    num_beams: int = option(4, "With --model: beams of the search; 1 is greedy.")
    max_length: int = option(50, "With --model: longest caption in tokens, start token and EOS included.")
    length_penalty: float = option(2.0, "With --model: above 0 favours longer captions.")
    no_repeat_ngram_size: int = option(3, "With --model: no run of this many tokens occurs twice; 0 allows it.")
    device: str = option("auto", "With --model: auto, cpu, cuda, cuda:1 or mps.")
    precision: str = option("auto", "With --model: auto, fp32, bf16 or fp16.")

    def __post_init__(self) -> None:
        check_split_map(self)
        check_choice("split", self.split, ("train", "validation", "test", "all"))
        check_choice("missing", self.missing, ("skip", "empty"))
        check_choice("format", self.format, FORMATS)
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        check_at_least(self, 1, "resamples", "batch_size", "num_beams")
        check_seed(self)
        check_at_least(self, 0, "no_repeat_ngram_size")
        check_at_least(self, 2, "max_length")
        check(bool(self.metric_names) and set(self.metric_names) <= set(METRICS), "metrics", self.metrics,
              f"name some of {', '.join(METRICS)}, with commas between")  # fmt: skip
        check(self.model is None or self.hypotheses is None, "model", self.model,
              "captions the split itself; leave out --hypotheses")  # fmt: skip
        if self.model is None:
            names = (
                "batch_size",
                "num_beams",
                "max_length",
                "length_penalty",
                "no_repeat_ngram_size",
                "device",
                "precision",
            )
            check_unused(self, names, "is for captioning with --model; add that, or leave it out")
        elif self.num_beams == 1:
            check_unused(self, ("length_penalty",),
                         "means nothing with --num-beams 1; search with several, or leave it out")  # fmt: skip
        check(self.idf == "evaluated" or any(name.startswith("cider") for name in self.metric_names), "idf", self.idf,
              "is for CIDEr, which is not among --metrics; leave it out")  # fmt: skip
        check(self.per_image is None or self.per_image.suffix in (".csv", ".parquet"), "per_image", self.per_image,
              "name a file that ends in .csv or .parquet")  # fmt: skip
        check(self.page is None or self.page.suffix in (".html", ".htm"), "page", self.page,
              "name a file that ends in .html")  # fmt: skip

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for name in self.metrics.split(",") if name.strip()))

    @property
    def generation(self) -> GenerationOptions:
        return GenerationOptions(**{k: getattr(self, k) for k in GENERATION_FIELDS if k in _FINETUNE_GENERATION})


NEAR_DISTANCE = 4  # of 64 bits; scaled or recompressed copies differ in 0 to 4, other photographs in 20 and more


@dataclass(frozen=True)
class InspectOptions:
    path: Path = option(
        None, "A cache, an annotation file or folder, a model, or a run.", positional=True, required=True
    )
    images: Path | None = option(
        None, "Of annotations: the folder that the image names are relative to. [default: Images beside them]"
    )
    format: str = option("auto", f"Of annotations: {', '.join(FORMATS)}.")
    image_column: str | None = option(
        None, "Of annotations: column or key with the images or their names, where it isn't found by itself."
    )
    caption_column: tuple[str, ...] = option(
        (), "Of annotations: column or key with captions; give the option once for each of several.", show_default=False
    )
    split_column: str | None = option(None, "Of annotations: column or key with the split of an image.")
    split_map: tuple[str, ...] = option(
        (),
        "Of annotations: call a split by another name: eval=validation; give the option once for each.",
        show_default=False,
    )
    split: str | None = option(None, "Count the captions of this split alone, and show it: train, validation or test.")
    decoder: str | None = option(
        None,
        "Whose tokenizer counts tokens: hub name or local folder. [default: the cache's own; of annotations "
        f"{DEFAULT_DECODER}'s, if it is on this machine]",
        path=True,
    )
    near_duplicates: str = option(
        "on",
        f"on, off, or the bits of 64 in which two pictures may differ (on: {NEAR_DISTANCE}). Off, the images of "
        "annotations are not decoded, so that damaged ones aren't found either.",
    )
    sheet: Path | None = option(
        None, "Also write a page with a sample of images and captions: one HTML file.", output=True
    )
    overwrite: bool = option(False, "Let --sheet replace a file that inspect did not write.", flag=True)
    num_workers: int = option(default_workers(), "Threads that decode images. [default: the cores]", show_default=False)

    def __post_init__(self) -> None:
        check_split_map(self)
        check_choice("format", self.format, FORMATS)
        check_at_least(self, 1, "num_workers")
        check_choice("split", self.split or "train", ("train", "validation", "test"))
        near = self.near_duplicates
        check(near in ("on", "off") or (near.isdigit() and int(near) <= 16), "near_duplicates", near,
              "is on, off or a number up to 16")  # fmt: skip
        check(self.sheet is None or self.sheet.suffix in (".html", ".htm"), "sheet", self.sheet,
              "name a file that ends in .html")  # fmt: skip

    @property
    def distance(self) -> int | None:
        """Bits in which near-duplicates may differ; None if none are sought."""
        named = {"on": NEAR_DISTANCE, "off": None}
        return named[self.near_duplicates] if self.near_duplicates in named else int(self.near_duplicates)


@dataclass(frozen=True)
class SampleOptions:
    directory: Path = option(
        None, "The folder to write; must not exist or be empty.", positional=True, required=True, output=True
    )
    images: int = option(2000, "How many images.")
    seed: int = option(42, "The same seed draws the same bytes.")

    def __post_init__(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "images")


@dataclass(frozen=True)
class DemoOptions:
    directory: Path = option(
        Path("demo"), "The folder to write; must not exist or be empty.", positional=True, output=True
    )
    images: int = option(8000, "How many images are drawn; with fewer the model sees too little to be right.")
    epochs: float | None = option(None, "Passes over the images. [default: the tiny preset's]")
    seed: int = option(42, "Seed of everything.")
    num_workers: int = option(default_workers(), "Worker processes. [default: the cores]", show_default=False)

    def __post_init__(self) -> None:
        check_seed(self)
        check_at_least(self, 10, "images")
        check_at_least(self, 1, "num_workers")
