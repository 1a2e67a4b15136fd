"""From rows of a cache to the tensors that the model takes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from toolkit.labels import IGNORE_INDEX
from toolkit.modeling import SpecialTokens
from toolkit.rows import SplitReader

T = TypeVar("T")


class CaptionDataset(Dataset):
    """One item per image: {"pixel_values": uint8 (C, H, W), "labels": int32 (n, max_length)}.

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
        item = self.reader[index]
        return {"pixel_values": item["pixel_values"], "labels": self._drawn(index, item["labels"])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """A whole batch at once, as torch's loader asks for it: where pixels are read, by several threads."""
        if not self.reader.reads:
            return [self[index] for index in indices]
        labels = (self._drawn(index, self.reader.rows.label_rows(index)) for index in indices)
        pixels = self.reader.gather(indices)
        return [{"pixel_values": p, "labels": rows} for p, rows in zip(pixels, labels, strict=True)]

    def _drawn(self, index: int, labels: np.ndarray) -> np.ndarray:
        if self.captions_per_image is None or len(labels) <= self.captions_per_image:
            return labels
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return labels[np.sort(rng.choice(len(labels), self.captions_per_image, replace=False))]


def prefetch(batches: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same batches in the same order, made ahead by one thread.

    Copying pixels and reading files both let other threads run, so that one thread beats worker processes, whose
    batches have to travel. What making a batch raises is raised here, at that batch.

    Args:
        depth: batches that wait at most.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def make() -> None:
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
    """Images with differing numbers of captions, of differing lengths, to one batch.

    Returns, for B images with at most n captions of at most T tokens (T a multiple of 8, for tensor cores):
        pixel_values: uint8 (B, C, H, W)
        labels: int64 (B * n, T), -100 after each EOS; an image with fewer captions gets rows of -100 alone, which add
            nothing to a summed loss
        decoder_input_ids: int64 (B * n, T): start token, then the labels shifted right, -100 as pad

    With start 0, EOS 1, pad 2, two images, captions [[7, 8]] and [[5], [6, 9, 4]]:
        labels            [[7, 8, 1, -100], [-100, ...], [5, 1, -100, -100], [6, 9, 4, 1]]   (T is 4 here, 8 in fact)
        decoder_input_ids [[0, 7, 8,    1], [   0,   2, ...], [0, 5, 1, 2],  [0, 6, 9, 4]]
    """

    def __init__(self, tokens: SpecialTokens) -> None:
        self.tokens = tokens

    def __call__(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        counts = [len(item["labels"]) for item in items]
        every = np.concatenate([item["labels"] for item in items])
        longest = int((every != IGNORE_INDEX).any(axis=0).sum())  # rows are tokens first, padding last
        length = min(max(-(-longest // 8) * 8, 8), every.shape[1])
        rows = max(counts)
        labels = np.full((len(items), rows, length), IGNORE_INDEX, dtype=np.int64)
        # True where an item has a caption: one assignment for all, in order.
        labels[np.arange(rows) < np.array(counts)[:, None]] = every[:, :length]
        flat = torch.from_numpy(labels.reshape(-1, length))
        return {
            "pixel_values": torch.from_numpy(np.stack([item["pixel_values"] for item in items])),
            "labels": flat,
            "decoder_input_ids": shift_right(flat, self.tokens),
        }


def shift_right(labels: torch.Tensor, tokens: SpecialTokens) -> torch.Tensor:
    """int64 (n, T) labels -> what the decoder reads at each position: (n, T)."""
    shifted = labels.roll(1, dims=-1)
    shifted[:, 0] = tokens.start
    return shifted.masked_fill(shifted == IGNORE_INDEX, tokens.pad)


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
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (num_items if num_items is not None else (labels != IGNORE_INDEX).sum())
