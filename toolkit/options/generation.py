"""How captions are generated: the options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.options.fields import Options, check, check_at_least, check_seed, check_unused, option

OWN = " [default: what the model's folder says]"
EARLY_STOPPING = {"false": False, "true": True, "never": "never"}  # as transformers has it


@dataclass(frozen=True)
class GenerationOptions(Options):
    """How captions are decoded; the same names and meanings as in `transformers.GenerationConfig`.

    None is what the model's own `generation_config.json` says, and where it says nothing, transformers' default.
    """

    num_beams: int | None = option(
        None, f"Beams of beam search; 1 is greedy decoding.{OWN}", aliases=("generation_num_beams",)
    )
    max_length: int | None = option(
        None, f"Longest caption in tokens, start token and EOS included.{OWN}", aliases=("generation_max_length",)
    )
    max_new_tokens: int | None = option(
        None,
        "The same without what a caption begins with (start token, --start-with, prompt); instead of --max-length.",
    )
    length_penalty: float | None = option(None, f"Above 0 favours longer captions, below 0 shorter ones.{OWN}")
    no_repeat_ngram_size: int | None = option(
        None, f"No run of this many tokens occurs twice in a caption; 0 allows it.{OWN}"
    )
    early_stopping: str | None = option(
        None, f"When beam search stops: false, true or never.{OWN}", choices=tuple(EARLY_STOPPING)
    )
    min_length: int | None = option(None, f"A caption may end only after this many tokens, start token included.{OWN}")
    repetition_penalty: float | None = option(
        None, f"Above 1 makes tokens less likely that a caption has already.{OWN}"
    )
    bad_words: Path | tuple[str, ...] | None = option(
        None, "File with words and phrases, one a line, that no caption contains.", show_default=False
    )
    start_with: str | None = option(None, "Text that every caption begins with, and goes on from.")
    sample: bool | None = option(None, f"Sample tokens instead of searching with beams.{OWN}")
    top_k: int | None = option(None, f"With --sample: sample from the k most likely tokens; 0 for all.{OWN}")
    top_p: float | None = option(None, f"With --sample: sample from the smallest set with this much probability.{OWN}")
    temperature: float | None = option(None, f"With --sample: below 1, likely tokens become more likely.{OWN}")
    num_captions: int | None = option(None, f"Captions per image.{OWN}")
    seed: int = option(42, "Seed of --sample, and of the choice from --prompt-file.")

    def validate(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "num_beams", "num_captions", "max_new_tokens")
        check_at_least(self, 2, "max_length")
        check(None in (self.max_length, self.max_new_tokens), "max_new_tokens", self.max_new_tokens,
              "--max-length says it too; leave one of the two out")  # fmt: skip
        check_at_least(self, 0, "no_repeat_ngram_size", "top_k", "min_length")
        check(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            check(value is None or 0 < value < float("inf"), name, value, "must be above 0, and finite")
        check(self.start_with is None or bool(self.start_with.strip()), "start_with", repr(self.start_with),
              "is blank; leave it out")  # fmt: skip
        check(self.sample or None in (self.num_captions, self.num_beams) or self.num_captions <= self.num_beams,  # type: ignore[operator]
              "num_captions", self.num_captions, f"needs as many beams (--num-beams is {self.num_beams}) or --sample")  # fmt: skip

    def given(self) -> dict[str, Any]:
        """The settings that are not None, by the names of `transformers.GenerationConfig`; no words and no start."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        settings |= {"do_sample": self.sample, "num_return_sequences": self.num_captions}
        if self.early_stopping is not None:
            settings["early_stopping"] = EARLY_STOPPING[self.early_stopping]
        return {name: value for name, value in settings.items() if value is not None}


ALL = tuple(f.name for f in fields(GenerationOptions))
BEAM_SEARCH = ("num_beams", "no_repeat_ngram_size", "length_penalty", "max_length")
CONTROL = ("min_length", "repetition_penalty", "bad_words", "start_with")
SETTINGS = (*BEAM_SEARCH, "max_new_tokens", "min_length", "repetition_penalty", "top_k", "top_p", "temperature")
# What finetune evaluates with and writes into the model's folder, unless told otherwise.
TRAINED = GenerationOptions(num_beams=4, no_repeat_ngram_size=3, length_penalty=2.0, max_length=50)


def check_generation(
    options: GenerationOptions, defaults: GenerationOptions | None = None, draws: bool = False
) -> None:
    """Refuses options that the way of decoding ignores; those that are as in `defaults` nobody has given.

    Args:
        draws: whether something else than sampling uses the seed.
    """
    if options.sample:
        check(options.num_beams in (None, 1), "num_beams", options.num_beams,
              "has no effect with --sample, which does not search; leave one of the two out")  # fmt: skip
        check_unused(options, ("length_penalty", "early_stopping"),
                     "has no effect with --sample, which does not search; leave one of the two out", defaults)  # fmt: skip
    else:
        sampling = ("top_k", "top_p", "temperature") if draws else ("top_k", "top_p", "temperature", "seed")
        check_unused(options, sampling, "only applies with --sample; add that")
        if options.num_beams == 1:
            check_unused(options, ("length_penalty", "early_stopping"),
                         "has no effect with --num-beams 1; use more beams, or leave it out", defaults)  # fmt: skip
