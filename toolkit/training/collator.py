"""From rows of a cache to the tensors that the model takes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.cache.reader import SplitReader
from toolkit.records import SpecialTokens
from toolkit.training.augment import Augmentation

T = TypeVar("T")


FILLER = -1  # the index of an image without a token to learn: it fills up a batch, and changes no loss or gradient


@dataclass(frozen=True)
class Shares:
    """How many images of each of several data sets an epoch uses: a share of 0.5 is half of them, drawn anew each epoch,
    2.5 is each of them twice and half of them once more.

    Args:
        pools: the rows of each, int64, and the share.
    """

    pools: Sequence[tuple[np.ndarray, float]]

    @property
    def counts(self) -> list[int]:
        """Images an epoch; of a data set that is not empty at least one."""
        return [min(len(rows), 1) if share * len(rows) < 1 else round(share * len(rows)) for rows, share in self.pools]

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of an epoch: int64 (sum of counts,)."""
        found = []
        for (rows, _), count in zip(self.pools, self.counts, strict=True):
            times, rest = divmod(count, max(len(rows), 1))
            found += [rows] * times + ([np.sort(rng.choice(rows, rest, replace=False))] if rest else [])
        return np.concatenate(found)


class CaptionDataset(Dataset):
    """One item per image: {"pixel_values": uint8 (C, H, W), "labels": int32 (n, max_length)}; also at `FILLER`.

    With an augmentation also "augment": float32 (9,), what is to be done to the image (toolkit/training/augment.py).

    Args:
        captions_per_image: how many captions of an image an epoch uses; None for all. Drawn without replacement from
            a generator seeded by (seed, epoch, image): neither workers nor a resumed run change what is drawn.

    Attributes:
        shares: of the data sets in it that an epoch uses; None for every image once.
    """

    shares: Shares | None = None

    def __init__(
        self,
        reader: SplitReader,
        captions_per_image: int | None = None,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.reader = reader
        self.captions_per_image = captions_per_image
        self.seed = seed
        self.augmentation = augmentation
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        item = self.reader[max(index, 0)]
        return self._item(index, item["pixel_values"], self._drawn(index, item["labels"]))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """A whole batch at once, as torch's loader asks for it; pixels that are read from disk are read by several threads."""
        if not self.reader.reads:
            return [self[index] for index in indices]
        images = [max(index, 0) for index in indices]
        labels = (
            self._drawn(index, self.reader.rows.label_rows(image)) for index, image in zip(indices, images, strict=True)
        )
        pixels = self.reader.gather(images)
        return [self._item(i, p, rows) for i, p, rows in zip(indices, pixels, labels, strict=True)]

    def _item(self, index: int, pixels: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        item = {"pixel_values": pixels, "labels": labels}
        if self.augmentation is not None:
            item["augment"] = self.augmentation.draw(self.epoch, max(index, 0))
        return item

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
    """Every image once an epoch, or as often as `dataset.shares` says; a batch holds images with about as many tokens; batches come in random order.

    Most batches of random images hold one with long captions, so that a third of them is padding. Here the images of 32
    random batches are sorted by length and cut into batches (docs/benchmarks.md). The order depends only on seed and
    epoch, so that a resumed epoch is the same one.

    Args:
        batch_size: images per update, over all accumulated batches and ranks.
        window: batches that are sorted together; 1 for random batches.
        step: images per step over all ranks, if there are several. The last step is filled up with `FILLER`s; accelerate
            would fill it up with images of the start.
    """

    WINDOW = 32  # more would save little, and make batches less random

    def __init__(
        self, dataset: CaptionDataset, batch_size: int, seed: int, window: int = WINDOW, step: int = 1
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.window = dataset, batch_size, seed, window
        self.lengths = dataset.tokens()
        self.images = len(self.lengths) if dataset.shares is None else sum(dataset.shares.counts)
        self.fillers = -self.images % step
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch; with several ranks it does not call that of the data set."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return self.images + self.fillers

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        shares = self.dataset.shares
        order = rng.permutation(len(self.lengths) if shares is None else shares.drawn(rng))
        size = self.batch_size * self.window
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([w[np.argsort(self.lengths[w], kind="stable")] for w in windows])
        whole = len(order) - len(order) % self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        rng.shuffle(batches)
        return iter([*batches.ravel().tolist(), *order[whole:].tolist(), *[FILLER] * self.fillers])


def prefetch(batches: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same batches in the same order, made ahead by one thread.

    One thread is faster than worker processes: copying pixels and reading files release the GIL, and batches of other
    processes have to be copied. An error in making a batch is raised here, at that batch.

    Args:
        depth: batches kept ready at most.
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
    """A batch of images with their captions, packed: an image's captions stand one after another in one row.

    So the encoder sees each image once, the decoder computes cross-attention keys and values once per image, and few
    tokens are padding. Positions start anew with each caption, and the mask lets a caption's tokens see only that
    caption: loss and gradients are those of one caption per row (tests/training/test_batches.py).

    Returns, for B images with at most L tokens in all their captions (L a multiple of 8, for tensor cores):
        pixel_values: uint8 (B, C, H, W); or features: (B, S, D), where items have those (toolkit/training/features.py)
        augment: float32 (B, 9), where items have that
        labels: int64 (B, L), -100 after the last caption's EOS
        decoder_input_ids: int64 (B, L): for each caption the start token, then its labels shifted right; then pad
        decoder_position_ids: int64 (B, L), counted from `first_position` in each caption
        decoder_attention_mask: bool (B, 1, L, L), True where a token (third axis) sees another (fourth): itself and
            the earlier tokens of its caption

    With start 0, EOS 1, pad 2, two images, captions [[7, 8]] and [[5], [6, 9]]:
        labels               [[7, 8, 1, -100, -100], [5, 1, 6, 9, 1]]   (L is 5 here, 8 in fact)
        decoder_input_ids    [[0, 7, 8,    2,    2], [0, 5, 0, 6, 9]]
        decoder_position_ids [[0, 1, 2,    0,    0], [0, 1, 0, 1, 2]]

    Args:
        first_position: of the decoder's position embeddings (`toolkit.models.special_tokens.first_position`).
    """

    def __init__(self, tokens: SpecialTokens, first_position: int = 0) -> None:
        self.tokens = tokens
        self.first_position = first_position

    def __call__(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        images = [name for name in ("features", "pixel_values", "augment") if name in items[0]]
        batch: dict[str, torch.Tensor] = {
            name: torch.from_numpy(np.stack([item[name] for item in items])) for name in images
        }
        return {**batch, **self.packed([item["labels"] for item in items])}

    def packed(self, captions: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """The batch but for its images, of each one's captions, int (n, T), padded with -100."""
        used = [rows != IGNORE_INDEX for rows in captions]
        lengths = [rows.sum(axis=1) for rows in used]
        longest = max(int(n.sum()) for n in lengths)
        shape = (len(captions), max(-(-longest // 8) * 8, 8))
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        inputs = np.full(shape, self.tokens.pad, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        caption = np.full(shape, -1)  # which of its image's captions a token belongs to
        for row, (rows, n) in enumerate(zip(captions, lengths, strict=True)):
            total, starts = int(n.sum()), np.cumsum(n) - n
            labels[row, :total] = rows[used[row]]
            inputs[row, 1:total] = labels[row, : max(total - 1, 0)]
            inputs[row, starts] = self.tokens.start
            positions[row, :total] = np.arange(total) - np.repeat(starts, n)
            caption[row, :total] = np.repeat(np.arange(len(n)), n)
        seen = (caption[:, :, None] == caption[:, None, :]) & np.tri(shape[1], dtype=bool)
        return {
            "labels": torch.from_numpy(labels),
            "decoder_input_ids": torch.from_numpy(inputs),
            "decoder_position_ids": torch.from_numpy(positions + self.first_position),
            "decoder_attention_mask": torch.from_numpy(seen[:, None]),
        }


def caption_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: Any = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats per token, summed and then divided, so that it does not depend on how a batch is split.

    Args:
        logits: (n, T, vocabulary).
        labels: (n, T), -100 at padding.
        num_items: target tokens of the whole update, over all accumulated batches and ranks; None for those of these
            labels. A mean per batch would weight short batches more, and grow with accumulation (transformers#47688).
    """
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (num_items if num_items is not None else (labels != IGNORE_INDEX).sum())
