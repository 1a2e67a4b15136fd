"""PixelTransform and PixelNormalizer against transformers' own Pillow processors: bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolkit.data.pixels import PixelTransform, centre, same_pixels, settings_with_margin
from toolkit.errors import ImageError, ModelError


def processors() -> dict[str, Any]:
    from transformers import BitImageProcessorPil
    from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return {
        "vit": ViTImageProcessorPil(),
        "vit 96x64": ViTImageProcessorPil(size={"height": 96, "width": 64}),
        "deit": DeiTImageProcessorPil(),
        "clip": CLIPImageProcessorPil(),
        "clip 336 crop 299": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=299),
        # What microsoft/swin-tiny-patch4-window7-224 names: a ViT processor, bicubic, ImageNet's mean and std.
        "swin": ViTImageProcessorPil(resample=3, **imagenet),
        # What the BEiT, SigLIP and DINOv2 checkpoints on the hub name.
        "beit": BeitImageProcessorPil(size={"height": 256, "width": 256}, crop_size={"height": 224, "width": 224}),
        "siglip": SiglipImageProcessorPil(),
        "dinov2": BitImageProcessorPil(
            size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, **imagenet
        ),
        "crop only": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 100, "width": 140}),
        "crop larger than size": DeiTImageProcessorPil(size={"height": 50, "width": 61}, crop_size=90),
        "not normalised": ViTImageProcessorPil(do_normalize=False),
        "not rescaled": ViTImageProcessorPil(do_rescale=False),
        "rescaled to [-1, 1]": ViTImageProcessorPil(
            rescale_factor=1 / 127.5, image_mean=[1, 1, 1], image_std=[1, 1, 1]
        ),
    }


NAMES = list(processors())
SIZES = {
    "landscape": (500, 375),
    "portrait": (375, 500),
    "square": (224, 224),
    "odd": (301, 227),
    "small": (40, 30),
    "one wide": (1, 57),
    "one high": (57, 1),
    "one pixel": (1, 1),
}


def picture(width: int, height: int) -> Image.Image:
    """Smooth with noise on it: what a photograph has, and a resize filter can get wrong."""
    rng = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + c) * np.cos(y / (7 + c)) for c in range(3)], axis=-1) * 90 + 128
    return Image.fromarray(np.clip(waves + rng.normal(0, 25, waves.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_as_the_processor(name: str, size: str) -> None:
    import torch

    from toolkit.models.precision import PixelNormalizer

    processor, image = processors()[name], picture(*SIZES[size])
    transform = PixelTransform.from_processor_config(json.loads(processor.to_json_string()))
    pixels = transform(image)
    plain = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert pixels.dtype == np.uint8
    assert pixels.shape == transform.shape
    assert np.array_equal(pixels, plain)
    whole = processor(image, return_tensors="np")["pixel_values"][0]
    ours = PixelNormalizer(transform)(torch.from_numpy(pixels)[None])[0]
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.numpy(), whole)


@pytest.mark.parametrize("name", NAMES)
def test_with_a_margin_the_centre_is_what_the_processor_crops(name: str) -> None:
    plain = processors()[name]
    settings = json.loads(plain.to_json_string())
    larger = type(plain).from_dict(settings_with_margin(settings, 14))
    seen = PixelTransform.from_processor_config(json.loads(larger.to_json_string()))
    assert seen.shape == PixelTransform.from_processor_config(settings).shape
    assert same_pixels(seen, larger)
    stored = seen.with_margin(14)
    assert stored.shape == (3, seen.shape[1] + 14, seen.shape[2] + 14)
    assert stored.with_margin(-14) == seen
    assert stored.key != seen.key
    for size in ((90, 61), (375, 500), (1, 57)):
        image = picture(*size)
        theirs = larger(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(centre(stored(image), *seen.shape[1:]), theirs)


def test_key_is_of_the_pixels_alone() -> None:
    configs = {name: json.loads(p.to_json_string()) for name, p in processors().items()}
    keys = {name: PixelTransform.from_processor_config(c).key for name, c in configs.items()}
    assert keys["vit"] == keys["not normalised"]
    assert keys["vit"] != keys["swin"]
    assert len({keys[n] for n in ("vit", "deit", "clip", "swin", "crop only", "vit 96x64")}) == 6


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 224}, "do_center_crop": False},
        {"size": {"shortest_edge": 224, "longest_edge": 400}},
        {"size": {"longest_edge": 400}},
        {"do_resize": False},
        {"size": {"height": 8, "width": 8}, "do_pad": True},
        {},
    ],
)
def test_settings_that_a_cache_cannot_hold(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"name another|name an --encoder"):
        PixelTransform.from_processor_config({**config, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]})


def test_a_line_of_pixels_is_refused_before_it_fills_the_memory() -> None:
    """A shortest edge of 224 makes 224 x 14,560,000 pixels of 1 x 65,000."""
    transform = PixelTransform.from_processor_config(json.loads(processors()["clip"].to_json_string()))
    with pytest.raises(ImageError, match="too narrow: 1x65000 pixels"):
        transform(Image.new("RGB", (1, 65000)))
