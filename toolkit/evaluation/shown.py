"""How figures are shown to people, on every page, table and line: metrics and shares times 100, losses as they are.

Files for programs (`--json`, csv, parquet, training.jsonl, finetune.json) hold the fractions themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L",
    "cider": "CIDEr", "cider_d": "CIDEr-D", "cider_plain": "CIDEr plain", "meteor": "METEOR", "spice": "SPICE", "spider": "SPIDEr",
    "clip_score": "CLIPScore", "ref_clip_score": "RefCLIPScore", "pac_score": "PAC-S", "ref_pac_score": "RefPAC-S",
}  # fmt: skip
SHARES = ("ended", "loops", "distinct", "bad_endings", "alike", "novel", "empty")  # of captions


def percent(value: float | None) -> str:
    """A fraction times 100, as papers publish metrics."""
    return "–" if value is None else f"{100 * value:.1f}"


def figure(name: str, value: float | None, digits: int = 3) -> str:
    """One figure.

    >>> figure("cider", 0.379), figure("ended", 0.998), figure("loss", 2.6403)
    ('37.9', '99.8%', '2.640')
    """
    if value is None or name in NAMES:
        return percent(value)
    return f"{percent(value)}%" if name in SHARES else f"{value:.{digits}f}"


def figures(values: Mapping[str, float], digits: int = 3) -> str:
    """
    >>> figures({"loss": 2.6403, "cider": 0.379})
    'loss 2.640, CIDEr 37.9'
    """
    return ", ".join(f"{NAMES.get(name, name)} {figure(name, value, digits)}" for name, value in values.items())


def duration(seconds: float | None) -> str:
    """
    >>> duration(2208.1), duration(45), duration(40000), duration(None)
    ('36.8 min', '45 s', '11.1 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
