"""Whatever Pillow decoded, as a person sees it: RGB, 8 bits a channel, upright, on white.

Used by `images.read_image` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def upright(image: Image.Image) -> Image.Image:
    """The decoded image turned as its EXIF or XMP says. Looked at only where there is some, for it costs.

    Not by `ImageOps.exif_transpose`: it copies images that are upright already, and fails where EXIF has a field that
    Pillow can read but not write.
    """
    from PIL import Image

    info = image.info
    if not ("exif" in info or "xmp" in info or "XML:com.adobe.xmp" in info or "Raw profile type exif" in info):
        return image
    if image.format == "TIFF":  # Pillow has turned it while decoding
        return image
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # broken metadata must not lose the image
        return image
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def fix_transparency(image: Image.Image) -> None:
    """Brings PNG's transparent colour to the scale of the pixels: Pillow widens 1, 2 and 4 bits to 8 and narrows 16
    bits of colour to 8, but leaves tRNS as it stands in the file."""
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if colour is None or image.format != "PNG" or not tiles:
        return
    raw = tiles[0][3]
    raw = raw[0] if isinstance(raw, tuple) else raw
    if raw in ("1", "L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = min(255, colour * {"1": 255, "L;2": 85, "L;4": 17}[raw])
    elif raw == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _wide_to_rgb(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    # From here on the transparent pixels' own colour must not show: it is often black, or left over from an editor.
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _wide_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        top = 4095 if tags.get(258) == (12,) else 65535
        grey = ((values.astype(np.uint32) * 510 + top) // (2 * top)).clip(0, 255).astype(np.uint8)  # v / 257, rounded
        if tags.get(262) == 0:  # TIFF's "white is zero", which Pillow heeds at 8 bits only
            grey = 255 - grey
    elif image.format == "PPM" and image.mode == "I":  # Pillow scales every maxval above 255 to 65535
        grey = ((values.clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        grey = _to_8_bit(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Integers or floats without a declared range, as uint8 of the same shape.

    The smallest of these ranges that holds all values is taken for the image's own: [0, 1] (floats only), [0, 255],
    [0, 65535]; with values outside all of them lowest to highest is stretched to 0..255. NaN counts as the lowest.
    """
    import numpy as np

    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    ranges = (1.0, 255.0, 65535.0)
    if low < 0 or high > 65535:
        start, width = low, (high - low) or 1.0
    else:
        start, width = 0.0, next(top for top in ranges if high <= top)
    return np.rint((values - start) * (255.0 / width)).clip(0, 255).astype(np.uint8)
