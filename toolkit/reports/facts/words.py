"""Facts as a compact table."""

from __future__ import annotations

from typing import Any

from toolkit.evaluation.shown import NAMES, SHARES, figure
from toolkit.runtime.progress import printable

WIDTH = 18  # of the column of names


def title(values: dict[str, Any]) -> str:
    """The first line: path, kind and size."""
    size = _bytes(values["bytes"])
    what = {"cache": "cache", "annotations": f"annotations in {values.get('format')} format"}.get(values["kind"])
    if what is not None:
        return f"{values['path']}: {what}, {_many(values['images'], 'image')}, {size}"
    if values["kind"] == "model":
        total = values["parameters"]["total"] if values["parameters"] else None
        parameters = f", {_count(total)} parameters" if total else ""
        return f"{values['path']}: captioner with {values['encoder']} and {values['decoder']}{parameters}, {size}"
    return f"{values['path']}: run, {'finished' if values['run']['finished'] else 'not finished'}, {size}"


def table(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as lines of (name, text)."""
    notes = [("note", note) for note in values.get("notes", [])]
    if values["kind"] == "cache":
        return [*_made_of(values), *_data(values), *notes]
    if values["kind"] == "annotations":
        return [*_data(values), *notes]
    return [*(_model(values) if values["kind"] == "model" else []), *(_run(values["run"]) if values["run"] else [])]


def describe(values: dict[str, Any]) -> str:
    """Title and table as text."""
    lines = [title(values), *(f"  {name:<{WIDTH}}{text}".rstrip() for name, text in table(values))]
    return "\n".join(map(printable, lines))


# ---- images with captions -------------------------------------------------------------------------------------------


def _made_of(values: dict[str, Any]) -> list[tuple[str, str]]:
    models = f"preset {values['preset']}" if values["preset"] else f"{values['encoder']}, {values['decoder']}"
    shape = "x".join(map(str, values["pixels"]))
    return [("made from", f"{values['annotations']} ({values['format']})"), ("made for", f"{models}; pixels {shape}")]


def _data(values: dict[str, Any]) -> list[tuple[str, str]]:
    captions = values["captions"]
    chars = captions["tokenize"] == "char"  # whose words are characters
    of = f" (only {values['split']})" if values["split"] else ""
    splits = _named(values["splits"]) if values["splits"] else "none given"
    left_out = f"; in no split {values['left_out']}" if values["left_out"] else ""
    rows = [("splits", splits + left_out)]
    per_image = f"; per image {_range(captions['per_image'])}" if captions["per_image"] else ""
    rows.append(("captions", f"{captions['count']}{of}, {captions['distinct']} distinct{per_image}"))
    if captions["count"]:
        rows.append(("in characters" if chars else "caption words", _range(captions["words"])))
    if captions["tokens"]:
        rows.append(("caption tokens", f"{_range(captions['tokens'])} (with EOS; tokenizer: {values['tokenizer']})"))
        cells = [(m, str(n)) for m, n in captions["truncated"].items()]
        widths = [max(len(m), len(n)) + 2 for m, n in cells]
        for name, column in (("with --max-length", 0), ("are cut", 1)):
            rows.append((name, "".join(cell[column].ljust(width) for cell, width in zip(cells, widths, strict=True))))
    elif captions["count"]:
        rows.append(("caption tokens", "unknown; name a tokenizer with --decoder"))
    words = ", ".join(f"{word} {n}" for word, n in captions["frequent"][:12])
    rows.append(
        ("characters" if chars else "words", f"{captions['vocabulary']} different: {words}" if words else "none")
    )
    return [*rows, *_pictures(values)]


def _pictures(values: dict[str, Any]) -> list[tuple[str, str]]:
    same, near, bad, leaked = (values[name] for name in ("duplicates", "near_duplicates", "rejected", "leaks"))
    kind = "pixel-identical" if values["same_by"] == "pixels" else "byte-identical"
    text = f"{_many(same['pictures'], 'image')} more than once, {_many(same['copies'], 'redundant copy', 'redundant copies')}"
    rows = [(kind, f"{text}: {' = '.join(same['examples'][0])}" if same["examples"] else "none")]
    if near is None:
        rows.append(("near-duplicates", "not searched (--near-duplicates off)"))
    elif not near["pairs"]:
        rows.append(("near-duplicates", f"none (up to {near['distance']} of 64 bits)"))
    else:
        first = near["nearest"][0]
        text = f"{_many(near['pairs'], 'pair')} of {near['images']} images, {near['across_splits']} across splits"
        rows.append(
            (
                "near-duplicates",
                f"{text} (up to {near['distance']} of 64 bits, colour not compared): {' ~ '.join(first['images'])}",
            )
        )
    if leaked["pictures"]:
        first = ", ".join(f"{names[0]} in {split}" for split, names in leaked["examples"][0].items())
        rows.append(("in two splits", f"{_many(leaked['pictures'], 'image')}: {first}"))
    elif values["splits"]:
        rows.append(("in two splits", "none"))
    if bad["count"]:
        some = bad["examples"][0]
        rows.append(("unreadable", f"{_named(bad['reasons'])}; first: {some['path']} ({some['reason']})"))
        if bad["count"] == values["images"] and set(bad["reasons"]) == {"missing"}:
            rows.append(("", "all images are missing; name their folder with --images"))
    else:
        rows.append(("unreadable", "none" if near is not None or values["kind"] == "cache" else "none (not decoded)"))
    if values["unusable_rows"]["count"]:
        first = values["unusable_rows"]["examples"][0]
        where = first["path"] if first["line"] is None else f"line {first['line']}"
        rows.append(("unusable rows", f"{values['unusable_rows']['count']}; first: {where} ({first['reason']})"))
    return rows


# ---- models and runs ------------------------------------------------------------------------------------------------


def _model(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if values["parameters"]:
        parts = {name: _count(values["parameters"][name]) for name in ("encoder", "decoder")}
        rows.append(("parameters", f"{_named(parts)}; {', '.join(values['parameters']['dtypes'])}"))
    else:
        rows.append(("parameters", "unknown (no safetensors file)"))
    rows.append(("vocabulary", f"{values['vocabulary']} tokens"))
    if values["image_size"]:
        rows.append(("images", "x".join(map(str, values["image_size"]))))
    generation = {name: v for name, v in values["generation"].items() if not name.endswith("_token_id")}
    rows.append(("generation", _named(generation) or "the library's defaults"))
    summary = values["summary"]
    if summary:
        rows.append(("trained", f"{summary['steps']} steps, {summary['epochs']:g} epochs, {summary['seconds']:g} s"))
        if summary["validation"] and not values["run"]:
            rows.append(("best checkpoint", f"step {summary['best_step']}: {_measured(summary['validation'])}"))
    if values["options"]:
        rows.append(("options", _named(values["options"])))
    return [*rows, *(_compared(values["precision"]) if "precision" in values else [])]


def _compared(found: dict[str, Any]) -> list[tuple[str, str]]:
    text = f"{found['equal']} of {found['images']} captions are those of fp32"
    if found["score_differences"]:
        text += "; their scores differ by {:.2g} on average, at most {:.2g}".format(*found["score_differences"])
    rows = [
        (f"in {found['precision']}", text),
        ("", f"{found['times_faster']:.2f} times as fast, from pixels to captions"),
    ]
    return [*rows, *(("differing", f"{a}  |  {b}") for a, b in found["examples"])]


def _run(run: dict[str, Any]) -> list[tuple[str, str]]:
    state = "finished" if run["finished"] else "not finished"
    rows = [("run", f"{state}: {run['steps']} steps, {_many(run['evaluations'], 'evaluation')}")]
    if run["last"]:
        rows.append(("last metrics", _named(run["last"])))
    if run["best"]:
        rows.append((f"best by {run['metric']}", _measured(run["best"])))
    if run["last_evaluation"] and run["last_evaluation"] != run["best"]:
        rows.append(("last evaluation", _measured(run["last_evaluation"])))
    return rows


# ---- formatting --------------------------------------------------------------------------------------------------------


def _many(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _named(values: dict[str, Any]) -> str:
    """'train 80, test 20'; None values are left out."""
    shown = ((name, f"{v:.4g}" if isinstance(v, float) else str(v)) for name, v in values.items() if v is not None)
    return ", ".join(f"{name} {value}" for name, value in shown)


def _measured(values: dict[str, Any]) -> str:
    """'step 20, loss 2.5, CIDEr 37.9': of an evaluation."""
    return _named({NAMES.get(n, n): figure(n, v) if n in NAMES or n in SHARES else v for n, v in values.items()})


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']:g}"
    return f"{spread['min']:g} to {spread['max']:g}, median {spread['median']:g}"


def _count(number: float) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
