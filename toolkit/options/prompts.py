"""What a prompted captioner is asked: the options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from string import Formatter

from toolkit.errors import InputError
from toolkit.options.fields import Options, check, check_unused, option

FIELDS = ("name", "folder", "caption")


@dataclass(frozen=True)
class PromptOptions(Options):
    """What a captioner that is told what to do is told. Texts may have the fields {name}, {folder} and {caption}."""

    prompt: str | None = option(
        None, "For models that are told what to do: what. {name}, {folder}, {caption} are filled in for each image."
    )
    prompt_file: Path | tuple[str, ...] | None = option(
        None, "File of prompts, one a line, of which each image gets one; 3 | TEXT is drawn three times as often.",
        show_default=False,
    )  # fmt: skip
    system_prompt: str | None = option(None, "With --prompt: the system message of the model's chat template.")
    captions_from: Path | None = option(
        None, "With {caption} in a prompt: a file of captions to take it from. [default: a.txt beside a.jpg]"
    )
    keep_raw: bool = option(
        False, "With --prompt: keep what the model wrote, special tokens and all, in the state file.", flag=True
    )

    def validate(self) -> None:
        for name in ("prompt", "system_prompt"):
            value = getattr(self, name)
            if value is not None:
                check(bool(value.strip()), name, repr(value), "is blank; leave it out")
                check_fields(value, f"--{name.replace('_', '-')} {value}")
        check(self.prompt is None or self.prompt_file is None, "prompt", self.prompt,
              "--prompt-file has prompts too; leave one of the two out")  # fmt: skip
        if not self.given:
            names = tuple(f.name for f in fields(self) if f.name not in ("prompt", "prompt_file"))
            check_unused(self, names, "only applies with --prompt or --prompt-file; add one")

    @property
    def given(self) -> bool:
        """Whether there is a prompt."""
        return self.prompt is not None or self.prompt_file is not None


PROMPTS = tuple(f.name for f in fields(PromptOptions))


def check_fields(text: str, where: str) -> tuple[str, ...]:
    """The fields in a prompt, as {name}; {{ and }} are braces.

    Raises:
        InputError: a brace without its other, or a field that there is not.
    """
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        raise InputError(f"{where}: has a brace without its other; write {{{{ or }}}} for a brace itself.") from None
    found = []
    for _, name, specification, conversion in parts:
        if name is None:
            continue
        if name not in FIELDS or specification or conversion:
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise InputError(
                f"{where}: there is no field {{{name}}}; there are {known}, and {{{{ and }}}} are braces themselves."
            )
        found.append(name)
    return tuple(found)
