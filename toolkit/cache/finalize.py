"""The end of a build: all shards counted and checked, and the manifest written."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc

from toolkit import __version__
from toolkit.cache.build import ShardBuilder, write_dataset
from toolkit.cache.freshness import READING, content_options, processor_identity
from toolkit.cache.index import read_index
from toolkit.cache.schema import MANIFEST, SCHEMA_VERSION, LabelSettings, Manifest, PixelSettings, is_cache_file
from toolkit.cache.splits import leaks
from toolkit.cache.staging import DECODED, Staged
from toolkit.data.annotations import AnnotationSet, UnusableRows
from toolkit.data.reviews import Reviewed
from toolkit.errors import InputError, RunError
from toolkit.options import PreprocessOptions
from toolkit.records import SPLITS, Summary
from toolkit.runtime.files import beside, finishing
from toolkit.runtime.progress import printable


@dataclass
class Tally:
    """Counts over the whole index, read shard by shard so that a million images need no more memory than a thousand."""

    images: int = 0
    captions: int = 0
    truncated: int = 0
    rejected: int = 0
    unusable: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""

    @property
    def kept(self) -> int:
        return sum(self.splits.values())

    @classmethod
    def of(cls, directory: Path, unusable: UnusableRows) -> Tally:
        """Counts, and writes `rejected.jsonl`: {"image_id", "path", "reason", "line"} for each image that can't be read,
        then for each row that can't be used: there is no image_id, and the line is where it stands."""
        tally = cls(unusable=unusable.count)
        with open(directory / "rejected.jsonl", "w", encoding="utf-8") as file:
            for _, _, table in read_index(directory):
                tally.images += len(table)
                tally.captions += pc.sum(table["num_captions"]).as_py() or 0
                tally.truncated += pc.sum(table["truncated"]).as_py() or 0
                for split in SPLITS:
                    tally.splits[split] += pc.sum(pc.equal(table["split"], split)).as_py() or 0
                rejected = table.filter(pc.is_valid(table["reason"])).select(["image_id", "path", "reason"])
                for row in rejected.to_pylist():
                    tally.first_rejected = tally.first_rejected or row["path"]
                    tally.rejected += 1
                    tally.reasons[row["reason"].split(":")[0]] += 1
                    file.write(json.dumps({**row, "line": None}, ensure_ascii=False) + "\n")
            for line, reason, path in unusable:
                values = {"image_id": None, "path": path, "reason": reason, "line": line}
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
        return tally


def find_leaks(directory: Path) -> list[dict[str, list[str]]]:
    """Pictures in two splits. First by 64 bits of their hashes, 9 bytes an image; then those alone by name."""
    hashes, splits = [], []
    for _, _, table in read_index(directory):
        kept = table.filter(pc.is_valid(table["split"]))
        hashes.append(np.array([int(h[:16], 16) for h in kept["pixel_hash"].to_pylist()], dtype=np.uint64))
        splits.append(np.array([SPLITS.index(s) for s in kept["split"].to_pylist()], dtype=np.uint8))
    every, of = np.concatenate(hashes), np.concatenate(splits)
    order = np.lexsort((of, every))
    every, of = every[order], of[order]
    suspects = set(every[1:][(every[1:] == every[:-1]) & (of[1:] != of[:-1])].tolist())
    if not suspects:
        return []
    return leaks(
        (pixel_hash, split, image_id)
        for _, _, table in read_index(directory)
        for pixel_hash, split, image_id in zip(
            *(table[name].to_pylist() for name in ("pixel_hash", "split", "image_id")), strict=True
        )
        if split is not None and int(pixel_hash[:16], 16) in suspects
    )


def _check_kept(options: PreprocessOptions, annotations: AnnotationSet, tally: Tally) -> None:
    """Too many images lost, or none left, are an error, and no cache is made."""
    considered = tally.kept + tally.rejected
    lost = tally.rejected + tally.unusable
    if not tally.kept or lost > options.max_rejected * (considered + tally.unusable):
        which = []
        if tally.rejected:
            reasons = ", ".join(f"{n} {reason}" for reason, n in tally.reasons.most_common(3))
            which.append(
                f"{tally.rejected} of {considered} images can't be read ({reasons}; first: {tally.first_rejected})"
            )
        if tally.unusable:
            which.append(f"{tally.unusable} rows of the annotations can't be used ({annotations.notes.unusable})")
        what = f"more than --max-rejected {options.max_rejected:g}" if tally.kept else "which leaves none"
        raise RunError(
            f"{' and '.join(which) or f'none of {tally.images} images is in a split'}, {what}; "
            f"see {beside(options.out, '.partial') / 'rejected.jsonl'}; no cache was written; a rerun decodes only what has "
            "changed since."
        )


def finish(
    options: PreprocessOptions,
    source: str,
    annotations: AnnotationSet,
    staged: Staged,
    builder: ShardBuilder,
    labels: LabelSettings,
) -> Manifest:
    """Checks the whole and writes what makes the shards a data set; the manifest last, by rename."""
    partial, transform = builder.directory, builder.transform
    seen = transform.with_margin(-options.pixel_margin)  # the image processor's
    tally = Tally.of(partial, annotations.notes.unusable)
    _check_kept(options, annotations, tally)
    # Splits by content can't share a picture; those of a source can.
    leaked = find_leaks(partial) if staged.own_splits else []
    if leaked and options.strict_splits:
        raise leak_error(options, len(leaked), leaked[0])
    write_dataset(partial, transform, options.max_length)
    for name in ("records", DECODED):
        shutil.rmtree(partial / name, ignore_errors=True)
    names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    files = {name: (partial / name).stat().st_size for name in names if is_cache_file(name)}
    manifest: Manifest = {
        "schema_version": SCHEMA_VERSION,
        "toolkit": __version__,
        "options": content_options(options),
        "format": annotations.format,
        "pixels": cast(PixelSettings, {"shape": transform.shape, **asdict(seen)}),
        "labels": labels,
        "counts": {
            "images": tally.images,
            "splits": {split: tally.splits[split] for split in SPLITS},
            "captions": tally.captions,
            "truncated": tally.truncated,
            "rejected": tally.rejected,
            "unusable_rows": tally.unusable,
            "left_out": tally.images - tally.kept - tally.rejected,
            "leaked": len(leaked),
            **_reviewed_counts(annotations.reviewed),
        },
        "leaks": leaked[:100],
        "splits": {
            "by": "lists" if annotations.lists else "source" if staged.own_splits else "content",
            "validation_drawn": builder.draw_validation,
        },
        "inputs": {
            "annotations": source,
            "reading": READING,
            "images": annotations.images.as_posix() if annotations.images else None,
            "processors": processor_identity(options),
        },
        "libraries": {name: version(name) for name in ("datasets", "pillow", "pyarrow", "tokenizers", "transformers")},
        "files": files,
    }
    _sync(partial, files)
    with finishing(partial / MANIFEST) as temporary:
        temporary.write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
    return manifest


def _reviewed_counts(reviewed: Reviewed | None) -> Any:
    """Nothing without --reviewed, so that manifests are as before there was that option."""
    return {} if reviewed is None else {"edited": reviewed.edited, "reviewed_out": reviewed.rejected}


def _sync(partial: Path, names: Iterable[str]) -> None:
    """All files on the disk before the manifest says so. At the end, when the system has written most of them anyway:
    after each shard it would cost a quarter of the throughput, and a shard that a power cut took is too short for its
    index, and made again."""
    for name in names:
        with open(partial / name, "rb") as file:
            os.fsync(file.fileno())


def leak_error(options: PreprocessOptions, count: int, first: dict[str, list[str]]) -> InputError:
    return InputError(
        f"{options.annotations}: {count} images are in two splits (first: {_leak_text(first)}); correct the lists, or "
        "leave out --strict-splits."
    )


def _leak_text(leak: dict[str, list[str]]) -> str:
    return ", ".join(f"{ids[0]} in {split}" for split, ids in leak.items())


def summary_of(manifest: Manifest, out: Path, headline: str, decoded: int) -> Summary:
    """What the command says of a finished cache; exit code 3 where images could not be read or rows not used.

    Args:
        decoded: how many images this run has decoded; the pixels of the others were there already.
    """
    counts = manifest["counts"]
    splits = ", ".join(f"{split} {counts['splits'][split]}" for split in SPLITS)
    max_length = manifest["options"]["max_length"]
    lines = [headline, f"  images: {splits}; captions: {counts['captions']}"]
    reused = sum(counts["splits"].values()) - decoded
    if reused and decoded:
        lines.append(f"  pixels of {reused} images reused, {decoded} images decoded")
    elif reused:
        lines.append(f"  pixels of all {reused} images reused, none decoded")
    if counts["truncated"]:
        lines.append(f"  {counts['truncated']} captions cut to --max-length {max_length} tokens, EOS kept")
    if counts["left_out"]:
        place = "list" if manifest.get("splits", {}).get("by") == "lists" else "split of the source"
        lines.append(f"  {counts['left_out']} images are in no {place} and were left out")
    if "edited" in counts:
        dropped = f"{counts['edited']} captions edited and {counts['reviewed_out']} images rejected"
        lines.append(f"  {dropped} in {manifest['options']['reviewed']}")
    if counts["leaked"]:
        lines.append(f"  {counts['leaked']} images are in two splits of the source: {_leak_text(manifest['leaks'][0])}")
    unusable = counts.get("unusable_rows", 0)  # older caches do not count them
    if counts["rejected"]:
        lines.append(f"  {counts['rejected']} images could not be read, see {out / 'rejected.jsonl'}")
    if unusable:
        lines.append(f"  {unusable} rows of the annotations could not be used, see {out / 'rejected.jsonl'}")
    warnings = _warnings(manifest)
    lines += [f"  warning: {warning}" for warning in warnings]
    values = {
        "cache": str(out),
        "format": manifest["format"],
        **counts,
        "reused": reused,
        "decoded": decoded,
        "warnings": warnings,
    }
    return Summary("\n".join(map(printable, lines)), values, exit_code=3 if counts["rejected"] or unusable else 0)


def _warnings(manifest: Manifest) -> list[str]:
    """What a training on the cache would lack, and the way out."""
    counts, options = manifest["counts"]["splits"], manifest["options"]
    splits = manifest.get("splits", {"by": None, "validation_drawn": False})  # older caches do not say
    warnings = []
    if not counts["train"]:
        way = "lower --val-fraction and --test-fraction" if splits["by"] == "content" else "name some with --train-list"
        warnings.append(f"no training images, so `toolkit finetune` can't train on this cache; {way}.")
    if not counts["validation"]:
        if splits["by"] == "content" or splits["validation_drawn"]:
            way = "raise --val-fraction" if options["val_fraction"] else "set --val-fraction above 0"
        else:
            way = "name some with --val-list"
            if splits["by"] == "lists" and not options["val_list"] and not options["val_fraction"]:
                way += ", or set --val-fraction above 0"
        warnings.append(
            f"no validation images, so `toolkit finetune` can neither choose its best checkpoint nor stop early; {way}."
        )
    return warnings
