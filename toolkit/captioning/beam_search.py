"""Which token comes next: beam search, greedy search or sampling, each as `transformers.generate` does it.

A search holds the captions of up to `slots` images, `rows` captions per image. All of its state is on the device, so
steps need no data from the host. Images in different slots may be at different lengths; only the settings are the same for
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

NEVER = -1e9  # the value that generate uses, so that ties come out the same


@dataclass(frozen=True)
class Found:
    """The captions of one image, best first.

    Attributes:
        tokens: without the start token, up to and including EOS; with the tokens that each caption begins with.
        scores: mean log-probability of the tokens as the model gives it, before bans and penalties; those that each
            caption begins with are not counted.
    """

    tokens: list[list[int]]
    scores: list[float]
    ended: list[bool]


def longest(config: GenerationConfig, prefix: int = 0) -> int:
    """Tokens of the longest caption, start token included; transformers' default is 20 new ones.

    Args:
        prefix: tokens that each caption begins with, behind the start token.
    """
    if config.max_new_tokens is not None:
        return config.max_new_tokens + 1 + prefix
    return config.max_length if config.max_length is not None else 21 + prefix


class BannedSequences:
    """The token sequences of `bad_words_ids`: the last token of each is banned behind its others.

    As `NoBadWordsLogitsProcessor`; EOS alone is not banned.
    """

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        banned = [sequence for sequence in config.bad_words_ids or () if sequence != [config.eos_token_id]]
        self.alone = torch.tensor(
            [sequence[0] for sequence in banned if len(sequence) == 1], device=device, dtype=torch.int64
        )
        self.behind = []  # for each number of tokens before the last: those (m, tokens), and the last ones (m,)
        for size in sorted({len(sequence) for sequence in banned} - {1}):
            rows = torch.tensor([sequence for sequence in banned if len(sequence) == size], device=device)
            self.behind.append((rows[:, :-1], rows[:, -1], torch.arange(1 - size, 0, device=device)))

    def __call__(self, scores: torch.Tensor, tokens: torch.Tensor, length: torch.Tensor) -> None:
        """In place; shapes as `process` has them."""
        scores.index_fill_(2, self.alone, -torch.inf)
        for before, last, back in self.behind:
            place = (length[:, None] + back).clamp(min=0)
            tail = tokens.gather(2, place[:, None].expand(-1, tokens.shape[1], -1))
            same = (tail[:, :, None] == before).all(3) & (length >= len(back))[:, None, None]
            scores.index_add_(2, last, torch.zeros_like(same, dtype=scores.dtype).masked_fill_(same, -torch.inf))


def process(
    scores: torch.Tensor,
    tokens: torch.Tensor,
    length: torch.Tensor,
    config: GenerationConfig,
    banned: BannedSequences | None = None,
    prefix: int = 0,
) -> torch.Tensor:
    """Repetition penalty, banned n-grams, banned sequences and the least length, in place, in `generate`'s order.

    Args:
        scores: float32 (n, rows, vocabulary).
        tokens: int64 (n, rows, T) with the start token first; after `length` anything.
        length: int64 (n,), tokens so far, start token included.
        prefix: tokens that each caption begins with, which `min_new_tokens` does not count.
    """
    total = tokens.shape[2]
    place = torch.arange(total, device=tokens.device)
    penalty = config.repetition_penalty
    if penalty is not None and penalty != 1.0:
        used = torch.where(
            place < length[:, None, None], tokens, tokens[..., :1]
        )  # the start token as a placeholder after the end
        old = scores.gather(2, used)
        scores.scatter_(2, used, torch.where(old < 0, old * penalty, old / penalty))
    size = config.no_repeat_ngram_size or 0
    if 0 < size <= total:
        # The last size - 1 tokens against those before each position; if they are equal, the token there is banned.
        back = (length[:, None] + torch.arange(1 - size, 0, device=tokens.device)).clamp(min=0)
        last = tokens.gather(2, back[:, None].expand(-1, tokens.shape[1], -1))
        same = (tokens.unfold(2, size, 1)[..., : size - 1] == last[:, :, None]).all(3)
        same &= place[size - 1 :] < length[:, None, None]
        scores.scatter_add_(
            2, tokens[..., size - 1 :], torch.zeros_like(same, dtype=scores.dtype).masked_fill_(same, -torch.inf)
        )
    if banned is not None:
        banned(scores, tokens, length)
    # Where both are given, generate goes by the new ones.
    least = (config.min_length or 0) if config.min_new_tokens is None else config.min_new_tokens + 1 + prefix
    if least > 0:
        scores[..., config.eos_token_id].masked_fill_(length[:, None] < least, -torch.inf)
    return scores


class _Search:
    """What both searches have: the captions so far.

    Attributes:
        prefix: tokens that each caption begins with, behind the start token.
        limit: tokens of the longest caption, start token included.
        tokens: int64 (slots, rows, limit), the start token first.
        length: int64 (slots,), tokens so far.
    """

    def __init__(
        self, config: GenerationConfig, slots: int, device: torch.device, rows: int, prefix: Sequence[int]
    ) -> None:
        self.config, self.slots, self.rows = config, slots, rows
        self.prefix = torch.tensor([config.decoder_start_token_id, *prefix], device=device)
        self.limit = longest(config, len(prefix))
        self.tokens = torch.full((slots, rows, self.limit), config.pad_token_id, device=device)
        self.length = torch.ones(slots, dtype=torch.int64, device=device)
        self.banned = BannedSequences(config, device) if config.bad_words_ids else None

    @property
    def given(self) -> int:
        """Tokens of the prefix."""
        return len(self.prefix) - 1

    def _begin(self, low: int, high: int) -> None:
        self.tokens[low:high] = self.config.pad_token_id
        self.tokens[low:high, :, : len(self.prefix)] = self.prefix
        self.length[low:high] = len(self.prefix)

    def _process(self, scores: torch.Tensor, low: int, high: int) -> torch.Tensor:
        here = slice(low, high)
        return process(scores, self.tokens[here], self.length[here], self.config, self.banned, self.given)


class BeamSearch(_Search):
    """Beam search; the arithmetic of `GenerationMixin._beam_search`, image by image."""

    def __init__(self, config: GenerationConfig, slots: int, device: torch.device, prefix: Sequence[int] = ()) -> None:
        super().__init__(config, slots, device, config.num_beams, prefix)
        rows = self.rows
        self.scores = torch.zeros(slots, rows, device=device)
        self.logprobs = torch.zeros(slots, rows, device=device)  # log-probability as the model gives it
        self.parents: torch.Tensor | None = torch.zeros(slots, rows, dtype=torch.int64, device=device)
        self.last = torch.zeros(slots, rows, dtype=torch.int64, device=device)
        self.improvable = torch.ones(slots, 1, dtype=torch.bool, device=device)
        self.done = torch.zeros(slots, dtype=torch.bool, device=device)
        self.best = torch.zeros_like(self.tokens)  # finished captions
        self.best_length = torch.ones(slots, rows, dtype=torch.int64, device=device)
        self.best_scores = torch.zeros(slots, rows, device=device)
        self.best_logprobs = torch.zeros(slots, rows, device=device)
        self.finished = torch.zeros(slots, rows, dtype=torch.bool, device=device)
        # length ** penalty by new tokens, in double precision as Python has it
        penalty = 1.0 if config.length_penalty is None else config.length_penalty
        new = (max(1, n - self.given) for n in range(self.limit + 1))  # by tokens, those of the prefix left out
        self.divisor = torch.tensor([float(n) ** penalty for n in new], device=device)
        self.farthest = self.limit - 1 if config.early_stopping == "never" and penalty > 0 else None
        self.state = [
            self.tokens, self.length, self.scores, self.logprobs, self.parents, self.last, self.improvable, self.done,
            self.best, self.best_length, self.best_scores, self.best_logprobs, self.finished,
        ]  # fmt: skip

    def admit(self, low: int, high: int, seeds: Sequence[int]) -> None:
        self._begin(low, high)
        self.scores[low:high] = NEVER
        self.scores[low:high, 0] = 0  # the rows are still the same: only one may continue
        self.logprobs[low:high] = 0
        self.improvable[low:high] = True
        self.done[low:high] = False
        self.best[low:high] = self.config.pad_token_id
        self.best_scores[low:high] = NEVER
        self.finished[low:high] = False

    def advance(self, logits: torch.Tensor, low: int, high: int) -> None:
        """Adds a token to the captions in slots low to high.

        Args:
            logits: (n, rows, vocabulary), or (n, 1, vocabulary) while the rows are still the same.
        """
        n, rows, here = high - low, self.rows, slice(low, high)
        config, length = self.config, self.length[here]
        scores = logits.float().log_softmax(-1).expand(-1, rows, -1).contiguous()
        model = scores.clone() if config.repetition_penalty not in (None, 1.0) else scores
        scores = self._process(scores, low, high)
        vocabulary = scores.shape[2]

        def of(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            """Rows of (n, m, ...) by int64 (n, k)."""
            return tensor.gather(
                1, index.view(*index.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
            )

        # Twice as many candidates as beams: even if all beams end, enough continue.
        top, index = (scores + self.scores[here, :, None]).view(n, -1).topk(2 * rows)
        parents, token = index // vocabulary, index % vocabulary
        logprobs = of(self.logprobs[here], parents) + model.view(n, -1).gather(1, index)
        candidates = of(self.tokens[here], parents)
        place = length.clamp(max=self.limit - 1)
        candidates.scatter_(2, place.view(n, 1, 1).expand(-1, 2 * rows, 1), token[..., None])
        hits = (token == config.eos_token_id) | (length[:, None] + 1 >= self.limit)

        going = top + hits * NEVER
        chosen = going.topk(rows)[1]

        ending = hits.clone()
        ending[:, rows:] = False  # the spare candidates may only continue
        ended = top / self.divisor[length][:, None]
        if config.early_stopping is True:
            ended = ended + self.finished[here].all(1, keepdim=True) * NEVER
        ended = ended + ~self.improvable[here] * NEVER
        ended = ended + ~ending * NEVER
        scores_now, kept = torch.cat([self.best_scores[here], ended], 1).topk(rows)
        self.best[here] = of(torch.cat([self.best[here], candidates], 1), kept)
        self.best_logprobs[here] = of(torch.cat([self.best_logprobs[here], logprobs], 1), kept)
        lengths = length[:, None].expand(-1, 2 * rows)
        self.best_length[here] = of(torch.cat([self.best_length[here], lengths], 1), kept)
        self.finished[here] = of(torch.cat([self.finished[here], ending], 1), kept)
        self.best_scores[here] = scores_now

        self.tokens[here] = of(candidates, chosen)
        self.scores[here] = of(going, chosen)
        self.logprobs[here] = of(logprobs, chosen)
        self.parents[here] = of(parents, chosen)  # type: ignore[index]
        self.last[here] = of(token, chosen)
        length.add_(1).clamp_(max=self.limit)  # an image that is done may go on, unread

        far = self.divisor[self.farthest] if self.farthest is not None else self.divisor[length - 1][:, None]
        worst = torch.where(self.finished[here], scores_now.min(1, keepdim=True)[0], NEVER)
        self.improvable[here] &= (self.scores[here, :1] / far > worst).any(1, keepdim=True)
        done = ~self.improvable[here, 0] | hits.all(1)
        if config.early_stopping is True:
            done = done | self.finished[here].all(1)
        self.done[here] |= done
        self.improvable[here] &= ~done[:, None]

    def result(self, slot: int) -> Found:
        n = self.config.num_return_sequences or 1
        lengths = self.best_length[slot, :n].tolist()
        tokens = [row[1 : 1 + m] for row, m in zip(self.best[slot, :n].tolist(), lengths, strict=True)]
        logprobs = self.best_logprobs[slot, :n].tolist()
        scores = [total / (m - self.given) for total, m in zip(logprobs, lengths, strict=True)]
        return Found(tokens, scores, [row[-1] == self.config.eos_token_id for row in tokens])


class Sampling(_Search):
    """Greedy search, or sampling: each row continues itself.

    An image's random numbers come from its own seed, so its captions do not depend on the other images.
    """

    def __init__(self, config: GenerationConfig, slots: int, device: torch.device, prefix: Sequence[int] = ()) -> None:
        super().__init__(config, slots, device, config.num_return_sequences or 1, prefix)
        rows = self.rows
        self.logprobs = torch.zeros(slots, rows, device=device)
        self.parents: torch.Tensor | None = None  # each row continues itself
        self.last = torch.zeros(slots, rows, dtype=torch.int64, device=device)
        self.ended = torch.zeros(slots, rows, dtype=torch.bool, device=device)
        self.ends = torch.zeros(slots, rows, dtype=torch.int64, device=device)
        self.done = torch.zeros(slots, dtype=torch.bool, device=device)
        self.random = torch.zeros(slots, rows, self.limit, device=device)
        self.state = [self.tokens, self.length, self.logprobs, self.last, self.ended, self.ends, self.done, self.random]

    def admit(self, low: int, high: int, seeds: Sequence[int]) -> None:
        self._begin(low, high)
        self.logprobs[low:high] = 0
        self.ended[low:high] = False
        self.ends[low:high] = 0
        self.done[low:high] = False
        if self.config.do_sample:
            for slot, seed in zip(range(low, high), seeds, strict=True):
                source = torch.Generator().manual_seed(seed)
                self.random[slot] = torch.rand(self.rows, self.limit, generator=source)

    def advance(self, logits: torch.Tensor, low: int, high: int) -> None:
        """As `BeamSearch.advance`."""
        here, config, length = slice(low, high), self.config, self.length[low:high]
        raw = logits.float().expand(-1, self.rows, -1).contiguous()
        model = raw.log_softmax(-1)
        scores = self._process(raw, low, high)
        going = ~self.ended[here] & (length < self.limit)[:, None]
        place = length.clamp(max=self.limit - 1)[:, None, None].expand(-1, self.rows, 1)
        if config.do_sample:
            token = draw(warp(scores, config), self.random[here].gather(2, place - 1))
        else:
            token = scores.argmax(-1)
        token = torch.where(going, token, config.pad_token_id)
        self.logprobs[here] += model.gather(2, token[..., None])[..., 0] * going
        self.ends[here] += going
        self.ended[here] |= token.eq(config.eos_token_id) & going
        self.tokens[here].scatter_(2, place, token[..., None])
        self.last[here] = token
        length.add_(1).clamp_(max=self.limit)
        self.done[here] = self.ended[here].all(1) | (length >= self.limit)

    def result(self, slot: int) -> Found:
        lengths = self.ends[slot].tolist()
        rows = [row[1 : 1 + self.given + m] for row, m in zip(self.tokens[slot].tolist(), lengths, strict=True)]
        scores = [logprobs / m for logprobs, m in zip(self.logprobs[slot].tolist(), lengths, strict=True)]
        ended = self.ended[slot].tolist()
        order = sorted(range(len(rows)), key=lambda i: -scores[i])
        return Found([rows[i] for i in order], [scores[i] for i in order], [ended[i] for i in order])


def warp(scores: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
    """Probabilities to draw from, float32 (..., vocabulary): temperature, then top-k, then top-p."""
    if config.temperature is not None and config.temperature != 1.0:
        scores = scores / config.temperature
    if config.top_k:
        least = scores.topk(min(config.top_k, scores.shape[-1]))[0][..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if config.top_p is not None and config.top_p < 1.0:
        ordered, index = scores.sort(-1)  # the least likely first: dropped up to 1 - top_p, but never the last
        gone = ordered.softmax(-1).cumsum(-1) <= 1 - config.top_p
        gone[..., -1:] = False
        scores = scores.masked_fill(gone.scatter(-1, index, gone), -torch.inf)
    return scores.softmax(-1)


def draw(probabilities: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative probability passes `random`: int64 (n, rows).

    Args:
        probabilities: (n, rows, vocabulary).
        random: from 0 to below 1, (n, rows, 1).
    """
    sums = probabilities.double().cumsum(-1)
    return torch.searchsorted(sums, random.double() * sums[..., -1:], right=True)[..., 0]


def search_for(config: GenerationConfig, slots: int, device: torch.device, prefix: Sequence[int] = ()) -> Any:
    return (BeamSearch if config.num_beams > 1 else Sampling)(config, slots, device, prefix)
