"""Exact pixels for every kind of image, one reason for every kind of failure, and nothing that crashes or blocks."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from toolkit.data.images import read_image
from toolkit.data.sources import find_images
from toolkit.errors import ImageError

WHITE, RED = (255, 255, 255), (255, 0, 0)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def of(*pixels: object, mode: str = "RGB") -> Image.Image:
    """An image of one row."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def row(data: bytes) -> list[tuple[int, int, int]]:
    """The first row that read_image gives."""
    image = read_image(data)
    assert image.mode == "RGB"
    return [image.getpixel((x, 0)) for x in range(image.width)]  # type: ignore[misc]


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(v, v, v) for v in values]


def png(depth: int, colour: int, pixels: bytes, width: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, byte by byte, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    chunks = b"".join(chunk(*e) for e in extra)
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")


# ---- modes ----------------------------------------------------------------------------------------------------------


def test_plain_rgb_is_what_pillow_decodes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 41, 3), dtype=np.uint8))
    for format in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"):
        data = encode(image, format)
        (tmp_path / "x").write_bytes(data)
        want = Image.open(io.BytesIO(data)).convert("RGB")
        for source in (data, tmp_path / "x"):
            got = read_image(source)
            assert (got.mode, got.size, got.tobytes()) == ("RGB", (41, 30), want.tobytes()), format


def test_heic_with_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone's photograph: read, upright, where pillow-heif is installed; else a reason that says how."""
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 42, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95, exif=exif.tobytes())
    plain = pillow_heif.read_heif(file.getvalue()).to_pillow()
    got = read_image(file.getvalue())
    assert (got.mode, got.size) == ("RGB", plain.size)
    assert got.tobytes() == plain.convert("RGB").tobytes()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"^HEIC can't be read here: install pillow-heif$"):
        read_image(file.getvalue())


def test_alpha_lies_on_white() -> None:
    black_but_clear = of((0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128), (10, 20, 30, 51), mode="RGBA")
    want = [WHITE, RED, (127, 127, 127), (206, 208, 210)]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert row(encode(black_but_clear, format, **options)) == want, format
    assert row(encode(of((0, 0), (0, 255), (100, 128), mode="LA"))) == grey(255, 0, 177)
    opaque = of((1, 2, 3, 255), mode="RGBA")
    assert row(encode(opaque)) == [(1, 2, 3)]


def test_palettes() -> None:
    image = of(0, 1, 2, mode="P")
    image.putpalette([9, 8, 7, 255, 0, 0, 0, 0, 0])
    assert row(encode(image)) == [(9, 8, 7), RED, (0, 0, 0)]
    assert row(encode(image, "GIF")) == [(9, 8, 7), RED, (0, 0, 0)]
    assert row(encode(image, transparency=2)) == [(9, 8, 7), RED, WHITE]
    assert row(encode(image, "GIF", transparency=2)) == [(9, 8, 7), RED, WHITE]
    assert row(encode(image, transparency=bytes([255, 255, 128]))) == [(9, 8, 7), RED, (127, 127, 127)]


def test_transparent_colours() -> None:
    """PNG's tRNS counts in the file's own depth: 1, 2, 4, 8 or 16 bits."""
    assert row(png(8, 0, bytes([0, 7, 9]), 3, (b"tRNS", b"\0\7"))) == grey(0, 255, 9)
    assert row(png(1, 0, bytes([0b01000000]), 2, (b"tRNS", b"\0\0"))) == grey(255, 255)
    assert row(png(1, 0, bytes([0b01000000]), 2)) == grey(0, 255)
    assert row(png(2, 0, bytes([0b00011011]), 4, (b"tRNS", b"\0\1"))) == grey(0, 255, 170, 255)
    assert row(png(4, 0, bytes([0x01, 0x2F]), 4, (b"tRNS", b"\0\2"))) == grey(0, 17, 255, 255)
    assert row(png(8, 2, bytes([1, 2, 3, 1, 2, 4]), 2, (b"tRNS", b"\0\1\0\2\0\3"))) == [WHITE, (1, 2, 4)]
    assert row(png(16, 0, b"\1\2\1\3", 2, (b"tRNS", b"\1\2"))) == grey(255, 1)
    rgb16 = bytes([1, 9, 2, 9, 3, 9, 5, 0, 6, 0, 7, 0])
    assert row(png(16, 2, rgb16, 2, (b"tRNS", bytes([1, 9, 2, 9, 3, 9])))) == [WHITE, (5, 6, 7)]


def test_16_bits_are_scaled_exactly() -> None:
    values = np.arange(0, 65536, dtype=np.uint16)
    want = np.rint(values / 257).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        data = encode(Image.fromarray(values.reshape(256, 256)), format)
        got = np.asarray(read_image(data))
        assert (got == want.reshape(256, 256, 1)).all(), format
    assert row(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257, 65535)) == grey(0, 1, 255)
    assert row(png(16, 2, bytes([255, 255, 128, 0, 0, 255]), 1)) == [(255, 128, 0)]


def tiff(values: bytes, bits: int, width: int, photometric: int) -> bytes:
    """A little-endian grey TIFF of one row."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    entries.append((279, len(values)))
    values += b"\0" * (len(values) % 2)
    ifd = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(entries)) + ifd + b"\0\0\0\0"


def test_tiff_greys() -> None:
    assert row(tiff(struct.pack("<3H", 0, 257, 65535), 16, 3, 1)) == grey(0, 1, 255)
    assert row(tiff(struct.pack("<3H", 0, 257, 65535), 16, 3, 0)) == grey(255, 254, 0)  # white is zero
    assert row(tiff(bytes([0, 1, 255]), 8, 3, 0)) == grey(255, 254, 0)
    assert row(tiff(bytes([0x00, 0x0F, 0xFF]), 12, 2, 1)) == grey(0, 255)  # 12 bits: 0, 4095


def test_floats_and_long_integers() -> None:
    def float_row(*values: float) -> list[tuple[int, int, int]]:
        return row(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))

    assert float_row(0, 0.5, 1) == grey(0, 128, 255)
    assert float_row(0, 99.6, 255) == grey(0, 100, 255)
    assert float_row(0, 257, 65535) == grey(0, 1, 255)
    assert float_row(-1, 0, 1) == grey(0, 128, 255)
    assert float_row(float("nan"), 0, 1) == grey(0, 0, 255)
    assert float_row(float("inf"), 0, 1) == grey(255, 0, 255)
    assert float_row(float("nan"), float("nan")) == grey(0, 0)
    assert float_row(-7, -7) == grey(0, 0)
    integers = np.array([[0, 70000, 140000]], np.int32)
    assert row(encode(Image.fromarray(integers), "TIFF")) == grey(0, 128, 255)
    assert row(encode(Image.fromarray(integers // 1000), "TIFF")) == grey(0, 70, 140)


def test_other_colours() -> None:
    assert row(encode(of(0, 255, mode="1"))) == grey(0, 255)
    assert row(encode(of(0, 7, mode="L"))) == grey(0, 7)
    assert row(encode(of((0, 255, 255, 0), (0, 0, 0, 255), mode="CMYK"), "TIFF")) == [RED, (0, 0, 0)]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # written as Adobe does: inverted, and marked so
    assert all(abs(a - b) <= 2 for a, b in zip(row(encode(cmyk, "JPEG", quality=100))[0], RED, strict=True))
    ycbcr = Image.new("RGB", (1, 1), RED).convert("YCbCr")
    if int(PIL.__version__.partition(".")[0]) >= 13:  # the first that can
        assert row(encode(ycbcr, "TIFF")) == [(254, 0, 0)]
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    in_lab = ImageCms.profileToProfile(Image.new("RGB", (1, 1), (200, 30, 40)), srgb, lab, outputMode="LAB")
    assert in_lab is not None
    assert all(abs(a - b) <= 3 for a, b in zip(row(encode(in_lab, "TIFF"))[0], (200, 30, 40), strict=True))


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, (0, 0, 255))]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert row(data) == [RED] * 4, format


# ---- orientation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation(format: str) -> None:
    upright = Image.new("RGB", (16, 8), WHITE)
    upright.paste(RED, (0, 0, 8, 8))
    T = Image.Transpose
    stored = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
              7: T.TRANSVERSE, 8: T.ROTATE_270}  # fmt: skip
    for orientation, method in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = upright if method is None else upright.transpose(method)
        options = (
            {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
        )
        got = read_image(encode(image, format, exif=exif, **options))
        assert np.abs(np.asarray(got).astype(int) - np.asarray(upright)).max() <= 2, orientation


def test_orientation_from_xmp() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    assert row(encode(of(RED, WHITE), pnginfo=info)) == [WHITE, RED]


@pytest.mark.parametrize("broken", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\xaa" * 40])
def test_broken_metadata_does_not_lose_the_image(broken: bytes) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        image = Image.new("RGB", (16, 16), RED)
        data = encode(image, format, exif=b"Exif\0\0" + broken)
        assert read_image(data).size == (16, 16)
    data = png(8, 2, bytes(RED), 1, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'tiff:Orientation="9"'))
    assert row(data) == [RED]
    jpeg = encode(Image.new("RGB", (16, 16), RED), "JPEG", xmp=b'\xff\xfe tiff:Orientation="x"')
    assert read_image(jpeg).size == (16, 16)


# ---- refusals -------------------------------------------------------------------------------------------------------


def reason(source: Path | bytes) -> str:
    with pytest.raises(ImageError) as error:
        read_image(source)
    return str(error.value)


def test_reasons(tmp_path: Path) -> None:
    jpeg = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    assert reason(tmp_path / "no.jpg") == "missing"
    assert reason(b"") == "empty file"
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path / "empty.jpg") == "empty file"
    assert reason(b"Dear diary, this is no picture.") == "not an image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not an image"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(encode(Image.effect_noise((64, 64), 50))[:-900]) == "truncated"
    assert reason(jpeg[:4]).startswith("damaged")
    assert reason(tmp_path) == "not a regular file"
    assert reason(tmp_path / ("x" * 300)) == "file name too long"
    assert reason(Path("a\0b")) == "not a file name"
    assert reason(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") != ""


def test_bombs_are_refused_from_the_header() -> None:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    width = limit // 10 + 1
    bomb = png(8, 0, b"", 1)
    header = struct.pack(">IIBBBBB", width, 10, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert reason(bomb[:16] + header + crc + bomb[33:]) == f"too large: {width}x10 pixels"
    assert reason(b"P6 100000 100000 255\n") == "too large: 100000x100000 pixels"
    gif = encode(Image.new("P", (1, 1)), "GIF")
    assert reason(gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]) == "too large: 65535x65535 pixels"
    webp = encode(Image.new("RGBA", (1, 1)), "WEBP", lossless=True)
    webp = webp[:21] + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + webp[25:]
    assert reason(webp).startswith("too large: ")


def test_between_pillows_two_limits_there_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(encode(Image.new("RGB", (5, 1)))).size == (5, 1)
        assert reason(encode(Image.new("RGB", (7, 1)))) == "too large: 7x1 pixels"


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    os.symlink("nowhere", tmp_path / "link.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as plug:
            plug.bind("socket.jpg")
            found = find_images([tmp_path])
    finally:
        os.chdir(here)
    assert [image.name for image in found] == ["fifo.jpg", "link.jpg", "loop.jpg", "socket.jpg"]
    reasons = [reason(image.path) for image in found]
    assert reasons[:2] == ["not a regular file", "dangling link"]
    assert reasons[2].startswith("too many levels of symbolic links")
    assert reasons[3] == "not a regular file"
    assert reason(Path("/dev/zero")) == "not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").chmod(0)
    assert reason(tmp_path / "a.jpg") == "permission denied"
    (tmp_path / "folder").mkdir(mode=0)
    assert [image.name for image in find_images([tmp_path])] == ["a.jpg", "folder"]
    assert reason(tmp_path / "folder") == "permission denied"


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_files_give_pixels_or_a_reason() -> None:
    rng = random.Random(0)
    image = Image.effect_noise((24, 20), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        encode(image, "JPEG", exif=exif),
        encode(image, "JPEG", progressive=True),
        encode(image, "PNG", exif=exif),
        encode(image.convert("P"), "PNG", transparency=0),
        encode(image, "WEBP", exif=exif),
        encode(image, "WEBP", lossless=True),
        encode(image, "GIF"),
        encode(image, "TIFF", exif=exif),
        encode(image, "TIFF", compression="tiff_lzw"),
        encode(image, "TIFF", compression="jpeg"),
        encode(image, "BMP"),
        encode(image, "AVIF", speed=10),
        encode(image, "JPEG2000"),
    ]
    reasons = []
    for _ in range(40):
        for seed in seeds:
            data = bytearray(seed)
            for _ in range(rng.choice((1, 1, 4, 20))):
                at = rng.randrange(min(len(data), rng.choice((40, 400, len(data)))))
                data[at] = rng.randrange(256)
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            try:
                assert read_image(bytes(data)).mode == "RGB"
            except ImageError as error:
                reasons.append(str(error))
    assert len(reasons) > 100
    assert all(0 < len(reason) <= 100 and "\n" not in reason and "0x" not in reason for reason in reasons)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    for format in ("JPEG", "GIF", "TIFF", "WEBP"):
        (tmp_path / format).write_bytes(encode(Image.new("RGB", (9, 9)), format))
    (tmp_path / "bad").write_bytes(b"\xff\xd8\xff\xe0")
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for name in ("JPEG", "GIF", "TIFF", "WEBP", "bad"):
        try:
            kept.append(read_image(tmp_path / name))
        except ImageError:
            kept.append(None)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before
