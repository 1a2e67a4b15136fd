"""`toolkit preprocess`: images and captions, once, into a cache.

    annotations -> records.arrow -> pieces (toolkit/build.py) -> manifest -> one rename

Everything is built in `<out>.partial` beside the output; a finished cache is replaced only by a finished one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toolkit import __version__
from toolkit.annotations import AnnotationSet
from toolkit.build import (
    PIECE_ROWS,
    RECORDS_SCHEMA,
    PieceBuilder,
    data_name,
    file_state,
    index_key,
    piece_name,
    pixels_key,
    read_index,
    write_dataset,
)
from toolkit.cache import MANIFEST, SCHEMA_VERSION, read_arrow, read_manifest
from toolkit.engines import run_local
from toolkit.errors import ImageError, InputError, OutputError, RunError, ToolkitError
from toolkit.hashing import Hasher, hash_hex
from toolkit.images import resolve_image
from toolkit.options import PreprocessOptions, to_json
from toolkit.pixels import PixelTransform
from toolkit.progress import Progress, say
from toolkit.records import SPLITS, Summary
from toolkit.splits import leaks

# Options that decide what is in a cache. The others (where it goes, how many workers) leave no trace in it, so that
# the same inputs give the same bytes.
CONTENT_OPTIONS = (
    "annotations", "images", "format", "encoder", "decoder", "preset", "max_length", "val_fraction", "test_fraction",
    "train_list", "val_list", "test_list", "seed",
)  # fmt: skip
LISTS = {"train": "train_list", "validation": "val_list", "test": "test_list"}


def preprocess(options: PreprocessOptions) -> Summary:
    """Builds the cache, or finds it as it should be, or brings it up to date.

    Raises:
        InputError: something is wrong with the annotations, the images or an option; nothing is written.
        OutputError: `--out` holds something else, or can't be written, or another run is building there.
        ModelError: the encoder's processor or the decoder's tokenizer can't be loaded.
        RunError: the build stopped half way; the same command goes on from there.
    """
    content = {name: to_json(options)[name] for name in CONTENT_OPTIONS}
    existing = _existing(options, content)
    source = _source_fingerprint(options)
    if existing and _is_current(existing, content, source, options):
        return _summary(existing, options.out, f"{options.out}: up to date, nothing to do.")
    with _building(options.out) as partial:
        return _build(options, content, source, partial)


# ---- what is there already ------------------------------------------------------------------------------------------


def _existing(options: PreprocessOptions, content: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the cache at --out, or None if there is none (or one to be replaced)."""
    out = options.out
    _restore(out)
    if not out.exists():
        return None
    if not out.is_dir():
        raise OutputError(f"--out {out}: a file; name a folder for the cache.")
    if not any(out.iterdir()):
        return None
    if not (out / MANIFEST).exists():
        raise OutputError(f"--out {out}: holds files that are no cache; name another folder.")
    try:
        manifest = read_manifest(out)
    except InputError as error:
        if options.overwrite:
            return None
        raise OutputError(f"--out {error}") from None
    for name in ("annotations", "images"):
        if manifest["options"][name] != content[name] and not options.overwrite:
            raise OutputError(
                f"--out {out}: holds the cache of another data set ({name} {manifest['options'][name]}); "
                "name another --out, or replace it with --overwrite."
            )
    return manifest


def _is_current(manifest: dict[str, Any], content: dict[str, Any], source: str, options: PreprocessOptions) -> bool:
    """Whether the cache is what this command would build, from file states alone: nothing is read but small files."""
    if manifest["options"] != content or manifest["inputs"]["annotations"] != source:
        return False
    if manifest["inputs"]["processors"] != _processor_identity(options):
        return False
    if any(file_state(options.out / name)[0] != size for name, size in manifest["files"].items()):
        return False
    if manifest["inputs"]["images"] is None:  # inside containers, whose fingerprint is in `source`
        return True
    root = Path(manifest["inputs"]["images"])
    for _, table in read_index(options.out):
        columns = (table[name].to_pylist() for name in ("path", "size", "mtime_ns", "split", "reason"))
        for path, size, mtime_ns, split, reason in zip(*columns, strict=True):
            if (split or reason) and source_state(root, path) != (size, mtime_ns):
                return False
    return True


def source_state(root: Path, path: str) -> tuple[int, int]:
    """(size, mtime_ns) of an image that annotations name; (-1, -1) if it is missing or leads outside."""
    try:
        return file_state(resolve_image(root, path))
    except ImageError:
        return (-1, -1)


def _source_fingerprint(options: PreprocessOptions) -> str:
    """A hash of the annotations as they lie on disk: a file's bytes, a folder's names, sizes and times."""
    digest = Hasher()
    path = options.annotations
    lists = [p for p in (options.train_list, options.val_list, options.test_list) if p]
    if path.is_dir():
        for folder, names, files in os.walk(path):
            names.sort()
            for name in sorted(files):
                stat = os.lstat(os.path.join(folder, name))
                digest.update(f"{os.path.join(folder, name)}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    elif path.is_file():
        # Lists that lie beside the annotations are picked up by the readers.
        for file in [path, *sorted(path.parent.glob("*Images.txt"))]:
            lists.append(file)
    for file in lists:
        if file.is_file():
            digest.update(f"{file.name}\0")
            digest.update(file.read_bytes())
    return digest.hex()


def _processor_identity(options: PreprocessOptions) -> str:
    """A hash of the encoder's and decoder's small files where they are on this machine, else of their names alone."""
    if options.preset is not None:
        return f"preset {options.preset} of toolkit {__version__}"
    digest = Hasher()
    names = (
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    )
    for model in (options.encoder, options.decoder):
        digest.update(model)
        for name in names:
            file = Path(model) / name if Path(model).is_dir() else _hub_file(model, name)
            if file is not None and file.is_file():
                digest.update(name)
                digest.update(file.read_bytes())
    return digest.hex()


def _hub_file(model: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


# ---- the unfinished cache -------------------------------------------------------------------------------------------


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _restore(out: Path) -> None:
    """Undoes a swap that was cut in two: the old cache stands aside and the new one is not yet in place."""
    old = _beside(out, ".old")
    if old.exists() and not out.exists():
        os.rename(old, out)


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """Holds the folder `<out>.partial` for this process alone."""
    made = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    lock = _beside(out, ".lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = open(lock, "a")  # noqa: SIM115 (held open for as long as the lock is held)
    except OSError as error:
        raise OutputError(f"--out {out}: can't be written ({error.strerror}); name another folder.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(lock).st_ino != os.fstat(handle.fileno()).st_ino:  # the run before us took the file away meanwhile
            raise BlockingIOError
    except OSError:
        handle.close()
        raise OutputError(f"--out {out}: another run is building there; wait for it, or name another folder.") from None
    partial = _beside(out, ".partial")
    try:
        yield partial
    finally:
        with suppress(FileNotFoundError):
            os.remove(lock)
        handle.close()
        for folder in made:  # nothing came of it: leave no empty folder behind
            with suppress(OSError):
                folder.rmdir()


# ---- building -------------------------------------------------------------------------------------------------------


def _build(options: PreprocessOptions, content: dict[str, Any], source: str, partial: Path) -> Summary:
    from toolkit.annotations import read_annotations
    from toolkit.processors import fetch_processors

    fresh = not partial.exists()
    try:
        _make_folders(partial)
        lists = {split: getattr(options, name) for split, name in LISTS.items() if getattr(options, name)}
        annotations = read_annotations(options.annotations, options.images, options.format, lists or None)
        own_splits = _stage(annotations.records, partial / "records.arrow", options.annotations)
        records = read_arrow(partial / "records.arrow")
        captions = int(pc.sum(pc.list_value_length(records["captions"])).as_py() or 0)
        say(f"{options.annotations}: {annotations.format}, {len(records)} images, {captions} captions")
        for note in annotations.notes.sentences():
            say(f"  {note}")
        states = _image_states(records, annotations.images, options)
        settings, tokens = fetch_processors(
            options.encoder, options.decoder, options.preset, partial / "records.arrow", partial
        )
        transform = PixelTransform.from_processor_config(settings)
    except ToolkitError:
        if fresh:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    tokenizer_file = partial / "tokenizer" / "tokenizer.json"
    labels = {**tokens, "max_length": options.max_length, "tokenizer": _file_hash(tokenizer_file)}
    fractions = (options.seed, options.val_fraction, options.test_fraction, own_splits)
    keys = _piece_keys(records, states, json.dumps([pixels_key(transform), labels, fractions]))
    known = _reuse(options.out, partial, keys)
    builder = PieceBuilder(
        directory=partial,
        images=annotations.images,
        transform=transform,
        tokenizer_file=tokenizer_file,
        eos_token_id=tokens["eos"],
        max_length=options.max_length,
        seed=options.seed,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        own_splits=own_splits,
        known_directories=known,
    )
    _run(builder, keys, len(records), options)
    manifest = _finish(options, content, source, annotations, transform, labels, partial)
    return _summary(manifest, options.out, f"{options.out}: done.")


def _make_folders(partial: Path) -> None:
    for name in ("index", *SPLITS):
        (partial / name).mkdir(parents=True, exist_ok=True)


def _file_hash(path: Path) -> str:
    return hash_hex(path.read_bytes())


def _stage(records: Any, path: Path, annotations: Path) -> bool:
    """Writes the records to an Arrow file, so that no process has to hold them; returns whether any has a split."""
    count, own_splits = 0, False
    batch: list[dict[str, Any]] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, RECORDS_SCHEMA) as writer:

        def flush() -> None:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=RECORDS_SCHEMA))
            batch.clear()

        for record in records:
            batch.append({name: getattr(record, name) for name in RECORDS_SCHEMA.names})
            count += 1
            own_splits |= record.split is not None
            if len(batch) == (1024 if record.data is None else 64):
                flush()
        flush()
    if count == 0:
        raise InputError(f"{annotations}: names no image with a caption; give an annotation file with at least one.")
    return own_splits


def _image_states(records: pa.Table, images: Path | None, options: PreprocessOptions) -> list[tuple[int, int]] | None:
    """(size, mtime_ns) of each image file; None where images lie in containers. Too many missing is an error, now."""
    if images is None:
        return None
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder; name the folder that {options.annotations} speaks of.")
    paths = [path for chunk in records["path"].chunks for path in chunk.to_pylist()]
    states = [source_state(images, path) for path in paths]
    missing = [path for path, (size, _) in zip(paths, states, strict=True) if size < 0]
    if len(missing) > options.max_rejected * len(paths):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"--images {images}: {len(missing)} of the {len(paths)} images that {options.annotations} names are not "
            f"there ({some}); name the right folder, or accept the loss with --max-rejected."
        )
    return states


def _piece_keys(records: pa.Table, states: list[tuple[int, int]] | None, settings: str) -> list[str]:
    """For each piece a hash of all that decides its bytes."""
    keys = []
    for start in range(0, len(records), PIECE_ROWS):
        digest = Hasher(settings)
        for i, row in enumerate(records.slice(start, PIECE_ROWS).to_pylist(), start):
            data = row.pop("data")
            state = states[i] if states is not None else hash_hex(data or b"")
            digest.update(repr((sorted(row.items()), state)))
        keys.append(digest.hex())
    return keys


def _reuse(out: Path, partial: Path, keys: list[str]) -> tuple[Path, ...]:
    """Takes over every finished piece with the right key; returns earlier caches that may hold pixels of others.

    An unfinished build with other keys (other options, other captions) is set aside: its pieces may not be replaced
    while their pixels are read.
    """
    stale = _beside(out, ".stale")
    standing = {piece: index_key(table) for piece, table in read_index(partial)}
    if any(piece >= len(keys) or keys[piece] != key for piece, key in standing.items()):
        shutil.rmtree(stale, ignore_errors=True)
        os.rename(partial, stale)
        _make_folders(partial)
        for name in ("records.arrow", "tokenizer", "image_processor"):
            os.rename(stale / name, partial / name)
        standing = {}
    known = tuple(directory for directory in (stale, out) if (directory / "index").is_dir())
    for directory in known:
        for piece, table in read_index(directory):
            if piece < len(keys) and piece not in standing and index_key(table) == keys[piece]:
                for split in SPLITS:
                    with suppress(FileNotFoundError):
                        _link(directory / split / data_name(piece), partial / split / data_name(piece))
                _link(directory / "index" / piece_name(piece), partial / "index" / piece_name(piece))
                standing[piece] = keys[piece]
    return known


def _link(source: Path, target: Path) -> None:
    """A finished file under a second name; a copy where the file system knows no links."""
    with suppress(FileNotFoundError):
        os.remove(target)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _run(builder: PieceBuilder, keys: list[str], images: int, options: PreprocessOptions) -> None:
    """Builds the pieces that do not stand yet."""
    folder = builder.directory / "index"
    rows = {piece_name(i): min(PIECE_ROWS, images - i * PIECE_ROWS) for i in range(len(keys))}

    def standing() -> int:
        return sum(rows.get(entry.name, 0) for entry in os.scandir(folder))

    before = standing()
    if before:
        say(f"  {before} of {images} images stand already in finished pieces")
    tasks = [{"piece": i, "key": key} for i, key in enumerate(keys) if not (folder / piece_name(i)).exists()]
    try:
        with Progress("preprocess", images - before) as progress:
            run_local(builder, tasks, options.num_workers, progress, lambda: standing() - before)
    except OSError as error:
        raise RunError(
            f"--out {options.out}: writing failed ({error.strerror or error}); mend that and run the same command again, "
            "finished pieces are kept."
        ) from None
    except KeyboardInterrupt:
        raise RunError("stopped; run the same command again to go on from the finished pieces.") from None


# ---- finishing ------------------------------------------------------------------------------------------------------


def _finish(
    options: PreprocessOptions,
    content: dict[str, Any],
    source: str,
    annotations: AnnotationSet,
    transform: PixelTransform,
    labels: dict[str, Any],
    partial: Path,
) -> dict[str, Any]:
    """Checks the whole, writes what makes the pieces a data set, and puts it in place by rename."""
    index = pa.concat_tables([table for _, table in read_index(partial)])
    rejected = index.filter(pc.is_valid(index["reason"])).select(["image_id", "path", "reason"]).to_pylist()
    kept = index.filter(pc.is_valid(index["split"])).select(
        ["pixel_hash", "split", "image_id", "num_captions", "truncated"]
    )
    considered = len(kept) + len(rejected)
    if len(rejected) > options.max_rejected * considered or not len(kept):
        reasons = ", ".join(f"{n} {r}" for r, n in Counter(r["reason"].split(":")[0] for r in rejected).most_common(3))
        raise RunError(
            f"{len(rejected)} of {considered} images can't be read ({reasons}; first: {rejected[0]['path']}), more than "
            f"--max-rejected {options.max_rejected:g}; no cache was made, a rerun with a larger share decodes nothing again."
        )
    rows = kept.to_pylist()
    leaked = leaks((r["pixel_hash"], r["split"], r["image_id"]) for r in rows)
    if leaked and options.strict_splits:
        raise InputError(
            f"{options.annotations}: {len(leaked)} images stand in two splits (first: {_leak_text(leaked[0])}); mend the "
            "lists, or leave --strict-splits out."
        )
    write_dataset(partial, transform.shape, options.max_length, _file_hash(partial / "tokenizer" / "tokenizer.json"))
    _write_lines(partial / "rejected.jsonl", rejected)
    (partial / "records.arrow").unlink()
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "toolkit": __version__,
        "options": content,
        "format": annotations.format,
        "pixels": {"shape": transform.shape, **asdict(transform)},
        "labels": labels,
        "counts": {
            "images": len(index),
            "splits": {split: sum(r["split"] == split for r in rows) for split in SPLITS},
            "captions": sum(r["num_captions"] for r in rows),
            "truncated": sum(r["truncated"] for r in rows),
            "rejected": len(rejected),
            "left_out": len(index) - considered,
            "leaked": len(leaked),
        },
        "leaks": leaked[:100],
        "inputs": {
            "annotations": source,
            "images": annotations.images.as_posix() if annotations.images else None,
            "processors": _processor_identity(options),
        },
        "libraries": {name: version(name) for name in ("datasets", "pillow", "pyarrow", "tokenizers", "transformers")},
        "files": {
            f"{split}/{path.name}": path.stat().st_size
            for split in SPLITS
            for path in sorted((partial / split).iterdir())
        },
    }
    temporary = partial / "manifest.json.tmp"
    temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, partial / MANIFEST)
    _swap(partial, options.out)
    return manifest


def _swap(partial: Path, out: Path) -> None:
    """The finished cache takes its place; two renames, and `_restore` mends a crash between them."""
    old = _beside(out, ".old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(out, old)
    os.rename(partial, out)
    for leftover in (old, _beside(out, ".stale")):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _leak_text(leak: dict[str, list[str]]) -> str:
    return ", ".join(f"{ids[0]} in {split}" for split, ids in leak.items())


def _summary(manifest: dict[str, Any], out: Path, headline: str) -> Summary:
    counts = manifest["counts"]
    splits = ", ".join(f"{split} {counts['splits'][split]}" for split in SPLITS)
    max_length = manifest["options"]["max_length"]
    lines = [headline, f"  images: {splits}; captions: {counts['captions']}"]
    if counts["truncated"]:
        lines.append(f"  {counts['truncated']} captions cut to --max-length {max_length} tokens, EOS kept")
    if counts["left_out"]:
        lines.append(f"  {counts['left_out']} images stand in no split of the source and were left out")
    if counts["leaked"]:
        lines.append(
            f"  {counts['leaked']} images stand in two splits of the source: {_leak_text(manifest['leaks'][0])}"
        )
    if counts["rejected"]:
        lines.append(f"  {counts['rejected']} images could not be read, see {out / 'rejected.jsonl'}")
    values = {"cache": str(out), "format": manifest["format"], **counts}
    return Summary("\n".join(lines), values, exit_code=3 if counts["rejected"] else 0)
