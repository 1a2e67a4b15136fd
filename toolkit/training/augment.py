"""Other views of the same images in each epoch: crops, small rotations, brightness, contrast, colour, mirror images.

What is done to an image is drawn in the data set, as `FIELDS` numbers that travel beside its pixels, and done to a whole
batch at once on the device that trains. The numbers depend on (seed, epoch, image) alone, so that neither a resumed run
nor other batches, workers or ranks change them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch.nn.functional import affine_grid, grid_sample

from toolkit.cache.reader import SplitReader

# A caption with one of these words is wrong of the mirror image. The words of other languages are not known.
SIDES = r"\b(left|right)(most|wards?|[- ]?hand(ed)?)?\b"
GRAY = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, as Pillow's mode L
FIELDS = 9  # rows of the affine map (6), then the factors of brightness, contrast, saturation
STREAM = 1  # keeps these draws apart from those of captions, which are seeded by (seed, epoch, image) too


@dataclass(frozen=True)
class Strength:
    """How far an image may be changed; each number is drawn evenly from its range.

    Attributes:
        area: the smallest share of what the encoder sees that a crop keeps; the largest is 1.
        aspect: a crop's width may be stretched against its height by a factor from 1 / aspect to aspect.
        degrees: of rotation, to either side.
        colour: brightness, contrast and saturation are each multiplied by a factor from 1 - colour to 1 + colour.
    """

    area: float
    aspect: float
    degrees: float
    colour: float


STRENGTHS = {
    "light": Strength(area=0.8, aspect=10 / 9, degrees=5, colour=0.2),
    "strong": Strength(area=0.5, aspect=4 / 3, degrees=10, colour=0.4),
}


class Augmentation:
    """Draws what is done to each image of a split.

    Args:
        stored: (height, width) of the cache's pixels.
        seen: (height, width) that the encoder takes; smaller where the cache has a margin.
        mirrored: bool (images,), those that half of the time become their mirror images; None for none.
    """

    def __init__(
        self,
        strength: Strength,
        seed: int,
        stored: tuple[int, int],
        seen: tuple[int, int],
        mirrored: np.ndarray | None = None,
    ) -> None:
        self.strength, self.seed, self.mirrored = strength, seed, mirrored
        self.stored, self.seen = stored, seen

    def draw(self, epoch: int, image: int) -> np.ndarray:
        """float32 (`FIELDS`,): what is done to this image in this epoch."""
        rng, strength = np.random.default_rng((self.seed, epoch, image, STREAM)), self.strength
        area, x, y = rng.uniform(strength.area, 1), *rng.uniform(-1, 1, 2)
        stretch = np.exp(rng.uniform(-1, 1) * np.log(strength.aspect) / 2)
        angle = np.deg2rad(rng.uniform(-1, 1) * strength.degrees)
        colours = 1 + rng.uniform(-1, 1, 3) * strength.colour
        mirror = -1 if rng.random() < 0.5 and self.mirrored is not None and self.mirrored[image] else 1
        (height, width), (seen_height, seen_width) = self.stored, self.seen
        # Sides of the crop as shares of the stored image's: no crop is wider or higher than that.
        across = min(1.0, np.sqrt(area) * stretch * seen_width / width)
        down = min(1.0, np.sqrt(area) / stretch * seen_height / height)
        cos, sin = np.cos(angle), np.sin(angle)
        affine = (
            mirror * across * cos, -down * sin * height / width, x * (1 - across),
            mirror * across * sin * width / height, down * cos, y * (1 - down),
        )  # fmt: skip
        return np.array([*affine, *colours], dtype=np.float32)


def augmented(pixels: torch.Tensor, drawn: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A batch with what was drawn for each image done to it: geometry first, then brightness, contrast, saturation.

    One bilinear sample takes crop, stretch, rotation and mirroring together; beyond the edge the image is reflected.
    Brightness multiplies; contrast moves from the mean of the gray image, and saturation from the gray image. The three
    are one formula, so that values are cut to 0 and 255 only after the last.

    Args:
        pixels: uint8 (B, 3, H, W).
        drawn: float32 (B, `FIELDS`), from `Augmentation.draw`; the map is from -1 and 1 at the result's edges to those of
            `pixels`, x first.
        size: (height, width) of the result.

    Returns:
        float32 (B, 3, height, width), from 0 to 255.
    """
    drawn = drawn.to(pixels.device)
    grid = affine_grid(drawn[:, :6].reshape(-1, 2, 3), [len(pixels), 3, *size], align_corners=False)
    found = grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in drawn[:, 6:].unbind(1))
    gray = found[:, :1] * GRAY[0] + found[:, 1:2] * GRAY[1] + found[:, 2:] * GRAY[2]
    mean = gray.mean((1, 2, 3), keepdim=True)
    found = torch.lerp(gray, found, saturation)
    return found.mul_(brightness * contrast).add_(brightness * (1 - contrast) * mean).clamp_(0, 255)


def without_sides(reader: SplitReader) -> np.ndarray:
    """Which images have no caption that says left or right: bool (images,)."""
    free, row = np.ones(len(reader), dtype=bool), 0
    for chunk in reader.rows.table["captions"].chunks:
        says = pc.match_substring_regex(chunk.flatten(), SIDES, ignore_case=True).to_numpy(zero_copy_only=False)
        free[row + pc.list_parent_indices(chunk).to_numpy()[says]] = False
        row += len(chunk)
    return free
