"""Self-critical training: captions drawn from the model, made likelier or less likely by what they are worth.

Of each image some captions are drawn, each token from the model's own distribution. A caption's advantage is its reward
less the mean reward of the image's other captions (Luo 2020, arXiv:2003.09971, in place of the greedy caption of Rennie
et al. 2017, arXiv:1612.00563), which no caption of its own moves, so that the gradient is that of the expected reward.

In: batches of `SampledDataset` and `SampledCollator`. Out: a loss. The image is encoded once, for drawing and for the
gradient, and its captions share keys and values in both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import GenerationConfig

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.cache.schema import Cache
from toolkit.captioning.beam_search import Found
from toolkit.captioning.generate import decode, unsupported
from toolkit.errors import ModelError
from toolkit.evaluation.rewards import END, DocumentFrequencies, Rewards, words_of
from toolkit.models.lora import plain_model
from toolkit.options import FinetuneOptions
from toolkit.options.objective import parse_reward
from toolkit.runtime.progress import say
from toolkit.training.callbacks import CaptionMetrics, TrainingLog
from toolkit.training.collator import FILLER, CaptionCollator, CaptionDataset, caption_loss
from toolkit.training.distributed import broadcast_from_rank_0
from toolkit.training.guards import Guards
from toolkit.training.trainer import CaptionTrainer, fuse_activations

PACKED = ("labels", "decoder_input_ids", "decoder_position_ids", "decoder_attention_mask")


class SampledDataset(Dataset):
    """Items of a `CaptionDataset`, each with its image's number and the seed that its captions are drawn by.

    The seed is of (seed, epoch, image) alone: neither the other images of a batch nor a resumed run change what is drawn.
    """

    def __init__(self, items: CaptionDataset) -> None:
        self.items = items

    def set_epoch(self, epoch: int) -> None:
        self.items.set_epoch(epoch)

    @property
    def shares(self) -> Any:
        return self.items.shares

    def tokens(self) -> np.ndarray:
        return self.items.tokens()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        found = self.items.__getitems__(indices)
        return [{**item, "image": i, "seed": self._seed(i)} for item, i in zip(found, indices, strict=True)]

    def _seed(self, index: int) -> int:
        return int(np.random.default_rng((self.items.seed, self.items.epoch, max(index, 0))).integers(2**63))


class SampledCollator:
    """Batches of `CaptionCollator`, in training with int64 (B,) each: `image`, `seed`."""

    def __init__(self, captions: CaptionCollator) -> None:
        self.captions = captions

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.captions(items)
        for name in ("image", "seed"):
            if name in items[0]:
                batch[name] = torch.tensor([item[name] for item in items])
        return batch


def self_critical_data(data: dict[str, Any], log: TrainingLog) -> dict[str, Any]:
    """`CaptionTrainer`'s `train_dataset`, `data_collator` and `compute_metrics` -> those of `SelfCriticalTrainer`."""
    return {
        "train_dataset": SampledDataset(data["train_dataset"]),
        "data_collator": SampledCollator(data["data_collator"]),
        "compute_metrics": Guards(data["compute_metrics"], log),
    }


@dataclass(frozen=True)
class SelfCritical:
    """What self-critical training needs beside a model and images.

    Attributes:
        samples: captions drawn of each image.
        rewards: of the training images, by their number in the data set.
        decode: token rows -> captions.
        collator: packs the drawn captions.
        caption_tokens: of a training caption, on average, EOS included. The loss of all drawn captions is divided by it,
            so that it is one of a token, as cross-entropy is; a number of drawn tokens there would bias the gradient.
        xe_weight: of the cross-entropy of the training captions, in nats a token.
        kl_weight: of the divergence from `before`, in nats a token.
        before: the model that training starts from, or None without `kl_weight`.
    """

    samples: int
    rewards: Rewards
    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    collator: CaptionCollator
    caption_tokens: float
    xe_weight: float = 0.0
    kl_weight: float = 0.0
    before: Any = None

    @classmethod
    def of(
        cls,
        options: FinetuneOptions,
        cache: Cache,
        model: Any,
        collator: CaptionCollator,
        metrics: CaptionMetrics,
    ) -> SelfCritical:
        """What the options ask for, in the words of the evaluations. All ranks must call it."""
        train, tokenizer = cache["train"], metrics.tokenizer
        captions = train.column("captions")
        # Rank 0 first: the others then find the file, if that could be written.
        broadcast_from_rank_0(lambda: DocumentFrequencies.kept(cache.directory, captions, tokenizer, say) and None)
        frequencies = DocumentFrequencies.kept(cache.directory, captions, tokenizer)
        rewards = Rewards(captions, frequencies, parse_reward(options.reward or "cider"), tokenizer.words)
        tokens = CaptionDataset(train).tokens().sum() / train.rows.caption_counts().sum()
        frozen = options.freeze_encoder or options.cache_features
        before = first_phase(model, frozen) if options.kl_weight else None
        samples, xe, kl = options.samples_per_image or 5, options.xe_weight or 0.0, options.kl_weight or 0.0
        return cls(samples, rewards, metrics.decode, collator, float(tokens), xe, kl, before)


def first_phase(model: Any, frozen: bool) -> Any:
    """The model as it is now, to be compared with later. An encoder that stays frozen is shared with it, not copied."""
    encoder = plain_model(model).encoder
    before = copy.deepcopy(model, {id(encoder): encoder} if frozen else {})
    fuse_activations(before)
    return before.requires_grad_(False).eval()


def sampling_config(generation: GenerationConfig, samples: int) -> GenerationConfig:
    """Draws from the model's own distribution: nothing cut off, banned or sharpened, or the gradient were another's."""
    return GenerationConfig(
        do_sample=True, num_beams=1, num_return_sequences=samples, temperature=1.0, top_k=0, top_p=1.0,
        no_repeat_ngram_size=0, repetition_penalty=1.0, min_length=0, min_new_tokens=0,
        max_new_tokens=generation.max_length - 1, decoder_start_token_id=generation.decoder_start_token_id,
        bos_token_id=generation.bos_token_id, eos_token_id=generation.eos_token_id, pad_token_id=generation.pad_token_id,
    )  # fmt: skip


def check_sampling(model: Any, config: GenerationConfig) -> None:
    """
    Raises:
        ModelError: toolkit's own decoder can't draw from this model.
    """
    reason = unsupported(plain_model(model), config)
    if reason is not None:
        raise ModelError(f"--objective cider: captions can't be drawn from this model, because {reason}.")


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each reward less the mean of the image's others: (B, K) -> (B, K), whose rows add up to 0."""
    samples = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (samples / (samples - 1))


def policy_loss(logprobs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Minus the sum over tokens of log-probability times advantage, whose gradient is an estimate of minus that of the
    expected reward of a caption, times the number of captions (tests/training/test_self_critical.py lists them all).

    Args:
        logprobs: float32 (tokens, vocabulary).
        labels: int64 (tokens,), of drawn captions up to and including their EOS.
        weights: float32 (tokens,), of each token its caption's advantage.
    """
    return -(weights * logprobs.gather(1, labels[:, None])[:, 0]).sum()


def divergence(logprobs: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(model || before) of the next token, over the whole vocabulary: float32 (tokens, vocabulary) x 2 -> (tokens,)."""
    return (logprobs.exp() * (logprobs - before)).sum(dim=1)


class SelfCriticalTrainer(CaptionTrainer):
    """`CaptionTrainer` whose loss is of captions that it draws itself; evaluation is as there.

    Captions are drawn without dropout, from weights that no update has changed meanwhile.
    """

    SUMS = ("images", "samples", "tokens", "reward", "reward_spread", "ended", "entropy", "kl")

    def __init__(self, *args: Any, self_critical: SelfCritical, **kwargs: Any) -> None:
        self.phase = self_critical
        super().__init__(*args, **kwargs)
        self.sampling = sampling_config(self.generation["generation_config"], self.phase.samples)
        check_sampling(self.model, self.sampling)
        if isinstance(self.compute_metrics, Guards):
            self.compute_metrics.trainer = self
            self.add_callback(self.compute_metrics)
        self.drawn_from = 0.0  # images of this update, over all accumulated batches and ranks
        if self.phase.before is not None:
            self.phase.before.to(self.args.device)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        images = sum(int((batch["image"] != FILLER).sum()) for batch in batches)
        self.drawn_from = self._over_ranks([images])[0]
        return batches, tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A part of an update's loss, in which the sum over all parts is divided by numbers of the whole update."""
        phase, inputs = self.phase, dict(inputs)
        images, seeds = inputs.pop("image").tolist(), inputs.pop("seed").tolist()
        captions = {name: inputs.pop(name) for name in PACKED}
        features = self._features(plain_model(self.model), inputs)
        drawn, weights = self._draw(features.detach(), images, seeds)
        width = drawn["labels"].shape[1]
        both = _beside(drawn, captions) if phase.xe_weight else drawn
        decoder_inputs = {name: both[name] for name in PACKED[1:]}
        logits = model(encoder_outputs=(features,), **decoder_inputs).logits
        labels, used = drawn["labels"], drawn["labels"] != IGNORE_INDEX
        logprobs = logits[:, :width][used].float().log_softmax(-1)
        loss = policy_loss(logprobs, labels[used], weights[used])
        if phase.before is not None:
            kl = divergence(
                logprobs, self._before(features, inputs, drawn)[:, :width][used].float().log_softmax(-1)
            ).sum()
            loss = loss + phase.kl_weight * kl
            self.sums["kl"] += kl.detach()
        self.sums["entropy"] -= (logprobs.detach().exp() * logprobs.detach()).sum()
        loss = loss / (self.drawn_from * phase.samples * phase.caption_tokens)
        if phase.xe_weight:
            loss = loss + phase.xe_weight * caption_loss(logits[:, width:], captions["labels"], num_items_in_batch)
        # As Trainer does it: the mean over ranks of their gradients is then a sum.
        return loss * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)

    def _features(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """(B, S, D), with a gradient if the encoder is trained."""
        if "encoder_outputs" in inputs:
            return inputs["encoder_outputs"][0]
        with self.accelerator.autocast():
            return model.encoder(pixel_values=inputs["pixel_values"]).last_hidden_state

    def _before(self, features: torch.Tensor, inputs: dict[str, Any], drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the model that training started from, (B, L, vocabulary)."""
        before = self.phase.before
        with torch.no_grad(), self.accelerator.autocast():
            if "encoder_outputs" not in inputs and plain_model(before).encoder is not plain_model(self.model).encoder:
                features = self._features(plain_model(before), inputs)
            return before(encoder_outputs=(features,), **{name: drawn[name] for name in PACKED[1:]}).logits

    def _draw(
        self, features: torch.Tensor, images: list[int], seeds: list[int]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Captions of each image, packed as by `CaptionCollator`, and the advantage of each token, float32 (B, L)."""
        model = self.accelerator.unwrap_model(self.model)
        with self._timed("sampling_s"), resting(model), self.accelerator.autocast():
            found = decode(model, self.sampling, features=features, seeds=seeds)
        with self._timed("reward_s"):
            rewards = self._rewards(found, images)
            gained = advantages(rewards).numpy()
            rows = [_rows(caption.tokens, image) for caption, image in zip(found, images, strict=True)]
            drawn = self.phase.collator.packed(rows)
            weights = torch.zeros(drawn["labels"].shape)
            for row, (image, labels) in enumerate(zip(images, rows, strict=True)):
                if image != FILLER:
                    of_tokens = np.repeat(gained[row], (labels != IGNORE_INDEX).sum(axis=1))
                    weights[row, : len(of_tokens)] = torch.from_numpy(of_tokens)
        device = features.device
        return {name: value.to(device) for name, value in drawn.items()}, weights.to(device)

    def _rewards(self, found: Sequence[Found], images: Sequence[int]) -> torch.Tensor:
        """Float64 (B, K); those of a filler are 0. Counts what the log tells of drawn captions."""
        phase, sums = self.phase, self.sums
        texts = iter(phase.decode([tokens for image in found for tokens in image.tokens]))
        tokenize = phase.rewards.tokenize
        words = [[words_of(next(texts), tokenize) + [END] * ended for ended in image.ended] for image in found]
        real = [row for row, image in enumerate(images) if image != FILLER]
        rewards = torch.zeros(len(found), phase.samples, dtype=torch.float64)
        if real:
            values = phase.rewards([images[row] for row in real], [words[row] for row in real])
            rewards[real] = torch.from_numpy(values)
            sums["reward_spread"] += float(values.std(axis=1, ddof=1).sum())
        sums["images"] += len(real)
        sums["samples"] += len(real) * phase.samples
        sums["reward"] += float(rewards.sum())
        sums["tokens"] += sum(len(tokens) for row in real for tokens in found[row].tokens)
        sums["ended"] += sum(sum(found[row].ended) for row in real)
        return rewards

    # ---- what the log tells -----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`CaptionTrainer`'s, with means over the captions drawn since the last row, of all ranks."""
        if "eval_loss" not in logs:
            sums = dict(zip(self.SUMS, self._over_ranks([self.sums[name] for name in self.SUMS]), strict=True))
            if sums["samples"]:
                logs.update(
                    reward=sums["reward"] / sums["samples"], reward_spread=sums["reward_spread"] / sums["images"]
                )
                logs.update(
                    sample_ended=sums["ended"] / sums["samples"], sample_tokens=sums["tokens"] / sums["samples"]
                )
                logs.update(entropy=sums["entropy"] / sums["tokens"])
                if self.phase.before is not None:
                    logs.update(kl=sums["kl"] / sums["tokens"])
        super().log(logs, start_time)

    def _start_window(self) -> None:
        super()._start_window()
        self.window.update(sampling_s=0.0, reward_s=0.0)
        self.sums: dict[str, Any] = dict.fromkeys(self.SUMS, 0.0)

    def _over_ranks(self, values: Sequence[Any]) -> list[float]:
        """Sums over all ranks."""
        mine = torch.tensor([[float(value) for value in values]], device=self.args.device, dtype=torch.float32)
        return [float(value) for value in self.accelerator.gather(mine).sum(0)]


@contextmanager
def resting(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; afterwards as before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _rows(tokens: Sequence[Sequence[int]], image: int) -> np.ndarray:
    """Drawn captions as a cache's rows: int32 (K, T), -100 after their last token; all of it for a filler."""
    rows = np.full((len(tokens), max(map(len, tokens))), IGNORE_INDEX, dtype=np.int32)
    for row, caption in zip(rows, tokens, strict=True):
        if image != FILLER:
            row[: len(caption)] = caption
    return rows


def _beside(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two packed batches of the same images as one, in which neither's tokens see the other's."""
    joined = {name: torch.cat([one[name], other[name]], dim=1) for name in PACKED[1:3]}
    first, second = (batch["decoder_attention_mask"] for batch in (one, other))
    width = first.shape[-1]
    mask = first.new_zeros(len(first), 1, *(2 * [width + second.shape[-1]]))
    mask[..., :width, :width], mask[..., width:, width:] = first, second
    return {**joined, "decoder_attention_mask": mask}
