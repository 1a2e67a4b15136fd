"""Options of `toolkit export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.options.fields import Groups, Options, option

TARGETS = ("onnx",)


@dataclass(frozen=True)
class ExportOptions(Options):
    """Options of `toolkit export`."""

    groups: ClassVar[Groups] = {
        "What is written": ("to", "int8", "overwrite"),
    }  # fmt: skip

    model: str = option(
        None, "A captioner with a GPT-2 decoder: the folder that finetune wrote, or a hub name.", path=True,
        positional=True, required=True,
    )  # fmt: skip
    directory: Path = option(
        None, "The folder to write; must not exist or be empty.", positional=True, required=True, output=True
    )
    to: str = option("onnx", "The format: onnx, in the layout of transformers.js and optimum.", choices=TARGETS)
    int8: bool = option(
        False,
        "Also write graphs with weights in int8, a third to a quarter of the size; captions may differ.",
        flag=True,
    )
    overwrite: bool = option(False, "Replace an earlier export in the folder.", flag=True, by_hand=True)
