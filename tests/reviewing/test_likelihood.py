"""How probable given captions are, against the plain loss of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.cache.schema import open_cache
from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.likelihood import split_log_probs
from toolkit.options import ReviewOptions
from toolkit.reviewing.listing import list_cache


def test_log_probs(cache_dir: Path, model_dir: Path) -> None:
    """One caption after another through the model with its own loss."""
    cache, captioner = open_cache(cache_dir), load_captioner(model_dir, "cpu")
    found = split_log_probs(captioner, f"{model_dir}", cache, "train")
    reader = cache["train"]
    assert [len(values) for values in found] == [len(captions) for captions in reader.column("captions")]
    for row in (0, len(reader) - 1):
        pixels = captioner.normalizer(torch.from_numpy(np.array(reader[row]["pixel_values"]))[None])
        for value, labels in zip(found[row], reader[row]["labels"], strict=True):
            wanted = torch.from_numpy(labels[labels >= 0].astype(np.int64))[None]
            with torch.inference_mode():
                loss = captioner.model(pixel_values=pixels, labels=wanted).loss
            assert value == pytest.approx(-loss.item(), abs=1e-4)
    listing = list_cache(ReviewOptions(path=cache_dir), found)
    flat = [value for values in found for value in values]
    weakest = max(listing.items, key=lambda item: item.weakness)
    assert weakest.score == min(flat)
