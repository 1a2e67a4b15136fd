"""The values that travel between the parts: plain, frozen, no behaviour beyond JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageRecord:
    """One image and its captions, as an annotation set gives them.

    Attributes:
        image_id: unique and stable within the set; what captions are reported under.
        path: where the image is, relative to the images root, "/" between parts. For images inside a container
            (parquet, tar) the name within it.
        captions: as written, white space trimmed, blanks dropped; at least one unless the source has none.
        split: one of `SPLITS`, or None where the source does not say.
        data: the encoded image itself where it lives in a container (parquet, tar, hub); None for a file.
    """

    image_id: str
    path: str
    captions: tuple[str, ...]
    split: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class SpecialTokens:
    """The token ids that a captioner needs; for GPT-2 all three are 50256.

    Padding may have the same id as EOS, since labels are masked by length (toolkit/cache/labels.py).
    """

    start: int
    eos: int
    pad: int


@dataclass(frozen=True)
class CaptionResult:
    """One image and its captions, or the reason why it has none.

    Attributes:
        caption: the best one.
        captions: all of them, best first.
        score: mean log-probability of the tokens of `caption`.
        ended: False if `caption` reached the maximum length.
        weak: whether the score is below --min-score; None without that option.
        raw: of each caption what the model wrote, special tokens and all; empty unless it was asked for.
    """

    image: str
    caption: str | None = None
    captions: tuple[str, ...] = ()
    score: float | None = None
    ended: bool | None = None
    error: str | None = None
    width: int | None = None
    height: int | None = None
    weak: bool | None = None
    raw: tuple[str, ...] = ()

    def to_row(self, with_raw: bool = False) -> dict[str, Any]:
        """The row of captions.jsonl; with `captions` only if there are several, and `weak` only if it is known.

        Args:
            with_raw: `raw` as well where there is any, as the journal keeps it.
        """
        row = asdict(self)
        captions, weak, raw = row.pop("captions"), row.pop("weak"), row.pop("raw")
        if len(captions) > 1:
            row["captions"] = list(captions)
        if weak is not None:
            row["weak"] = weak
        if with_raw and raw:
            row["raw"] = list(raw)
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> CaptionResult:
        captions = row.get("captions") or ([] if row["caption"] is None else [row["caption"]])
        return cls(**{**row, "captions": tuple(captions), "raw": tuple(row.get("raw", ()))})


@dataclass(frozen=True)
class Summary:
    """What a command did: `text` for people, `values` for `--json`, `exit_code` 0 or 3 (done, some images unreadable).

    `said_elsewhere`: another process of the same run prints it.
    """

    text: str
    values: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    said_elsewhere: bool = False


@dataclass(frozen=True)
class HeatMaps:
    """Where a model looked for each word of a caption.

    Attributes:
        words: (start, end) of each in the caption, in characters.
        maps: uint8 (n_words, rows, columns), each word's own least value 0 and greatest 255.
        box: (left, top, width, height) of what the maps cover, as shares of the image's sides.
    """

    words: tuple[tuple[int, int], ...]
    maps: np.ndarray
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
