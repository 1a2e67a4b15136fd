"""The encoder's own image processor, reduced to what changes pixels before rescale and normalise.

Hugging Face's Pillow processors resize in uint8, so resizing and cropping once and keeping uint8 loses nothing: the
rest, `(x / 255 - mean) / std`, is done on the device (`toolkit.models.precision.PixelNormalizer`). Pillow in, Pillow out: 306
images/s a core against the processor's 180, bit for bit the same (tests/data/test_pixels.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from toolkit.errors import ImageError, ModelError
from toolkit.runtime.hashing import hash_hex

# What a shortest edge may blow an image up to before it is cropped: 134 MB as Pillow stores it. 1 x 65,000 pixels with
# a shortest edge of 224 would be 13 GB, of which a square is cut.
LARGEST_RESIZED = 2**25


@dataclass(frozen=True)
class PixelTransform:
    """Resize, centre crop; sizes in pixels.

    Attributes:
        size: (height, width) to resize to, or None.
        shortest_edge: resize so that the shorter side is this long and the aspect ratio stays, or None.
        crop: (height, width) cut from the centre, zeros outside, or None.
        resample: Pillow's filter number (2 bilinear, 3 bicubic).
        rescale_factor, mean, std: for the normaliser on the device; they change no pixel here.
    """

    size: tuple[int, int] | None
    shortest_edge: int | None
    crop: tuple[int, int] | None
    resample: int
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_processor_config(cls, config: dict[str, Any]) -> PixelTransform:
        """From a `preprocessor_config.json` as `save_pretrained` writes it, every setting spelled out.

        Raises:
            ModelError: the settings give images of differing shapes, or steps that are not resize and centre crop.
        """
        kind = config.get("image_processor_type", "the image processor")
        size = config.get("size") or {}
        crop = config.get("crop_size") or {}
        resize = config.get("do_resize", True)
        fixed = (size["height"], size["width"]) if resize and "height" in size and "width" in size else None
        edge = size.get("shortest_edge") if resize and "longest_edge" not in size else None
        cropped = (crop["height"], crop["width"]) if config.get("do_center_crop") and "height" in crop else None
        if fixed is None and (edge is None or cropped is None) and not (not resize and cropped):
            raise ModelError(
                f"{kind} with size {size} gives images of differing shapes, which a cache can't hold; name an --encoder "
                "whose processor resizes to a fixed height and width or crops to one."
            )
        if config.get("do_pad"):
            raise ModelError(f"{kind} pads images, which is not supported; name another --encoder.")
        normalize = config.get("do_normalize", True)
        return cls(
            size=fixed,
            shortest_edge=edge,
            crop=cropped,
            resample=int(config.get("resample", 2)),
            rescale_factor=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=tuple(float(v) for v in config["image_mean"]) if normalize else (0.0, 0.0, 0.0),
            std=tuple(float(v) for v in config["image_std"]) if normalize else (1.0, 1.0, 1.0),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what `__call__` returns."""
        height, width = self.crop or self.size  # type: ignore[misc]
        return (3, height, width)

    def with_margin(self, margin: int) -> PixelTransform:
        """The same with a larger crop of what is resized alike, or with a negative margin a smaller one.

        Args:
            margin: pixels, even, so that the exact centre of what the result makes is what this makes.
        """
        if not margin:
            return self
        return replace(self, crop=(self.shape[1] + margin, self.shape[2] + margin))

    @property
    def key(self) -> str:
        """A hash of the settings that change pixels; mean and std do not."""
        settings = {k: v for k, v in asdict(self).items() if k in ("size", "shortest_edge", "crop", "resample")}
        return hash_hex(repr(sorted(settings.items())))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image after the resize, before the crop."""
        if self.size is not None:
            return self.size[1], self.size[0]
        if self.shortest_edge is None:
            return width, height
        short, long = sorted((width, height))
        new_long = int(self.shortest_edge * long / short)  # truncated, as transformers does
        return (self.shortest_edge, new_long) if width <= height else (new_long, self.shortest_edge)

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What of an image the model sees: left, top, width, height as shares of the image's sides."""
        new_width, new_height = self.resized(width, height)
        crop_height, crop_width = self.crop or (new_height, new_width)
        left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
        return left / new_width, top / new_height, crop_width / new_width, crop_height / new_height

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image of any size -> uint8 array (3, H, W), a read-only view of Pillow's memory where that is one block.

        Raises:
            ImageError: 'too narrow: ...', where the shortest edge would make it huge.
        """
        if self.size is not None or self.shortest_edge is not None:
            new = self.resized(*image.size)
            if self.shortest_edge is not None and new[0] * new[1] > max(LARGEST_RESIZED, self.shortest_edge**2):
                raise ImageError(f"too narrow: {image.width}x{image.height} pixels")
            image = image.resize(new, resample=self.resample)
        if self.crop is not None:
            image = _center_crop(image, *self.crop)
        stored = stored_pixels(image)
        # Whoever puts it into a batch copies it anyway; a copy here as well would be 4 % of an image's time.
        return (np.asarray(image) if stored is None else stored[..., :3]).transpose(2, 0, 1)


@dataclass(frozen=True)
class ProcessorTransform:
    """An image processor that does more than resize and crop, as it is: a peer of PixelTransform, slower.

    An RGB image -> float32 array (C, H, W), rescaled and normalised already, the same shape for every image.
    """

    processor: Any

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0], dtype=np.float32)


# Height and width of a wide, a tall and a tiny picture that a transform is tried on.
TRIED = ((301, 403), (402, 299), (17, 40))


def _noise(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def same_pixels(transform: PixelTransform, processor: Any) -> bool:
    """Whether our reading of a processor's settings does what the processor itself does, to the bit."""
    for image in (_noise(*size) for size in TRIED):
        try:
            theirs = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        except (ValueError, TypeError, KeyError):
            return False
        if not np.array_equal(theirs, transform(image)):
            return False
    return True


def transform_of(processor: Any, settings: dict[str, Any], name: str) -> PixelTransform | ProcessorTransform:
    """What makes pixels as an image processor does: ours where it gives the same, else the processor itself.

    Args:
        settings: of the processor, as `to_json_string` writes them.

    Raises:
        ModelError: it gives images of differing shapes, or none at all.
    """
    try:
        ours = PixelTransform.from_processor_config(settings)
    except ModelError:
        ours = None
    if ours is not None and same_pixels(ours, processor):
        return ours
    theirs = ProcessorTransform(processor)
    try:
        shapes = {theirs(_noise(*size)).shape for size in TRIED}
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ModelError(f"{name}: its image processor can't be used alone ({reason}); name another.") from None
    if len(shapes) > 1 or len(next(iter(shapes))) != 3:
        raise ModelError(f"{name}: its image processor gives pixels of differing shapes for an image; name another.")
    return theirs


def settings_with_margin(settings: dict[str, Any], margin: int) -> dict[str, Any]:
    """An image processor's settings with `margin` pixels more to resize to, of which it crops what it gave before."""
    _, height, width = PixelTransform.from_processor_config(settings).shape
    size = {name: pixels + margin for name, pixels in settings["size"].items()} if settings.get("size") else None
    crop = {"height": height, "width": width}
    return {**settings, "size": size, "do_center_crop": True, "crop_size": crop}


def centre(pixels: Any, height: int, width: int) -> Any:
    """The middle of an array or a tensor (..., H, W), a view (..., height, width); a side that is shorter stays."""
    top, left = max(0, pixels.shape[-2] - height) // 2, max(0, pixels.shape[-1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def stored_pixels(image: Image.Image) -> np.ndarray | None:
    """An RGB image as Pillow holds it, without a copy: uint8 (H, W, 4), of which the fourth byte may be anything.

    None where Pillow holds it in several blocks, as it does above 16 MB.
    """
    try:
        values = pa.array(image).values
    except (ValueError, TypeError, pa.ArrowException):
        return None
    return np.frombuffer(values.buffers()[1], dtype=np.uint8).reshape(image.height, image.width, 4)


def _center_crop(image: Image.Image, crop_height: int, crop_width: int) -> Image.Image:
    """As `transformers.image_transforms.center_crop`, whose padding of small images rounds up on the left and top."""
    width, height = image.size
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    if top < 0 or left < 0:
        top += ceil((max(crop_height, height) - height) / 2)
        left += ceil((max(crop_width, width) - width) / 2)
        padded = Image.new("RGB", (max(crop_width, width), max(crop_height, height)))
        offset = (ceil((padded.width - width) / 2), ceil((padded.height - height) / 2))
        padded.paste(image, offset)
        image = padded
    return image.crop((left, top, left + crop_width, top + crop_height))
