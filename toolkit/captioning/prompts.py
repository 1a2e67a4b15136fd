"""Prompts: which one an image gets, what is filled in, and what of an answer is a caption.

In: `PromptOptions` and an image. Out: `Asked`, and captions without thinking blocks and role markers. Start with
`Prompts.ask`. It knows no model: whatever answers prompts uses it.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from toolkit.data.annotations._text import read_text, split_lines
from toolkit.data.sources import FoundImage
from toolkit.errors import ImageError, InputError, ToolkitError
from toolkit.options.prompts import PromptOptions, check_fields
from toolkit.runtime.copies import Copy
from toolkit.runtime.hashing import hash_hex, hash_int
from toolkit.runtime.lines import read_lines
from toolkit.runtime.shelf import Shelf

WEIGHTED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*\|\s*(.*)")
NO_CAPTION = "there is no caption of it to fill into the prompt"


class Asked(NamedTuple):
    """What is asked about one image, fields filled in."""

    text: str
    system: str | None = None

    @property
    def key(self) -> str:
        """32 hexadecimal digits."""
        return hash_hex(json.dumps(["prompt", self.text, self.system]))


class Earlier:
    """Captions by image name, the first of each name; many of them lie on the disk. Threads may share it."""

    def __init__(self, captions: Iterable[tuple[str, str]]) -> None:
        self._captions, self._lock = Shelf(), Lock()
        for name, caption in captions:
            self._captions.setdefault(unicodedata.normalize("NFC", name), caption)

    def get(self, name: str) -> str | None:
        """The caption of an image, also where it is named without its suffix, as a folder of texts does."""
        name = unicodedata.normalize("NFC", name)
        with self._lock:
            found: str | None = self._captions.get(name)
            return self._captions.get(os.path.splitext(name)[0]) if found is None else found


class Alternative(NamedTuple):
    """A line of --prompt-file."""

    weight: float
    text: str


@dataclass(frozen=True)
class Prompts:
    """What the images of a run are asked; picklable where `earlier` is.

    Attributes:
        alternatives: of which each image gets one, drawn by its content with their weights.
        system: the system message, or None.
        seed: of the draw.
        earlier: captions to fill in; None for those of text files beside the images.
        found: the fields of each image where they are known, as on a node of a cluster.
    """

    alternatives: tuple[Alternative, ...]
    system: str | None = None
    seed: int = 42
    earlier: Earlier | None = None
    found: Mapping[FoundImage, dict[str, str | None]] | None = None

    @classmethod
    def of(cls, options: PromptOptions, seed: int = 42, earlier: Earlier | None = None) -> Prompts | None:
        """What the options say; None where they have no prompt.

        Raises:
            InputError: the file of --prompt-file can't be read, or has a line that is no prompt; or --captions-from is
                given and no prompt takes a caption.
        """
        if not options.given:
            return None
        if options.prompt is not None:
            alternatives: tuple[Alternative, ...] = (Alternative(1.0, options.prompt),)
        else:
            lines = with_prompts(options).prompt_file
            assert isinstance(lines, tuple)
            alternatives = parse_prompts(lines)
        prompts = cls(alternatives, options.system_prompt, seed, earlier)
        if options.captions_from is not None and not prompts.take_caption:
            raise InputError(
                f"--captions-from {options.captions_from}: no prompt has {{caption}}, which it is for; add it, or leave this out."
            )
        return prompts

    @property
    def take_caption(self) -> bool:
        """Whether one of them has the field {caption}."""
        texts = [one.text for one in self.alternatives] + [self.system or ""]
        return any("caption" in check_fields(text, "--prompt") for text in texts)

    def fields(self, image: FoundImage) -> dict[str, str | None]:
        """What the fields are for this image: the file's name without its suffix, the name of its folder, its caption so
        far (None where there is none, or none is asked for)."""
        if self.found is not None:
            return self.found[image]
        folder, _, file = image.name.rpartition("/")
        above = folder.rpartition("/")[2] or Path(_place(image)).name
        caption = self._caption(image) if self.take_caption else None
        return {"name": os.path.splitext(file)[0], "folder": above, "caption": caption}

    def _caption(self, image: FoundImage) -> str | None:
        if self.earlier is not None:
            return self.earlier.get(image.name)
        if isinstance(image.root, Copy) or not isinstance(image.root, Path):
            return None
        return sidecar_caption(image.path)

    def of_image(self, image: FoundImage, content: str) -> Asked:
        """What is asked about an image with this content: `ask`, with its fields."""
        return self.ask(content, self.fields(image))

    def ask(self, content: str, fields: Mapping[str, str | None]) -> Asked:
        """What is asked about an image.

        Args:
            content: a hash of its bytes, by which an alternative is drawn: copies get the same, under any name.
            fields: as `self.fields` gives them.

        Raises:
            ImageError: the prompt takes a caption, and the image has none so far.
        """
        text = self.draw(content)
        values = {name: value or "" for name, value in fields.items()}
        for part in (text, self.system or ""):
            if "caption" in check_fields(part, "--prompt") and fields.get("caption") is None:
                raise ImageError(NO_CAPTION)
        return Asked(text.format(**values), None if self.system is None else self.system.format(**values))

    def draw(self, content: str) -> str:
        """The alternative that an image with this content gets: the same in every run with the same seed."""
        sums = list(accumulate(one.weight for one in self.alternatives))
        at = hash_int(f"{self.seed} {content}") / 2**64 * sums[-1]
        return self.alternatives[min(bisect_right(sums, at), len(sums) - 1)].text


def _place(image: FoundImage) -> str:
    """Where the folder is that an image was given under, or the data set that it lies in."""
    root = image.root if isinstance(image.root, Path) else image.path
    return str(root.url) if isinstance(root, Copy) else os.path.realpath(root)


def with_prompts(options: PromptOptions) -> PromptOptions:
    """The options with the lines of the file of --prompt-file in its place, which then is read once and on one machine.

    Raises:
        InputError: the file can't be read.
    """
    lines = options.prompt_file
    return replace(options, prompt_file=read_prompts(lines)) if isinstance(lines, Path) else options


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of --prompt-file, blank ones left out.

    Raises:
        InputError: no such file, not text, or nothing in it.
    """
    return tuple(read_lines("--prompt-file", path, "write one prompt a line"))


def parse_prompts(lines: tuple[str, ...]) -> tuple[Alternative, ...]:
    """
    >>> parse_prompts(("Describe the photo.", "3 | What is in {folder}?"))
    (Alternative(weight=1.0, text='Describe the photo.'), Alternative(weight=3.0, text='What is in {folder}?'))

    Raises:
        InputError: a line has no text behind its weight, a weight of 0, or a field that there is not.
    """
    found = []
    for line in lines:
        match = WEIGHTED.fullmatch(line)
        weight, text = (float(match[1]), match[2].strip()) if match else (1.0, line.strip())
        where = f"--prompt-file, the line {line!r}"
        if not text or not 0 < weight < float("inf"):
            raise InputError(f"{where}: must be a weight above 0, |, and a prompt; or a prompt alone.")
        check_fields(text, where)
        found.append(Alternative(weight, text))
    if not found:
        raise InputError("--prompt-file: has no prompts; write one a line.")
    return tuple(found)


def sidecar_caption(image: Path) -> str | None:
    """The first line of `a.txt`, else of `a.jpg.txt`, beside `a.jpg`; None where there is none.

    Raises:
        ImageError: there is a file, and it can't be read.
    """
    for path in (image.with_name(f"{os.path.splitext(image.name)[0]}.txt"), image.with_name(f"{image.name}.txt")):
        if not path.is_file():
            continue
        try:
            lines = [line.strip() for line in split_lines(read_text(path)) if line.strip()]
        except (ToolkitError, OSError):
            raise ImageError(f"{path.name} beside it can't be read") from None
        return lines[0] if lines else None
    return None


# ---- answers --------------------------------------------------------------------------------------------------------

# What reasoning models write before their answer, by the tags of the models that do: Qwen, DeepSeek and GLM; Kimi; and
# the channels of gpt-oss and Gemma are special tokens, which decoding drops.
THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|◁think▷.*?(?:◁/think▷|\Z)", re.DOTALL | re.IGNORECASE)
THOUGHT = re.compile(r"\A.*?(?:</think(?:ing)?>|◁/think▷)", re.DOTALL | re.IGNORECASE)  # the prompt has begun it
ANSWER = re.compile(r"\A\s*<answer>(.*?)(?:</answer>\s*)?\Z", re.DOTALL | re.IGNORECASE)
ROLE = re.compile(r"\A\s*(?:<\|[a-z_]+\|>\s*)*(?:assistant\s*(?::|\n)|model\s*\n|<\|?assistant\|?>)\s*", re.IGNORECASE)


def caption_of(answer: str) -> str:
    """An answer as a caption: without thinking, the marker of the role that speaks, and white space around it.

    >>> caption_of("<think>A dog?</think>\\n\\nAssistant: A dog runs.")
    'A dog runs.'

    Thinking that has not ended is all that there is, and the caption is empty.
    """
    text = THOUGHT.sub("", THINKING.sub("", answer))
    if match := ANSWER.match(text):
        text = match[1]
    return ROLE.sub("", text).strip()
