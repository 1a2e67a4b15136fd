"""How captions are generated: the options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields

from toolkit.options.fields import Options, check, check_at_least, check_choice, check_seed, check_unused, option


@dataclass(frozen=True)
class GenerationOptions(Options):
    """How captions are decoded; the same names and meanings as in `transformers.GenerationConfig`."""

    num_beams: int = option(4, "Beams of beam search; 1 is greedy decoding.")
    max_length: int = option(50, "Longest caption in tokens, start token and EOS included.")
    length_penalty: float = option(2.0, "Above 0 favours longer captions, below 0 shorter ones.")
    no_repeat_ngram_size: int = option(3, "No run of this many tokens occurs twice in a caption; 0 allows it.")
    early_stopping: str = option("false", "When beam search stops: false, true or never.")
    sample: bool = option(False, "Sample tokens instead of searching with beams.", flag=True)
    top_k: int = option(50, "With --sample: sample from the k most likely tokens; 0 for all.")
    top_p: float = option(1.0, "With --sample: sample from the smallest set with this much probability.")
    temperature: float = option(1.0, "With --sample: below 1, likely tokens become more likely.")
    num_captions: int = option(1, "Captions per image.")
    seed: int = option(42, "Seed of --sample.")

    def validate(self) -> None:
        check_seed(self)
        check_at_least(self, 1, "num_beams", "num_captions")
        check_at_least(self, 2, "max_length")
        check_at_least(self, 0, "no_repeat_ngram_size", "top_k")
        check_choice("early_stopping", self.early_stopping, ("false", "true", "never"))
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1")
        check(self.temperature > 0, "temperature", self.temperature, "must be above 0")
        check(self.sample or self.num_captions <= self.num_beams, "num_captions", self.num_captions,
              f"needs as many beams (--num-beams is {self.num_beams}) or --sample")  # fmt: skip


ALL = tuple(f.name for f in fields(GenerationOptions))
BEAM_SEARCH = ("num_beams", "no_repeat_ngram_size", "length_penalty", "max_length")


def check_generation(options: GenerationOptions) -> None:
    """Refuses options that the way of decoding ignores."""
    if options.sample:
        check(options.num_beams in (1, GenerationOptions.num_beams), "num_beams", options.num_beams,
              "has no effect with --sample, which does not search; leave one of the two out")  # fmt: skip
        check_unused(options, ("length_penalty", "early_stopping"),
                     "has no effect with --sample, which does not search; leave one of the two out")  # fmt: skip
    else:
        check_unused(options, ("top_k", "top_p", "temperature", "seed"), "only applies with --sample; add that")
        if options.num_beams == 1:
            check_unused(options, ("length_penalty", "early_stopping"),
                         "has no effect with --num-beams 1; use more beams, or leave it out")  # fmt: skip
