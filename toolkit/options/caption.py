"""Options of `toolkit caption`."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.options.fields import check_choice, option
from toolkit.options.generation import GENERATION_FIELDS, GenerationOptions, check_generation


@dataclass(frozen=True)
class CaptionOptions(GenerationOptions):
    """Options of `toolkit caption`; see `GenerationOptions` for those of decoding."""

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
