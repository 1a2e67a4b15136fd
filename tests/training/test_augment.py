"""Augmentation: what is drawn, the same done image by image and pixel by pixel, mirror images, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from stopping import stops

import toolkit.training.trainer as trainer_module
from toolkit.cache.schema import open_cache
from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, RunError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.training.augment import STRENGTHS, Augmentation, Strength, augmented, without_sides
from toolkit.training.collator import FILLER, CaptionDataset

SIZE = (20, 24)
NOTHING = [1.0, 0, 0, 0, 1, 0, 1, 1, 1]


def noise(images: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (images, 3, *size), dtype=np.uint8)
    return torch.from_numpy(values)


def by_hand(image: np.ndarray, drawn: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One image, pixel by pixel, in float64: (3, H, W) -> (3, height, width)."""
    (height, width), (rows, columns) = image.shape[1:], size

    def pixel(y: int, x: int) -> np.ndarray:  # reflected at the edges
        y, x = (-1 - y if y < 0 else y), (-1 - x if x < 0 else x)
        y, x = (2 * height - 1 - y if y >= height else y), (2 * width - 1 - x if x >= width else x)
        return image[:, y, x].astype(float)

    out = np.zeros((3, *size))
    for i in range(rows):
        for j in range(columns):
            u, v = (2 * j + 1) / columns - 1, (2 * i + 1) / rows - 1
            x = ((drawn[0] * u + drawn[1] * v + drawn[2] + 1) * width - 1) / 2
            y = ((drawn[3] * u + drawn[4] * v + drawn[5] + 1) * height - 1) / 2
            left, top = math.floor(x), math.floor(y)
            for dy in (0, 1):
                for dx in (0, 1):
                    share = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                    out[:, i, j] += share * pixel(top + dy, left + dx)
    brightness, contrast, saturation = drawn[6:].astype(float)
    out *= brightness
    out = contrast * out + (1 - contrast) * np.tensordot([0.299, 0.587, 0.114], out, 1).mean()
    out = saturation * out + (1 - saturation) * np.tensordot([0.299, 0.587, 0.114], out, 1)
    return out.clip(0, 255)


@pytest.mark.parametrize("seen", [SIZE, (16, 16)])
def test_a_batch_is_what_a_loop_over_images_and_pixels_gives(seen: tuple[int, int]) -> None:
    augmentation = Augmentation(STRENGTHS["strong"], 3, SIZE, seen, np.ones(8, dtype=bool))
    pixels, drawn = noise(8), np.stack([augmentation.draw(2, image) for image in range(8)])
    assert len(set(np.sign(drawn[:, 0]))) == 2  # some are mirrored
    found = augmented(pixels, torch.from_numpy(drawn), seen)
    assert found.dtype == torch.float32
    for image, one, result in zip(pixels.numpy(), drawn, found.numpy(), strict=True):
        np.testing.assert_allclose(result, by_hand(image, one, seen), atol=0.02)
    alone = torch.cat([augmented(pixels[i : i + 1], torch.from_numpy(drawn[i : i + 1]), seen) for i in range(8)])
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-3)


def test_strength_zero_changes_nothing() -> None:
    nothing = Augmentation(Strength(area=1, aspect=1, degrees=0, colour=0), 0, SIZE, SIZE).draw(1, 5)
    assert nothing.tolist() == NOTHING
    pixels = noise(4)
    found = augmented(pixels, torch.tensor([NOTHING] * 4), SIZE)
    assert torch.equal(found.round().to(torch.uint8), pixels)
    assert (found - pixels).abs().max() < 0.01


def test_a_mirror_image_and_a_margin_exactly() -> None:
    pixels = noise(1)
    mirror = torch.tensor([[-1.0, 0, 0, 0, 1, 0, 1, 1, 1]])
    assert torch.equal(augmented(pixels, mirror, SIZE).round().to(torch.uint8), pixels.flip(-1))
    centre = Augmentation(Strength(area=1, aspect=1, degrees=0, colour=0), 0, SIZE, (12, 16))
    drawn = centre.draw(0, 0)
    assert drawn[[0, 4]].tolist() == pytest.approx([16 / 24, 12 / 20])  # not enlarged
    drawn[[2, 5]] = 0
    found = augmented(pixels, torch.from_numpy(drawn)[None], (12, 16))
    assert torch.equal(found.round().to(torch.uint8), pixels[..., 4:16, 4:20])


def test_what_is_drawn_lies_in_its_range() -> None:
    strength = STRENGTHS["light"]
    augmentation = Augmentation(replace(strength, degrees=0), 1, (224, 224), (224, 224))
    drawn = np.stack([augmentation.draw(0, image) for image in range(2000)]).astype(float)
    across, down = drawn[:, 0], drawn[:, 4]
    assert 0.79 < (across * down).min() < 0.81  # an area; a crop that is stretched beyond the image is cut
    assert 0.99 < (across * down).max() <= 1
    assert (np.abs(drawn[:, 2]) + across <= 1 + 1e-6).all()  # nothing but a rotation shows what is outside
    assert (np.abs(drawn[:, 5]) + down <= 1 + 1e-6).all()
    assert (across / down).max() <= 10 / 9 + 1e-6
    assert (across / down).min() >= 9 / 10 - 1e-6
    assert drawn[:, 6:].min(axis=0) == pytest.approx([0.8] * 3, abs=0.01)
    assert drawn[:, 6:].max(axis=0) == pytest.approx([1.2] * 3, abs=0.01)
    turned = Augmentation(strength, 1, (224, 224), (224, 224))
    angles = np.array([np.rad2deg(np.arctan2(d[3], d[0])) for d in (turned.draw(0, i) for i in range(2000))])
    assert (angles.min(), angles.max()) == pytest.approx((-5, 5), abs=0.05)


def test_drawn_by_seed_epoch_and_image_alone(cache_dir: Path) -> None:
    reader = open_cache(cache_dir)["train"]
    size = (reader.shape[1], reader.shape[2])
    dataset = CaptionDataset(reader, 2, 7, Augmentation(STRENGTHS["light"], 7, size, size))
    plain = CaptionDataset(reader, 2, 7)
    first = dataset.__getitems__([3, 0, FILLER])
    assert np.array_equal(first[0]["augment"], dataset[3]["augment"])
    assert np.array_equal(first[0]["labels"], plain[3]["labels"])
    assert not np.array_equal(first[0]["augment"], first[1]["augment"])
    dataset.set_epoch(1)
    assert not np.array_equal(first[0]["augment"], dataset[3]["augment"])
    dataset.set_epoch(0)
    assert np.array_equal(first[0]["augment"], dataset[3]["augment"])


def test_whoever_says_left_or_right_is_never_mirrored() -> None:
    said = [
        ["A dog runs .", "it turns LEFT ."], ["a man with a bright coat"], ["the right-hand door"], ["the leftmost cup", "a"],
        ["leftovers on a plate"], [], ["she walks rightwards"], ["copyright"],
    ]  # fmt: skip

    class Reader(list):
        rows = type("Rows", (), {"table": {"captions": pa.chunked_array([said[:3], said[3:]])}})

    free = without_sides(Reader(said))  # type: ignore[arg-type]
    assert free.tolist() == [False, True, False, False, True, True, False, True]
    augmentation = Augmentation(STRENGTHS["light"], 0, SIZE, SIZE, free)
    for image in range(len(said)):
        mirrored = sum(augmentation.draw(epoch, image)[0] < 0 for epoch in range(40))
        assert 8 < mirrored < 32 if free[image] else mirrored == 0


def test_a_resumed_run_is_equal_and_evaluation_sees_the_images_as_they_are(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = FinetuneOptions(
        cache=cache_dir, output_dir=tmp_path / "model", epochs=2, batch_size=4, augment="strong", flip=True,
        generation=GenerationOptions(num_beams=1), gradient_accumulation_steps=2,
    )  # fmt: skip
    real, sizes = trainer_module.augmented, []

    def counted(pixels: torch.Tensor, *args: Any) -> torch.Tensor:
        sizes.append(len(pixels))
        return real(pixels, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "augmented", counted)
        finetune(options)
    assert sum(sizes) == 2 * len(open_cache(cache_dir)["train"])
    assert "training images are never mirrored" in capsys.readouterr().err
    other = replace(options, output_dir=tmp_path / "other", save_steps=3)
    with monkeypatch.context() as patch:
        stops(patch, 8)
        with pytest.raises(RunError):
            finetune(other)
    finetune(other)
    one, two = (load_file(run.output_dir / "model.safetensors") for run in (options, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": "wild"}, "--augment wild: choose one of off, light, strong"),
        ({"augment": "light", "cache_features": True}, "--augment light: --cache-features runs the encoder once"),
        ({"flip": True}, "--flip True: only applies with --augment; add that"),
    ],
)
def test_values_that_no_run_can_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FinetuneOptions(**values)
