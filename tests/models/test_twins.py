"""Captioning by several threads at once, and beside whatever else is done with the same model."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.captioning import kv_cache as steps
from toolkit.captioning.attention import Attention
from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.data.images import read_image
from toolkit.models.twins import twin_of
from toolkit.options import GenerationOptions

OPTIONS = [GenerationOptions(num_beams=2, max_length=12), GenerationOptions(num_beams=1, max_length=10)]


@pytest.fixture
def captioner(model_dir: Path) -> Captioner:
    return load_captioner(model_dir, "cpu")


@pytest.fixture(scope="module")
def paths(sample_dir: Path) -> list[Path]:
    return sorted((sample_dir / "Images").iterdir())[:6]


def marks(model: Any) -> list[tuple[str | None, bool]]:
    """What decoding might leave changed in each of a model's modules."""
    return [
        (module.config._attn_implementation if hasattr(module, "config") else None, "forward" in vars(module))
        for module in model.modules()
    ]


def test_threads(captioner: Captioner, paths: list[Path]) -> None:
    """Captions and heat maps, at the same time, as one after the other."""
    attention = Attention(captioner, "--model m")
    words = ["a dog", "two red circles", "a"]

    def work(number: int) -> Any:
        if number % 4 == 3:
            maps = attention.explain([attention.prepare(read_image(path)) for path in paths[:3]], words)
            return [heat.maps.tolist() for heat in maps if heat]
        found = captioner.caption(paths[number % 3 :], OPTIONS[number % 2], batch_size=1 + number % 5)
        return [(result.image, result.captions, result.ended) for result in found]

    before = marks(captioner.model)
    wanted = [work(number) for number in range(24)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, [*range(24)] * 2)) == wanted * 2
    assert marks(captioner.model) == before


def test_nobody_else_sees_a_difference(
    captioner: Captioner, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses the model in the middle of a call finds it as ever, also by its own generate."""
    monkeypatch.setattr(steps, "PACK_FROM", 1)  # pack all of its weights
    model, before = captioner.model, marks(captioner.model)
    pixels = captioner.image_processor(read_image(paths[0]), return_tensors="pt")["pixel_values"]
    arguments = {"num_beams": 3, "max_length": 12}
    tokens = model.generate(pixels, **arguments).tolist()
    wanted = captioner.caption(paths[:2], OPTIONS[0])
    inner = captioner.caption(paths[2:], OPTIONS[1])
    seen = []

    def look(*_: Any) -> None:
        if not seen:
            seen.append(marks(model))
            seen.append(model.generate(pixels, **arguments).tolist())
            seen.append(captioner.caption(paths[2:], OPTIONS[1]))

    real = captioner.normalizer.forward
    monkeypatch.setattr(captioner.normalizer, "forward", lambda x: look() or real(x))
    assert captioner.caption(paths[:2], OPTIONS[0]) == wanted
    assert seen == [before, tokens, inner]


def test_a_twin_follows_its_model(captioner: Captioner, paths: list[Path]) -> None:
    model = captioner.model
    twin = twin_of(model, "eager")
    assert twin is twin_of(model, "eager")
    assert twin is not twin_of(model, "other")
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert twin.decoder.config._attn_implementation == "eager"
    before = [result.caption for result in captioner.caption(paths, OPTIONS[0])]
    other = copy.deepcopy(captioner)
    with torch.no_grad():
        for captions in (captioner, other):
            captions.model.decoder.transformer.wte.weight.add_(torch.arange(128) / 50)
    after = [result.caption for result in captioner.caption(paths, OPTIONS[0])]
    assert after == [result.caption for result in other.caption(paths, OPTIONS[0])] != before
    model.train()
    assert twin_of(model, "eager").training
    model.eval()
    model.to(torch.bfloat16)
    assert twin_of(model, "eager").dtype == torch.bfloat16
    model.decoder.transformer.h[0] = copy.deepcopy(model.decoder.transformer.h[1])  # other parts: another twin
    assert twin_of(model, "eager") is not twin


def test_a_model_that_is_gone_leaves_nothing(model_dir: Path, paths: list[Path]) -> None:
    captioner = load_captioner(model_dir, "cpu")
    captioner.caption(paths[:1], OPTIONS[0])
    twin, model = weakref.ref(twin_of(captioner.model, steps.SHARED)), weakref.ref(captioner.model)
    del captioner
    gc.collect()
    assert (twin(), model()) == (None, None)
