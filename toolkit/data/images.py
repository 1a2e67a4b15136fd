"""ONE policy for images, the same in every command: how a name becomes a file, how a file becomes RGB pixels.

What `read_image` does with what comes in:

| the file has                   | the pixels are                                                                    |
| ------------------------------ | --------------------------------------------------------------------------------- |
| EXIF (or XMP) orientation      | turned upright; an orientation that can't be parsed is ignored                    |
| alpha, or a transparent colour | laid on white                                                                     |
| 16 bits a channel              | v / 257, rounded (grey; of colour Pillow itself gives the upper 8 bits)           |
| 32-bit integers, floats        | see `rgb._to_8_bit`                                                               |
| CMYK, YCbCr, LAB, palette, 1   | converted by Pillow                                                               |
| several frames or pages        | the first                                                                         |

Everything that can't be read is an `ImageError` with a short reason that is the same on every run.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from toolkit.data.rgb import fix_transparency, to_rgb, upright
from toolkit.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

LARGEST_FILE = 2**30  # bytes; a larger file is rejected unread, for no photograph is 1 GiB
NOT_THE_IMAGES_FAULT = ("out of memory", *(os.strerror(n).lower() for n in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)))
NO_HEIC = "HEIC can't be read here: install pillow-heif"
PASSING = (*NOT_THE_IMAGES_FAULT, NO_HEIC)  # reasons that say nothing of the image: it is to be tried again

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".avif", ".avifs", ".heic", ".heif", ".hif",
))  # fmt: skip

# (first bytes, Pillow's name of the format, its plugin). No other plugin of Pillow's is ever tried: some accept any
# bytes, one starts another program (EPS).
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", "JpegImagePlugin"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", "PngImagePlugin"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP", "WebPImagePlugin"),
    (re.compile(rb"GIF8[79]a"), "GIF", "GifImagePlugin"),
    (re.compile(rb"BM"), "BMP", "BmpImagePlugin"),
    (re.compile(rb"(II|MM)(\*\0|\0\*|\+\0|\0\+)"), "TIFF", "TiffImagePlugin"),
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "AVIF", "AvifImagePlugin"),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIF", ""),
    (re.compile(rb"P[1-6f]"), "PPM", "PpmImagePlugin"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "JPEG2000", "Jpeg2KImagePlugin"),
)


# ---- names ----------------------------------------------------------------------------------------------------------


def resolve_image(root: Path, name: str) -> Path:
    """The file that an annotation calls `name`, inside `root`.

    Names are taken as they are, else in Unicode's composed or decomposed form, else with "\\" for "/". A link inside
    `root` may lead anywhere, for it is the user's; a name may not.

    Raises:
        ImageError: 'missing', 'dangling link', 'leads outside the images folder', 'not a file name'.
    """
    for form in name_forms(name):
        path = os.path.join(root, form)
        if os.path.exists(path):
            return Path(path)
    check_file(Path(root, name))  # says why it isn't there
    raise ImageError("missing")


def name_forms(name: str) -> Iterator[str]:
    """The names that a file may have which an annotation calls `name`, in the order in which they are tried.

    Raises:
        ImageError: 'leads outside the images folder', 'not a file name'.
    """
    forms = [name]
    if not name.isascii():
        forms += [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    if "\\" in name:
        forms += [form.replace("\\", "/") for form in forms]
    for form in forms:
        if not name or "\0" in name:
            raise ImageError("not a file name")
        if os.path.isabs(form) or os.path.splitdrive(form)[0] or (".." in form and ".." in form.split("/")):
            raise ImageError("leads outside the images folder")
        yield form


def check_file(path: Path) -> None:
    """
    Raises:
        ImageError: the path leads to no regular file: 'missing', 'dangling link', 'permission denied',
            'not a regular file', 'not a file name', ...
    """
    with file_reasons(path):
        state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        readable = not stat.S_ISDIR(state.st_mode) or os.access(path, os.R_OK | os.X_OK)
        raise ImageError("not a regular file" if readable else "permission denied")


@contextmanager
def file_reasons(path: Path) -> Iterator[None]:
    """What goes wrong with a file as an ImageError with its short reason."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError("dangling link" if os.path.islink(path) else "missing") from None
    except ValueError:  # NUL, or half of a surrogate pair
        raise ImageError("not a file name") from None
    except (OSError, MemoryError) as error:
        raise ImageError(_reason(error)) from None


# ---- reading --------------------------------------------------------------------------------------------------------


class ImageFile(NamedTuple):
    """An image file as it was read, once: what is hashed is what is decoded.

    Attributes:
        data: its bytes; none of an empty file.
        state: (size, mtime_ns) of the open file before it was read, so that a change meanwhile is seen later.
    """

    data: bytes
    state: tuple[int, int]


def read_file(path: Path) -> ImageFile:
    """How every command reads an image's bytes: once, and only of a regular file of at most `LARGEST_FILE`.

    Raises:
        ImageError: the reason; of what is not a regular file without opening it, and nothing ever waits for a pipe.
    """
    check_file(path)  # before it is opened: opening a device may do something
    with file_reasons(path):
        # What took the file's place since then may be a pipe, where open() waits for a writer without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise ImageError("not a regular file")
            size, data = state.st_size, b""
            if size <= LARGEST_FILE:
                data = read_up_to(descriptor, LARGEST_FILE + 1, size + 1)
                size = max(size, len(data))  # it may be growing
            if size > LARGEST_FILE:
                raise ImageError(f"too large: a file of {size} bytes")
            return ImageFile(data, (state.st_size, state.st_mtime_ns))
        finally:
            os.close(descriptor)


def read_up_to(descriptor: int, limit: int, at_once: int = 2**20) -> bytes:
    """What an open file gives until its end, or the first `limit` bytes of it."""
    parts: list[bytes] = []
    while limit > 0 and (part := os.read(descriptor, min(at_once, limit))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def read_image(source: Path | bytes | Image.Image) -> Image.Image:
    """The picture in a file, in the bytes of one, or in Pillow's hands, as a person sees it: mode RGB, 8 bits, upright,
    on white.

    Raises:
        ImageError: with a short reason: 'missing', 'empty file', 'not an image', 'truncated', 'damaged: ...',
            'too large: 100000x100000 pixels', 'not a regular file', 'permission denied', ...
    """
    if isinstance(source, Path):
        source = read_file(source).data
    if not isinstance(source, bytes):
        return _read(source)
    if not source:
        raise ImageError("empty file")
    return _read(io.BytesIO(source))


def _read(source: BinaryIO | Image.Image) -> Image.Image:
    try:
        image: Any = source if hasattr(source, "getexif") else _open(source)
        _check_size(image.size)
        fix_transparency(image)
        image.load()
        return to_rgb(upright(image))
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise anything at all on damaged data
        raise ImageError(_reason(error)) from None


def is_image(start: bytes) -> bool:
    """Whether a file that begins so is of a format that is read here."""
    return any(signature.match(start) for signature, _, _ in _SIGNATURES)


def _open(file: BinaryIO) -> Image.Image:
    """Opens the file with the plugin that its signature names.

    Not by `Image.open(formats=...)`: it warns of large images, and hides the reason why an image can't be read.
    """
    from PIL import Image

    prefix = file.read(16)
    known = next((entry for entry in _SIGNATURES if entry[0].match(prefix)), None)
    if known is None:
        raise ImageError("not an image")
    _, format, plugin = known
    file.seek(0)
    if format == "HEIF":
        return _open_heif(file)
    if format not in Image.OPEN:
        importlib.import_module(f"PIL.{plugin}")
    factory: Callable[..., Image.Image] = Image.OPEN[format][0]
    return factory(file, "")


def _open_heif(file: BinaryIO) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        try:  # some AVIF files call themselves only "an image of this family"
            from PIL.AvifImagePlugin import AvifImageFile

            return AvifImageFile(file, "")
        except Exception:
            raise ImageError(NO_HEIC) from None
    return pillow_heif.HeifImageFile(file)


def _check_size(size: tuple[int, int]) -> None:
    """Pillow's own limit of 2 x MAX_IMAGE_PIXELS, known from the header, before anything is decoded."""
    from PIL import Image

    if 0 in size:
        raise ImageError(f"no pixels: {size[0]}x{size[1]}")
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > 2 * Image.MAX_IMAGE_PIXELS:
        raise ImageError(f"too large: {size[0]}x{size[1]} pixels")


def _reason(error: BaseException) -> str:
    """A short reason, the same on every run, for whatever was raised."""
    from PIL import Image

    text = re.sub(r"<.*?>|0x[0-9a-f]+", "", str(error)).strip().split("\n")[0][:80]
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {re.search('[0-9]+', text)[0]} pixels" if re.search("[0-9]+", text) else "too large"  # type: ignore[index]
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, OSError) and error.errno is not None:
        return (error.strerror or "can't be opened").lower()
    if isinstance(error, EOFError) or re.search("truncated|unexpected end", text, re.IGNORECASE):
        return "truncated"
    return f"damaged: {text}" if text else f"damaged: {type(error).__name__}"
