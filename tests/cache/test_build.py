"""Shards: one file a split, written in batches; and the hash that knows a picture again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preprocessing import picture

import toolkit.cache.build
import toolkit.data.pixels
from toolkit.cache.build import SplitWriter, pixel_hash
from toolkit.cache.reader import open_file
from toolkit.data.images import read_image

SHAPE = (3, 8, 6)


def write(path: Path, rows: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, SHAPE, dtype=np.uint8) for _ in range(rows)]
    labels = [rng.integers(-100, 50, (int(rng.integers(1, 4)), 5), dtype=np.int32) for _ in range(rows)]
    writer = SplitWriter(path, SHAPE, 5)
    for i in range(rows):
        record = {"image_id": f"id {i}", "path": f"{i}.jpg", "captions": [f"é {i}"] * len(labels[i])}
        assert writer.add(record, f"hash {i}", pixels[i], labels[i]) == i
    assert not path.exists()
    assert writer.finish()["size"] == path.stat().st_size
    return pixels, labels


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
def test_rows_come_back(tmp_path: Path, rows: int) -> None:
    pixels, labels = write(tmp_path / "data.arrow", rows)
    back = open_file(tmp_path / "data.arrow", SHAPE)
    assert len(back) == rows
    assert [len(p) for p in back.pixels] == [64] * (rows // 64) + ([rows % 64] if rows % 64 else [])
    for i in range(rows):
        assert np.array_equal(back.pixel_row(i), pixels[i])
        assert np.array_equal(back.label_rows(i), labels[i])
    assert back.table["captions"].to_pylist() == [[f"é {i}"] * len(labels[i]) for i in range(rows)]


def test_large_images_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.cache.build, "BATCH_BYTES", 3 * 8 * 6 * 5)
    write(tmp_path / "data.arrow", 12)
    assert [len(p) for p in open_file(tmp_path / "data.arrow", SHAPE).pixels] == [5, 5, 2]


def test_digest_is_of_everything_in_a_row(tmp_path: Path) -> None:
    def digest(**changes: str) -> str:
        writer = SplitWriter(tmp_path / "data.arrow", SHAPE, 5)
        record = {"image_id": "a", "path": "b", "captions": ["c"], "hash": "d", **changes}
        writer.add(record, str(record["hash"]), np.zeros(SHAPE, np.uint8), np.zeros((1, 5), np.int32))
        return writer.finish()["digest"]

    assert digest() == digest()
    assert len({digest(), digest(image_id="x"), digest(path="x"), digest(captions="x"), digest(hash="x")}) == 5


def test_pixel_hash_knows_a_picture_in_every_lossless_form() -> None:
    image = picture(3, (57, 43))
    hashes = {pixel_hash(image)}
    for format, options in (
        ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True}), ("TGA", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, format, **options)
        if format != "TGA":  # which read_image does not take, but Pillow may be given by others
            hashes.add(pixel_hash(read_image(file.getvalue())))
    rgba = image.convert("RGBA")
    file = io.BytesIO()
    rgba.save(file, "PNG")
    hashes.add(pixel_hash(read_image(file.getvalue())))
    hashes.add(pixel_hash(image.rotate(180).rotate(180)))
    blank = Image.new("RGB", image.size)
    blank.paste(image)
    hashes.add(pixel_hash(blank))
    assert len(hashes) == 1


def test_pixel_hash_of_large_images_is_the_same_by_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise((2600, 1700), 50).convert("RGB")  # 17.7 MB as stored: two blocks
    one = pixel_hash(image)
    small = image.crop((0, 0, 100, 90))
    fast = pixel_hash(small)
    monkeypatch.setattr(toolkit.data.pixels.pa, "array", lambda image: int("not an array"))
    assert pixel_hash(small) == fast
    assert pixel_hash(image) == one


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"exif": b"Exif\0\0"}])
def test_pixel_hash_of_a_jpeg_is_that_of_its_pixels(mode: str, options: dict[str, object]) -> None:
    file = io.BytesIO()
    picture(3, (57, 43)).convert(mode).save(file, "JPEG", **options)
    image = read_image(file.getvalue())
    png = io.BytesIO()
    image.save(png, "PNG")
    assert pixel_hash(image) == pixel_hash(read_image(png.getvalue()))


def test_pixel_hash_tells_sizes_and_pixels_apart() -> None:
    image = picture(3, (40, 30))
    other = image.copy()
    other.putpixel((39, 29), (1, 2, 3))
    assert len({pixel_hash(i) for i in (image, other, image.crop((0, 0, 39, 30)))}) == 3
    flat = [Image.new("RGB", size) for size in ((4, 6), (6, 4), (12, 2))]
    assert len({pixel_hash(i) for i in flat}) == 3
