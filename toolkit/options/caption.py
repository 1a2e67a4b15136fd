"""Options of `toolkit caption`."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.options.fields import CAPTION_PRECISIONS, Options, check_choice, nested, option
from toolkit.options.generation import ALL, GenerationOptions, check_generation
from toolkit.options.prompts import PromptOptions


@dataclass(frozen=True)
class CaptionOptions(Options):
    """Options of `toolkit caption`."""

    generation: GenerationOptions = nested(GenerationOptions(), ALL)
    prompting: PromptOptions = nested(PromptOptions(), ("prompt", "prompt_file", "system_prompt"))
    images: tuple[str, ...] = option((), "Images; - is standard input.", path=True, positional=True, required=True)
    model: str = option("model", "A captioner: the folder that finetune wrote, any other, or a hub name.", path=True)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    precision: str = option(
        "auto", "auto, fp32, bf16, fp16 or int8; bf16 and int8 are faster on a CPU that has them, auto is fp32 there."
    )

    def validate(self) -> None:
        check_generation(self.generation, draws=self.prompting.prompt_file is not None)
        check_choice("precision", self.precision, CAPTION_PRECISIONS)
