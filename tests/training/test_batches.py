"""Batches: what the collator makes, what a loader gives by each way of reading, and the prefetch thread."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.cache.schema import open_cache
from toolkit.models.loading import build_captioner
from toolkit.records import SpecialTokens
from toolkit.training.collator import (
    FILLER,
    CaptionCollator,
    CaptionDataset,
    LengthGroupedSampler,
    caption_loss,
    prefetch,
)

TOKENS = SpecialTokens(start=0, eos=1, pad=2)
_ = -100


def item(*captions: list[int], length: int = 4) -> dict[str, np.ndarray]:
    labels = np.full((len(captions), length), -100, dtype=np.int32)
    for row, caption in zip(labels, captions, strict=True):
        row[: len(caption)] = caption
    return {"pixel_values": np.full((3, 2, 2), len(captions), dtype=np.uint8), "labels": labels}


def test_a_batch_exactly() -> None:
    batch = CaptionCollator(TOKENS)([item([7, 8, 1]), item([5, 1], [6, 9, 4, 1])])
    assert batch["labels"].tolist() == [[7, 8, 1, _, _, _, _, _], [5, 1, 6, 9, 4, 1, _, _]]
    assert batch["decoder_input_ids"].tolist() == [[0, 7, 8, 2, 2, 2, 2, 2], [0, 5, 0, 6, 9, 4, 2, 2]]
    assert batch["decoder_position_ids"].tolist() == [[0, 1, 2, 0, 0, 0, 0, 0], [0, 1, 0, 1, 2, 3, 0, 0]]
    seen = [
        ["x", "xx", "xxx", "...x", "...xx", "...xxx", "...xxxx", "...xxxxx"],
        ["x", "xx", "..x", "..xx", "..xxx", "..xxxx", "......x", "......xx"],
    ]
    expected = [[[[key == "x" for key in row.ljust(8, ".")] for row in rows]] for rows in seen]
    assert batch["decoder_attention_mask"].tolist() == expected
    assert batch["pixel_values"].tolist() == [[[[1, 1]] * 2] * 3, [[[2, 2]] * 2] * 3]
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["decoder_attention_mask"].dtype == torch.bool
    assert {batch[name].dtype for name in ("labels", "decoder_input_ids", "decoder_position_ids")} == {torch.int64}
    shifted = CaptionCollator(TOKENS, first_position=3)([item([7, 8, 1]), item([5, 1], [6, 9, 4, 1])])
    assert torch.equal(shifted["decoder_position_ids"], batch["decoder_position_ids"] + 3)


@pytest.mark.parametrize(("longest", "length"), [(1, 8), (8, 8), (9, 16), (17, 24)])
def test_padded_to_eights(longest: int, length: int) -> None:
    batch = CaptionCollator(TOKENS)([item([5] * (longest - 1) + [1], length=20), item([1], length=20)])
    assert batch["labels"].shape == (2, length)


def images(captions: list[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Images with the given numbers of captions, of random lengths."""
    rng = torch.Generator().manual_seed(seed)
    items = []
    for number in captions:
        labels = torch.full((number, 12), -100)
        for row in labels:
            length = int(torch.randint(2, 11, (), generator=rng))
            row[:length] = torch.randint(3, 300, (length,), generator=rng)
            row[length] = TOKENS.eos
        items.append({"pixel_values": torch.randn(3, 64, 64, generator=rng).numpy(), "labels": labels.int().numpy()})
    return items


@pytest.mark.parametrize("captions", [[5, 5], [1, 4, 2], [1, 1]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_loss_and_every_gradient_equal_the_naive_ones(
    captions: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    """Naive: each caption alone with its own copy of its image; transformers shifts the labels itself."""
    model = build_captioner("", "", "tiny", vocab_size=300, tokens=TOKENS, seed=0).to(dtype).train()
    naive, total, tokens = copy.deepcopy(model), torch.zeros((), dtype=dtype), 0
    for image in images(captions):
        for row in torch.from_numpy(image["labels"]).long():
            count = int((row != -100).sum())
            pixels = torch.from_numpy(image["pixel_values"]).to(dtype)[None]
            total, tokens = total + naive(pixel_values=pixels, labels=row[None]).loss * count, tokens + count
    (total / tokens).backward()
    batch = CaptionCollator(TOKENS)(images(captions))
    labels = batch.pop("labels")
    logits = model(**{**batch, "pixel_values": batch["pixel_values"].to(dtype)}).logits
    loss = caption_loss(logits, labels)
    loss.backward()
    assert loss.dtype == dtype
    assert abs(loss.item() - (total / tokens).item()) < tolerance
    theirs = dict(naive.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert "pooler" in name
            continue
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=tolerance, msg=name)
        compared += 1
    assert compared > 90


def test_loss_is_the_same_however_a_batch_is_cut() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, 11)
    labels = torch.randint(0, 11, (6, 5))
    labels[0, 2:] = labels[3, 1:] = -100
    whole = caption_loss(logits, labels)
    parts = sum(caption_loss(logits[i : i + 2], labels[i : i + 2], (labels != -100).sum()) for i in (0, 2, 4))
    assert torch.allclose(whole, parts)
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(whole, mean)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("captions", [None, 2])
def test_a_loader_gives_the_same_by_every_way(cache_dir: Path, num_workers: int, captions: int | None) -> None:
    reader = open_cache(cache_dir)["train"]
    batches = []
    for from_disk in (False, True):
        dataset = CaptionDataset(replace(reader, from_disk=from_disk), captions, seed=3)
        dataset.set_epoch(1)
        loader = DataLoader(dataset, 8, collate_fn=CaptionCollator(TOKENS), num_workers=num_workers)
        batches.append(list(prefetch(loader)) if from_disk else list(loader))
    assert len(batches[0]) == len(batches[1])
    for a, b in zip(*batches, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_captions_are_drawn_by_seed_epoch_and_image(cache_dir: Path) -> None:
    reader = open_cache(cache_dir)["train"]
    dataset = CaptionDataset(reader, 2, seed=3)
    first = [dataset[i]["labels"] for i in range(len(dataset))]
    assert all(len(labels) == 2 for labels in first)
    again = [dataset[i]["labels"] for i in reversed(range(len(dataset)))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    dataset.set_epoch(1)
    assert not all(np.array_equal(a, dataset[i]["labels"]) for i, a in enumerate(first))
    rows = reader[0]["labels"].tolist()
    assert all(row in rows for row in first[0].tolist())


# ---- images of like lengths -----------------------------------------------------------------------------------------


class Lengths:
    """A data set of images that have so many tokens each."""

    shares = None

    def __init__(self, number: int) -> None:
        self.lengths = np.random.default_rng(0).lognormal(4.2, 0.3, number).astype(int)
        self.epoch = 0

    def tokens(self) -> np.ndarray:
        return self.lengths

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def padding(lengths: np.ndarray, size: int) -> float:
    longest = sum(max(lengths[i : i + size]) * len(lengths[i : i + size]) for i in range(0, len(lengths), size))
    return 1 - lengths.sum() / longest


def test_images_of_like_lengths_share_a_batch() -> None:
    dataset = Lengths(1003)
    sampler = LengthGroupedSampler(dataset, 8, seed=1)  # type: ignore[arg-type]
    order = list(sampler)
    assert sorted(order) == list(range(1003))
    assert len(sampler) == 1003
    assert order == list(LengthGroupedSampler(dataset, 8, seed=1))  # type: ignore[arg-type]
    assert order != list(LengthGroupedSampler(dataset, 8, seed=2))  # type: ignore[arg-type]
    chance = np.random.default_rng((1, 0)).permutation(len(order))[: len(order) // 8 * 8].reshape(-1, 8)
    alone = list(LengthGroupedSampler(dataset, 8, seed=1, window=1))  # type: ignore[arg-type]
    batches = [set(alone[i : i + 8]) for i in range(0, chance.size, 8)]
    assert sorted(map(sorted, batches)) == sorted(map(sorted, chance.tolist()))
    assert padding(dataset.lengths, 8) > 0.25
    assert padding(dataset.lengths[order], 8) < 0.05
    # Batches come in random order: neighbours are no more alike than any two.
    longest = np.array([max(dataset.lengths[order[i : i + 8]]) for i in range(0, 1000, 8)])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3
    sampler.set_epoch(3)
    assert dataset.epoch == 3, "accelerate sets the sampler's alone where there are several ranks"
    later = list(sampler)
    assert sorted(later) == sorted(order)
    assert later != order


def test_ranks_get_whole_steps() -> None:
    """Three ranks of 4 images a step, two steps an update: fillers at the end, and no image twice."""
    dataset = Lengths(1003)
    alone = list(LengthGroupedSampler(dataset, 24, seed=1))  # type: ignore[arg-type]
    sampler = LengthGroupedSampler(dataset, 24, seed=1, step=12)  # type: ignore[arg-type]
    assert list(sampler) == [*alone, *[FILLER] * 5]
    assert len(sampler) == 1008
    assert list(LengthGroupedSampler(Lengths(24), 24, seed=1, step=12)).count(FILLER) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("captions", [None, 2])
def test_a_filler_has_nothing_to_learn(
    cache_dir: Path, captions: int | None, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = CaptionDataset(open_cache(cache_dir)["train"], captions)
    monkeypatch.setattr(type(dataset.reader), "reads", reads)
    collator = CaptionCollator(SpecialTokens(0, 1, 2))
    items = dataset.__getitems__([3, FILLER])
    assert items[1]["labels"].tolist() == [[IGNORE_INDEX] * items[0]["labels"].shape[1]]
    batch, alone = collator(items), collator(items[:1])
    for name in ("labels", "decoder_input_ids", "decoder_position_ids", "decoder_attention_mask"):
        assert torch.equal(batch[name][:1], alone[name]), name
    assert bool((batch["labels"][1] == IGNORE_INDEX).all())
    blank = collator(dataset.__getitems__([FILLER]))
    assert blank["labels"].tolist() == [[IGNORE_INDEX] * 8]
    assert blank["decoder_attention_mask"].any(-1).all(), "attention over nothing would be nan"


@pytest.mark.parametrize("captions", [None, 2])
def test_tokens_of_an_image(cache_dir: Path, captions: int | None) -> None:
    dataset = CaptionDataset(open_cache(cache_dir)["train"], captions)
    expected = []
    for i in range(len(dataset)):
        rows = CaptionDataset(dataset.reader)[i]["labels"]
        tokens = sum(int((row != -100).sum()) for row in rows)
        expected.append(tokens if captions is None else tokens * captions / len(rows))
    np.testing.assert_allclose(dataset.tokens(), expected)


# ---- prefetch -------------------------------------------------------------------------------------------------------


def test_prefetch_keeps_the_order() -> None:
    assert list(prefetch(range(100), depth=3)) == list(range(100))
    assert list(prefetch([])) == []
    assert list(prefetch([None, None])) == [None, None]


def test_prefetch_runs_ahead_but_not_far() -> None:
    made: list[int] = []

    def batches() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    iterator = prefetch(batches(), depth=2)
    assert next(iterator) == 0
    time.sleep(0.2)
    assert 2 <= len(made) <= 4
    iterator.close()  # type: ignore[attr-defined]
    assert len(made) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_raises_at_the_batch() -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    iterator = prefetch(batches())
    assert next(iterator) == 1
    with pytest.raises(OSError, match="gone"):
        next(iterator)
