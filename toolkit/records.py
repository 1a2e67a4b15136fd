"""The values that travel between the parts: plain, frozen, no behaviour beyond JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
        scores, ends: of several captions, `score` and `ended` of each; () if they are not known.
        clip_scores: CLIPScore of each caption; () if the image has none, None without --clip-score.
        source: "model" or "person", by whom the caption is, in what `toolkit review` exports; else None.
        rejected: whether a person has rejected the image, in the same.
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
    scores: tuple[float, ...] = ()
    ends: tuple[bool, ...] = ()
    clip_scores: tuple[float, ...] | None = None
    source: str | None = None
    rejected: bool | None = None

    def to_row(self, kept: bool = False) -> dict[str, Any]:
        """The row of captions.jsonl; with `captions` only if there are several, and what options add only with them.

        Args:
            kept: also `raw`, `scores` and `ends` where there are any, as the journal keeps them.
        """
        row = asdict(self)
        captions, weak, clip_scores = row.pop("captions"), row.pop("weak"), row.pop("clip_scores")
        reviewed = {name: row.pop(name) for name in ("source", "rejected")}
        more = {name: list(row.pop(name)) for name in ("raw", "scores", "ends")}
        if len(captions) > 1:
            row["captions"] = list(captions)
        if weak is not None:
            row["weak"] = weak
        if kept:
            row |= {name: values for name, values in more.items() if values}
        if clip_scores is not None:
            row["clip_score"] = clip_scores[0] if clip_scores else None
            if len(captions) > 1:
                row["clip_scores"] = list(clip_scores)
        return row | {name: value for name, value in reviewed.items() if value is not None}

    def ordered(self, order: Sequence[int]) -> CaptionResult:
        """The same captions, those of the given places first, with all that belongs to each.

        `score` and `ended` of a first caption that they are not known of (captioned before they were kept) are None.
        """

        def turned(values: tuple[Any, ...] | None) -> Any:
            return tuple(values[k] for k in order) if values else values

        scores, ends = turned(self.scores), turned(self.ends)
        captions, clip_scores = turned(self.captions), turned(self.clip_scores)
        score = scores[0] if scores else self.score if order[0] == 0 else None
        ended = ends[0] if ends else self.ended if order[0] == 0 else None
        told = {"caption": captions[0], "captions": captions, "score": score, "ended": ended}
        return replace(self, **told, raw=turned(self.raw), scores=scores, ends=ends, clip_scores=clip_scores)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> CaptionResult:
        captions = row.get("captions") or ([] if row["caption"] is None else [row["caption"]])
        several = {name: tuple(row.get(name, ())) for name in ("raw", "scores", "ends")}
        return cls(**{**row, "captions": tuple(captions), **several})


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
