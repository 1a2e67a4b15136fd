"""The same twelve images in every format are the same records, and the same rows of a cache."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from preprocessing import stored_processors
from tokenizers import pre_tokenizers

from toolkit.cache.build import pixel_hash
from toolkit.cache.schema import open_cache
from toolkit.cache.splits import split_of
from toolkit.data.annotations import READERS, read_annotations
from toolkit.data.images import read_image, resolve_image
from toolkit.options import PreprocessOptions

NAMES = [
    "a.jpg",
    "b b.jpg",
    "C.JPG",
    "d.1.jpg",
    "e.png",
    "zebra.png",
    "f#g.jpg",
    "gr\u00fcn.jpg",
    "sub/a.jpg",
    "sub/deep/h.jpg",
    "under_score.jpeg",
    "k.webp",
]
CAPTIONS = {
    name: [f'Picture {i}, with a "quoted" word , and commas', f"\u00dcber {i} \u732b .", f"x | y # {i}"]
    for i, name in enumerate(NAMES)
}
CAPTIONS["a.jpg"].append("A dog ; a cat & a\ttab'".replace("\t", " "))
SPLITS = {name: ("train", "test", "val")[i % 3] for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("Images")
    for i, name in enumerate(NAMES):
        image = Image.new("RGB", (9 + i, 7), (20 * i, 255 - 20 * i, 99))
        ImageDraw.Draw(image).line((0, 0, i, 6), fill=(255, 255, 255))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return root


def pixels(data: Path | bytes) -> str:
    image = read_image(data)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def expected(images: Path) -> set[tuple[tuple[str, ...], str]]:
    return {(tuple(CAPTIONS[name]), pixels(images / name)) for name in NAMES}


def write_flickr8k(folder: Path, images: Path) -> Path:
    with open(folder / "captions.txt", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("image", "caption"), *((name, caption) for name in NAMES for caption in CAPTIONS[name])]
        )
    return folder / "captions.txt"


def write_token(folder: Path, images: Path) -> Path:
    lines = [f"{name}#{i}\t{caption}\n" for name in NAMES for i, caption in enumerate(CAPTIONS[name])]
    (folder / "Flickr8k.token.txt").write_text("".join(lines), encoding="utf-8")
    return folder / "Flickr8k.token.txt"


def write_flickr30k(folder: Path, images: Path) -> Path:
    lines = [f"{name}| {i}| {caption}\n" for name in NAMES for i, caption in enumerate(CAPTIONS[name])]
    (folder / "results.csv").write_text("image_name| comment_number| comment\n" + "".join(lines), encoding="utf-8")
    return folder / "results.csv"


def write_json(file: Path, value: object) -> Path:
    file.write_text(json.dumps(value))
    return file


def write_karpathy(folder: Path, images: Path) -> Path:
    rows = []
    for i, name in enumerate(NAMES):
        path, _, filename = name.rpartition("/")
        sentences = [{"raw": caption, "tokens": caption.split()} for caption in CAPTIONS[name]]
        rows.append({"filename": filename, "filepath": path, "imgid": i, "split": SPLITS[name], "sentences": sentences})
    return write_json(folder / "dataset_x.json", {"images": rows, "dataset": "x"})


def write_coco(folder: Path, images: Path) -> Path:
    listed = [{"id": i, "file_name": name, "width": 1, "height": 1} for i, name in enumerate(NAMES)]
    said = [{"image_id": i, "id": 9, "caption": c} for i, name in enumerate(NAMES) for c in CAPTIONS[name]]
    return write_json(folder / "captions_x.json", {"info": {}, "images": listed, "licenses": [], "annotations": said})


def write_lavis(folder: Path, images: Path) -> Path:
    rows = [{"image": name, "caption": CAPTIONS[name], "image_id": f"x_{i}"} for i, name in enumerate(NAMES)]
    return write_json(folder / "x_train.json", rows)


def copy(folder: Path, images: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((images / name).read_bytes())


def write_imagefolder(folder: Path, images: Path) -> Path:
    for name in NAMES:
        copy(folder, images, name)
    rows = [json.dumps({"file_name": name, "captions": CAPTIONS[name]}) + "\n" for name in NAMES]
    (folder / "metadata.jsonl").write_text("".join(rows))
    return folder


def write_sidecar(folder: Path, images: Path) -> Path:
    for name in NAMES:
        copy(folder, images, name)
        (folder / name).with_name(Path(name).stem + ".txt").write_text("\n".join(CAPTIONS[name]), encoding="utf-8")
    return folder


def rows(images: Path) -> list[dict]:
    return [{"image": {"bytes": (images / n).read_bytes(), "path": n}, "captions": CAPTIONS[n]} for n in NAMES]


def write_parquet(folder: Path, images: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows(images)), folder / "data.parquet")
    return folder / "data.parquet"


def write_webdataset(folder: Path, images: Path) -> Path:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name in NAMES:
            for member, data in (
                (name, (images / name).read_bytes()),
                (name.rpartition(".")[0] + ".json", json.dumps({"captions": CAPTIONS[name]}).encode()),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "x.tar"


def write_hub(folder: Path, images: Path) -> Path:
    from datasets import Dataset, Features, Image, List, Value

    features = Features({"image": Image(), "captions": List(Value("string"))})
    Dataset.from_list(rows(images), features=features).save_to_disk(folder / "saved")
    return folder / "saved"


WRITERS = {
    "flickr8k": write_flickr8k,
    "flickr8k-token": write_token,
    "flickr30k": write_flickr30k,
    "karpathy": write_karpathy,
    "coco": write_coco,
    "lavis": write_lavis,
    "imagefolder": write_imagefolder,
    "sidecar": write_sidecar,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "hub": write_hub,
}


def test_every_format_is_here() -> None:
    assert set(WRITERS) == set(READERS)


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("named", ["auto", "named"])
def test_the_same_rows(format: str, named: str, images: Path, tmp_path: Path) -> None:
    path = WRITERS[format](tmp_path, images)
    found = read_annotations(path, images, "auto" if named == "auto" else format)
    assert found.format == format
    records = list(found.records)
    assert len(records) == len({record.image_id for record in records}) == 12
    got = {
        (r.captions, pixels(r.data if found.images is None else resolve_image(found.images, r.path)))  # type: ignore[arg-type]
        for r in records
    }
    assert got == expected(images)
    if format == "hub":  # `datasets` keeps no folders in its names
        assert found.notes.sentences() == ["different images with the same name renamed: 1 (a.jpg~2)"]
        assert {r.image_id for r in records} == {Path(name).name for name in NAMES} | {"a.jpg~2"}
        return
    assert found.notes.sentences() == []
    if format == "karpathy":
        assert [r.split for r in records] == ["train", "test", "validation"] * 4
    else:
        assert {r.split for r in records} == {None}
    if format not in ("coco", "lavis"):
        assert {r.image_id for r in records} == set(NAMES)


@pytest.fixture(scope="module")
def expected_rows(images: Path) -> set[tuple[object, ...]]:
    """(split, captions, pixels, labels) of each image, by the stand-in tokenizer's one token a byte and Pillow's resize."""
    ids = {c: i for i, c in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    one_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rows = set()
    for name in NAMES:
        image = read_image(images / name).resize((32, 32), Image.Resampling.BILINEAR)
        labels = []
        for caption in CAPTIONS[name]:
            tokens = [ids[c] for c in one_byte.pre_tokenize_str(caption)[0][0]][:49]
            labels.append((*tokens, 0, *[-100] * (49 - len(tokens))))
        rows.add((tuple(CAPTIONS[name]), np.asarray(image).transpose(2, 0, 1).tobytes(), tuple(labels)))
    return rows


@pytest.mark.parametrize("format", WRITERS)
def test_the_same_cache(
    format: str,
    images: Path,
    tmp_path: Path,
    expected_rows: set[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import toolkit.commands.preprocess

    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", stored_processors)
    out = tmp_path / "cache"
    path = WRITERS[format](tmp_path, images)
    toolkit.commands.preprocess.preprocess(
        PreprocessOptions(annotations=path, images=images, format=format, out=out, preset="tiny", num_workers=1)
    )
    cache, rows, splits = open_cache(out), set(), {}
    for split in ("train", "validation", "test"):
        for i, captions in enumerate(cache[split].column("captions")):
            row = cache[split][i]
            labels = tuple(map(tuple, row["labels"].tolist()))
            rows.add((tuple(captions), row["pixel_values"].tobytes(), labels))
            splits[tuple(captions)] = split
    assert rows == expected_rows
    if format == "karpathy":  # it brings its own
        assert splits == {tuple(CAPTIONS[n]): SPLITS[n].replace("val", "validation") for n in NAMES}
    else:  # by the picture alone, so that the format doesn't matter
        hashes = {tuple(CAPTIONS[n]): pixel_hash(read_image(images / n)) for n in NAMES}
        assert splits == {captions: split_of(h, 42, 0.1, 0.1) for captions, h in hashes.items()}


def test_detection_is_the_same_from_the_folder(images: Path, tmp_path: Path) -> None:
    for format, write in WRITERS.items():
        folder = tmp_path / format
        folder.mkdir()
        write(folder, images)
        assert read_annotations(folder / "saved" if format == "hub" else folder, images).format == format


def test_no_detector_takes_another_format_or_raises(images: Path, tmp_path: Path) -> None:
    paths = {}
    for format, write in WRITERS.items():
        folder = tmp_path / format
        folder.mkdir()
        paths[format] = write(folder, images)
    files = {format: path for format, path in paths.items() if path.is_file()}
    for format, path in files.items():
        assert [name for name, reader in READERS.items() if reader.detect(path)] == [format]
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 20)
    for odd in (tmp_path / "noise.bin", tmp_path / "missing", Path("/dev/null"), Path("a\0b")):
        assert [name for name, reader in READERS.items() if reader.detect(odd)] == []
