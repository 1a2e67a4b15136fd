"""Options of `toolkit caption`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toolkit.options.fields import CAPTION_PRECISIONS, DEVICES, Groups, Options, nested, option
from toolkit.options.generation import ALL, GenerationOptions, check_generation
from toolkit.options.prompts import PromptOptions


@dataclass(frozen=True)
class CaptionOptions(Options):
    """Options of `toolkit caption`."""

    groups: ClassVar[Groups] = {
        "Model": ("model", "device", "precision"),
        "Prompts": ("prompt", "prompt_file", "system_prompt"),
        "Decoding": (
            "num_beams", "max_length", "max_new_tokens", "length_penalty", "no_repeat_ngram_size", "early_stopping",
            "min_length", "repetition_penalty", "bad_words", "start_with", "num_captions", "sample", "top_k", "top_p",
            "temperature", "seed",
        ),
    }  # fmt: skip

    generation: GenerationOptions = nested(GenerationOptions(), ALL)
    prompting: PromptOptions = nested(PromptOptions(), ("prompt", "prompt_file", "system_prompt"))
    images: tuple[str, ...] = option((), "Images; - is standard input.", path=True, positional=True, required=True)
    model: str = option("model", "A captioner: the folder that finetune wrote, any other, or a hub name.", path=True)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", suggested=DEVICES)
    precision: str = option(
        "auto",
        "auto, fp32, bf16, fp16 or int8; bf16 and int8 are faster on a CPU that has them, auto is fp32 there.",
        choices=CAPTION_PRECISIONS,
    )

    def validate(self) -> None:
        check_generation(self.generation, draws=self.prompting.prompt_file is not None)
