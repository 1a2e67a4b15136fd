"""Options of `toolkit push`, and those of them that `finetune --push-to-hub` shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import Groups, Options, check, nested, option

HUB = ("private", "license", "language", "dataset")


@dataclass(frozen=True)
class HubOptions(Options):
    """How something is put on the Hugging Face hub, and what its card says."""

    private: bool = option(False, "Make the repository private; refused if it is there and public.", flag=True)
    license: str | None = option(None, "Licence on the card, by the hub's name: apache-2.0, cc-by-4.0, other, ...")
    language: tuple[str, ...] = option(
        (), "Language of the captions on the card, as a code: en, de, ja; give the option once for each.",
        show_default=False,
    )  # fmt: skip
    dataset: tuple[str, ...] = option(
        (), "Data set on the hub that it was made from, on the card: OWNER/NAME; give the option once for each.",
        show_default=False,
    )  # fmt: skip

    def validate(self) -> None:
        for code in self.language:
            plain = code.replace("-", "").isascii() and code.replace("-", "").isalpha() and code == code.lower()
            check(
                plain and 2 <= len(code) <= 12, "language", code, "is a code of ISO 639 in small letters, as en or ja"
            )
        check(self.license is None or bool(self.license.strip()), "license", repr(self.license),
              "name one, as apache-2.0, or leave it out")  # fmt: skip
        for name in self.dataset:
            check(
                name.count("/") <= 1 and bool(name.strip("/ ")),
                "dataset",
                name,
                "is the name of a data set on the hub, as OWNER/NAME",
            )


@dataclass(frozen=True)
class PushOptions(Options):
    """Options of `toolkit push`."""

    groups: ClassVar[Groups] = {"On the hub": (*HUB, "overwrite")}

    path: Path = option(
        None, "A model or a cache, or a file of captions (jsonl, csv, parquet).", positional=True, required=True
    )
    name: str = option(
        None, "Its name on the hub: OWNER/NAME, or NAME for one of yours.", positional=True, required=True, by_hand=True
    )
    hub: HubOptions = nested(HubOptions(), HUB)
    overwrite: bool = option(
        False,
        "Replace files of these names that are there with other content; the hub keeps their history.",
        flag=True,
        by_hand=True,
    )
