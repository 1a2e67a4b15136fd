"""From rows of a cache to the tensors that the model takes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.cache.reader import SplitReader
from toolkit.models.special_tokens import SpecialTokens

T = TypeVar("T")


FILLER = -1  # the index of an image without a token to learn: it makes a batch full, and changes no loss or gradient


class CaptionDataset(Dataset):
    """One item per image: {"pixel_values": uint8 (C, H, W), "labels": int32 (n, max_length)}; also at `FILLER`.

    Args:
        captions_per_image: how many captions of an image an epoch uses; None for all. Drawn without replacement from
            a generator seeded by (seed, epoch, image): neither workers nor a resumed run change what is drawn.
    """

    def __init__(self, reader: SplitReader, captions_per_image: int | None = None, seed: int = 0) -> None:
        self.reader = reader
        self.captions_per_image = captions_per_image
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        item = self.reader[max(index, 0)]
        return {"pixel_values": item["pixel_values"], "labels": self._drawn(index, item["labels"])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """A whole batch at once, as torch's loader asks for it: where pixels are read, by several threads."""
        if not self.reader.reads:
            return [self[index] for index in indices]
        images = [max(index, 0) for index in indices]
        labels = (
            self._drawn(index, self.reader.rows.label_rows(image)) for index, image in zip(indices, images, strict=True)
        )
        pixels = self.reader.gather(images)
        return [{"pixel_values": p, "labels": rows} for p, rows in zip(pixels, labels, strict=True)]

    def tokens(self) -> np.ndarray:
        """Tokens of each image's captions together, or of as many as are drawn, on average: float64 (images,)."""
        rows = self.reader.rows
        ends = [np.concatenate([[0], np.cumsum((part != IGNORE_INDEX).sum(axis=1))]) for part in rows.labels]
        totals = np.concatenate([np.diff(end[offsets]) for end, offsets in zip(ends, rows.offsets, strict=True)])
        counts = rows.caption_counts()
        return totals * np.minimum(self.captions_per_image or counts, counts) / counts

    def _drawn(self, index: int, labels: np.ndarray) -> np.ndarray:
        if index == FILLER:
            return np.full_like(labels[:1], IGNORE_INDEX)
        if self.captions_per_image is None or len(labels) <= self.captions_per_image:
            return labels
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return labels[np.sort(rng.choice(len(labels), self.captions_per_image, replace=False))]


class LengthGroupedSampler(Sampler[int]):
    """Every image once an epoch, images with about as many tokens in one batch, batches in random order.

    Random images would make a third of a batch padding, for one with long captions is in most batches. Here the images
    of 32 random batches are sorted and cut into batches, which leaves 7 % (docs/benchmarks.md). The order depends on
    seed and epoch alone, so that a resumed epoch is the same one.

    Args:
        batch_size: images of an update, over all accumulated batches and ranks: cut up otherwise, it is the same update.
        window: batches that are sorted together; 1 leaves what is in a batch to chance.
        step: images of a step over all ranks, if there are several: with `FILLER`s all steps are whole. Accelerate would
            fill up the last one with images that the epoch has had already.
    """

    WINDOW = 32  # more of them save little, and make batches less random

    def __init__(
        self, dataset: CaptionDataset, batch_size: int, seed: int, window: int = WINDOW, step: int = 1
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.window = dataset, batch_size, seed, window
        self.lengths = dataset.tokens()
        self.fillers = -len(self.lengths) % step
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch, which then forgets the data set if there are several ranks."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        size = self.batch_size * self.window
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([w[np.argsort(self.lengths[w], kind="stable")] for w in windows])
        whole = len(order) - len(order) % self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        rng.shuffle(batches)
        return iter([*batches.ravel().tolist(), *order[whole:].tolist(), *[FILLER] * self.fillers])


def prefetch(batches: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same batches in the same order, made ahead by one thread.

    Copying pixels and reading files both let other threads run, so that one thread beats worker processes, whose
    batches have to travel. What making a batch raises is raised here, at that batch.

    Args:
        depth: batches that wait at most.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def make() -> None:
        if device is not None:  # a new thread's is the first one, whatever this process's is
            torch.cuda.set_device(device)
        try:
            for batch in batches:
                put((True, batch))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # raised by whoever waits for the batch
            put((False, error))

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, batch = waiting.get()
            if not more:
                if batch is not None:
                    raise batch
                return
            yield batch
    finally:
        stopped.set()
        thread.join()


class CaptionCollator:
    """Images with their captions to one batch: an image's captions stand one after another in one row.

    The encoder then sees each image once, the decoder projects its features to keys and values once, and hardly a token
    is padding: of five captions of 13 tokens on average, a row for each would be cut to the longest of the batch, and
    45 % of the arithmetic spent on nothing. Every caption counts its positions from its own start, and sees itself
    alone: loss and gradients are those of a row for each (tests/training/test_batches.py).

    Returns, for B images with at most L tokens in all their captions (L a multiple of 8, for tensor cores):
        pixel_values: uint8 (B, C, H, W); or features: (B, S, D), where items have those (toolkit/training/features.py)
        labels: int64 (B, L), -100 after the last caption's EOS
        decoder_input_ids: int64 (B, L): for each caption the start token, then its labels shifted right; then pad
        decoder_position_ids: int64 (B, L), from `first_position` on in each caption
        decoder_attention_mask: bool (B, 1, L, L), True where a token (third axis) sees another (fourth): earlier ones
            of its own caption, and itself

    With start 0, EOS 1, pad 2, two images, captions [[7, 8]] and [[5], [6, 9]]:
        labels               [[7, 8, 1, -100, -100], [5, 1, 6, 9, 1]]   (L is 5 here, 8 in fact)
        decoder_input_ids    [[0, 7, 8,    2,    2], [0, 5, 0, 6, 9]]
        decoder_position_ids [[0, 1, 2,    0,    0], [0, 1, 0, 1, 2]]

    Args:
        first_position: what the decoder calls its first position (toolkit/models/loading.py).
    """

    def __init__(self, tokens: SpecialTokens, first_position: int = 0) -> None:
        self.tokens = tokens
        self.first_position = first_position

    def __call__(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        used = [item["labels"] != IGNORE_INDEX for item in items]
        lengths = [rows.sum(axis=1) for rows in used]
        longest = max(int(n.sum()) for n in lengths)
        shape = (len(items), max(-(-longest // 8) * 8, 8))
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        inputs = np.full(shape, self.tokens.pad, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        caption = np.full(shape, -1)  # which of its image's captions a token belongs to
        for row, (item, n) in enumerate(zip(items, lengths, strict=True)):
            total, starts = int(n.sum()), np.cumsum(n) - n
            labels[row, :total] = item["labels"][used[row]]
            inputs[row, 1:total] = labels[row, : max(total - 1, 0)]
            inputs[row, starts] = self.tokens.start
            positions[row, :total] = np.arange(total) - np.repeat(starts, n)
            caption[row, :total] = np.repeat(np.arange(len(n)), n)
        seen = (caption[:, :, None] == caption[:, None, :]) & np.tri(shape[1], dtype=bool)
        images = "features" if "features" in items[0] else "pixel_values"
        return {
            images: torch.from_numpy(np.stack([item[images] for item in items])),
            "labels": torch.from_numpy(labels),
            "decoder_input_ids": torch.from_numpy(inputs),
            "decoder_position_ids": torch.from_numpy(positions + self.first_position),
            "decoder_attention_mask": torch.from_numpy(seen[:, None]),
        }


def caption_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: Any = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats a token, summed and then divided: the same for any way of cutting a batch up.

    Args:
        logits: (n, T, vocabulary).
        labels: (n, T), -100 where nothing is to be learnt.
        num_items: the number of target tokens of the whole update, over all accumulated batches and ranks; without
            it, of these labels. A plain mean per batch would weigh short batches more, and grows with accumulation
            (transformers#47688).
    """
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (num_items if num_items is not None else (labels != IGNORE_INDEX).sum())
