"""The decoder's steps: what it keeps of each image, and one more token for each of its captions.

An image's captions (its beams, or what is drawn for it) are rows of queries over the same keys and values. Those of
cross-attention are then projected and kept once an image, not once a beam, and never move. Those of self-attention are
written once, at the place of their position and row, and never move either: which of them a row sees, its ancestors, is
a mask that is reordered in their stead. transformers' own decoder modules do the arithmetic; they only find another
attention function and other caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache, EncoderDecoderCache
from transformers.pytorch_utils import Conv1D

from toolkit.modeling import first_position

DECODERS = ("gpt2", "bert", "roberta", "xlm-roberta", "camembert")  # each compared with `generate` in the tests
SHARED = "toolkit_shared"


def shared_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One query a row, the rows of an image over the keys of that image.

    Args:
        query: (images * rows, heads, 1, d)
        key, value: (images, heads, keys, d)
        attention_mask: bool (images, 1, rows, keys), or None where all is seen.

    Returns:
        (images * rows, 1, heads, d), and None for the weights.
    """
    total, heads, _, d = query.shape
    images = key.shape[0]
    folded = query.reshape(images, total // images, heads, d).transpose(1, 2)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2).reshape(total, 1, heads, d), None


AttentionInterface.register(SHARED, shared_attention)


class _Layer:
    """Where transformers looks for a layer's cross-attention."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values


class _Written(Cache):
    """Self-attention: writes each row's key and value at `places`, returns those of all positions so far."""

    def __init__(self, steps: Steps, places: torch.Tensor, images: int, used: int) -> None:
        self.steps, self.places, self.images, self.used = steps, places, images, used
        self.layers = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen = []
        for kept, new in zip(self.steps.own[layer_idx], (key_states, value_states), strict=True):
            rows, heads, _, d = new.shape
            kept.view(-1, heads * d).index_copy_(0, self.places, new.transpose(1, 2).reshape(rows, heads * d))
            seen.append(kept[: self.images, : self.used].transpose(1, 2))
        return seen[0], seen[1]


class _Caches(EncoderDecoderCache):
    """Both, as the decoder asks for them; nothing of the encoder's is to be projected again."""

    def __init__(self, steps: Steps, own: _Written, images: int) -> None:
        cross = Cache.__new__(Cache)
        cross.layers = [_Layer(k[:images], v[:images]) for k, v in steps.cross]  # type: ignore[misc]
        self.self_attention_cache, self.cross_attention_cache = own, cross  # type: ignore[assignment]
        self.is_updated = dict.fromkeys(range(len(steps.cross)), True)


class Steps:
    """The decoder's memory for up to `slots` images of `rows` captions each.

    Images fill the slots from the first on; `active` of them are in use.

    Attributes:
        cross: keys and values of each layer, (slots, heads, S, d).
        own: keys and values of each layer, (slots, length * rows, heads, d); position p of row r is entry p * rows + r.
        seen: bool (slots, 1, rows, length * rows), the entries that a row sees.
        age: int64 (slots,), the position of the last token.
    """

    def __init__(self, decoder: nn.Module, slots: int, rows: int, length: int) -> None:
        self.decoder, self.slots, self.rows, self.length = decoder, slots, rows, length
        self.device = next(decoder.parameters()).device
        self.first = first_position(decoder)
        self.active = 0
        self.cross: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.seen = torch.zeros(slots, 1, rows, length * rows, dtype=torch.bool, device=self.device)
        self.age = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.row = torch.arange(rows, device=self.device)
        self.slot = torch.arange(slots, device=self.device)[:, None]
        self.state = [self.seen, self.age]

    def admit(self, states: torch.Tensor, start: int) -> torch.Tensor:
        """Takes images in, and their start token once for all rows, which are the same as yet.

        Args:
            states: (n, S, D), the encoder's; n at most `slots - active`.

        Returns:
            Logits of the first token, (n, vocabulary).
        """
        n, low = states.shape[0], self.active
        first = self.first - 1 if self.first and start == self.first - 1 else self.first
        caches = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self.decoder(
            input_ids=torch.full((n, 1), start, device=self.device),
            position_ids=torch.full((n, 1), first, device=self.device),
            attention_mask=torch.ones(n, 1, 1, 1, dtype=torch.bool, device=self.device),
            encoder_hidden_states=states,
            past_key_values=caches,
            use_cache=True,
        ).logits[:, -1]
        cross, own = caches.cross_attention_cache.layers, caches.self_attention_cache.layers
        if not self.cross:
            for one, other in zip(cross, own, strict=True):
                heads, d = other.keys.shape[1], other.keys.shape[3]
                self.cross.append(tuple(x.new_empty(self.slots, *x.shape[1:]) for x in (one.keys, one.values)))  # type: ignore[arg-type]
                # Zeros: an entry that nobody sees is still multiplied by its weight of 0, and 0 times NaN is NaN.
                self.own.append(
                    tuple(
                        x.new_zeros(self.slots, self.length * self.rows, heads, d) for x in (other.keys, other.values)
                    )  # type: ignore[arg-type]
                )
        for layer, (one, other) in enumerate(zip(cross, own, strict=True)):
            for kept, new in zip(self.cross[layer], (one.keys, one.values), strict=True):
                kept[low : low + n] = new
            for kept, new in zip(self.own[layer], (other.keys, other.values), strict=True):
                kept[low : low + n, 0] = new[:, :, 0]
        self.seen[low : low + n] = False
        self.seen[low : low + n, ..., 0] = True
        self.age[low : low + n] = 0
        self.active += n
        return logits

    def step(self, tokens: torch.Tensor, parents: torch.Tensor | None, positions: int) -> torch.Tensor:
        """Logits of the next token for each row of the first slots: (images, rows, vocabulary).

        Args:
            tokens: int64 (images, rows), the last one of each row.
            parents: int64 (images, rows), the row that each continues; None where each continues itself.
            positions: no image is older than this.
        """
        images, rows, used = len(tokens), self.rows, positions * self.rows
        age = self.age[:images].add_(1).clamp_(max=self.length - 1)  # it stays there where nobody looks any more
        seen = self.seen[:images, :, :, :used]
        if parents is not None:
            seen.copy_(seen.gather(2, parents[:, None, :, None].expand(seen.shape)))
        entries = age[:, None] * rows + self.row
        seen.scatter_(3, entries[:, None, :, None], True)
        places = (self.slot[:images] * (self.length * rows) + entries).flatten()
        positions_now = (age + self.first)[:, None].expand(images, rows)
        if self.first:  # RoBERTa-likes give their padding token a position of its own wherever it stands
            positions_now = positions_now.masked_fill(tokens == self.first - 1, self.first - 1)
        return self.decoder(
            input_ids=tokens.reshape(-1, 1),
            position_ids=positions_now.reshape(-1, 1),
            attention_mask=seen,
            encoder_hidden_states=self.cross[0][0],  # never looked at: its keys and values are there
            past_key_values=_Caches(self, _Written(self, places, images, used), images),
            use_cache=True,
        ).logits.view(images, rows, -1)

    def move(self, source: int, target: int) -> None:
        """The image in slot `source` takes the place of the one in `target`."""
        for pair in (*self.cross, *self.own, (self.seen, self.age)):
            for kept in pair:
                kept[target] = kept[source]


# ---- weights laid out for the processor -----------------------------------------------------------------------------

_packed: WeakKeyDictionary[nn.Module, tuple[Any, Any]] = WeakKeyDictionary()


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """For the time of the block: decoder attention shared by an image's rows, and on a CPU weights in oneDNN's layout.

    A step multiplies a few rows with every weight once; in the plain layout half of its time goes into laying weights
    out anew. The copy costs the memory of the weights again and is kept as long as they don't change.
    """
    configs = {id(m.config): m.config for m in model.decoder.modules() if hasattr(m, "config")}  # type: ignore[union-attr]
    before = [(config, config._attn_implementation) for config in configs.values()]
    linears = [m for m in model.modules() if type(m) in (nn.Linear, Conv1D)] if _can_pack(model) else []
    try:
        for config, _ in before:
            config._attn_implementation_internal = SHARED
        for module in linears:
            module.forward = _packed_forward(module)  # type: ignore[method-assign]
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        for module in linears:
            del module.forward


def _can_pack(model: nn.Module) -> bool:
    weight = next(model.parameters())
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _packed_forward(module: nn.Module) -> Any:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    state = (weight.data_ptr(), None if weight.is_inference() else weight._version)
    known = _packed.get(module)
    if known is None or known[0] != state:
        plain = weight.detach() if isinstance(module, nn.Linear) else weight.detach().t().contiguous()
        known = _packed[module] = state, torch.ops.mkldnn._reorder_linear_weight(plain, ROWS_TO_EXPECT)
    packed, bias = known[1], module.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return forward


ROWS_TO_EXPECT = 32  # a batch of 8 images with 4 beams; other numbers work as well
