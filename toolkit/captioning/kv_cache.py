"""The decoder's key-value cache, and its steps: one more token for each caption of each image.

The captions of an image (its beams, or its samples) are rows of queries. Keys and values of cross-attention are projected
once per image, not once per beam, and shared by its rows. Keys and values of self-attention are written once, by position
and row, and never moved: when beams are reordered, only the mask changes that says which entries (its ancestors) a row
attends to. transformers' own decoder modules compute; they get another attention function and these caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import AttentionInterface, Cache, EncoderDecoderCache
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from toolkit.models.packed import ROWS_TO_EXPECT, attention_by_products, cross_dtype
from toolkit.models.special_tokens import first_position
from toolkit.models.twins import twin_of

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
    """Attention with one query per row; the rows of an image share the keys and values of that image.

    Args:
        query: (images * rows, heads, 1, d)
        key, value: (images, heads, keys, d)
        attention_mask: bool (images, 1, rows, keys), or None to attend to all.

    Returns:
        (images * rows, 1, heads, d), and None for the weights.
    """
    total, heads, _, d = query.shape
    images = key.shape[0]
    folded = query.reshape(images, total // images, heads, d).transpose(1, 2).to(key.dtype)
    if attention_mask is None and key.dtype is torch.bfloat16 and key.device.type == "cpu":
        out = attention_by_products(folded, key, value, scaling)
    else:
        out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2).reshape(total, 1, heads, d), None


AttentionInterface.register(SHARED, shared_attention)


class _SelfAttentionCache(Cache):
    """Writes each row's key and value at `places`, and returns those of all entries so far."""

    def __init__(self, steps: Steps, images: slice, places: torch.Tensor, used: int) -> None:
        self.steps, self.images, self.places, self.used = steps, images, places, used
        self.layers: list[Any] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, _, d = key_states.shape
        if layer_idx == len(self.steps.self_kv):
            # Zeros: a masked entry is still multiplied by its weight of 0, and 0 times NaN is NaN.
            shape = (self.steps.slots, self.steps.length * self.steps.rows, heads, d)
            self.steps.self_kv.append((key_states.new_zeros(shape), key_states.new_zeros(shape)))
        keys, values = self.steps.self_kv[layer_idx]
        for kept, new in ((keys, key_states), (values, value_states)):
            kept.view(-1, heads * d).index_copy_(0, self.places, new.transpose(1, 2).reshape(rows, heads * d))
        return keys[self.images, : self.used].transpose(1, 2), values[self.images, : self.used].transpose(1, 2)


class _CrossAttentionCache(Cache):
    """Stores the keys and values of new images."""

    def __init__(self, steps: Steps, images: slice) -> None:
        self.steps, self.images = steps, images
        self.layers = [_Layer(keys[images], values[images]) for keys, values in steps.cross_kv]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.steps.cross_dtype is not None:
            key_states, value_states = key_states.to(self.steps.cross_dtype), value_states.to(self.steps.cross_dtype)
        if layer_idx == len(self.steps.cross_kv):
            shape = (self.steps.slots, *key_states.shape[1:])
            self.steps.cross_kv.append((key_states.new_empty(shape), key_states.new_empty(shape)))
        keys, values = self.steps.cross_kv[layer_idx]
        keys[self.images], values[self.images] = key_states, value_states
        return key_states, value_states


class _Layer:
    """Where transformers looks for a layer's existing keys and values."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values


class _Caches(EncoderDecoderCache):
    """Both caches, as the decoder expects them; `projected` if those of cross-attention are filled."""

    def __init__(self, self_attention: _SelfAttentionCache, cross: _CrossAttentionCache, projected: bool) -> None:
        self.self_attention_cache, self.cross_attention_cache = self_attention, cross
        self.is_updated = dict.fromkeys(range(len(cross.layers)), projected)


class Steps:
    """The decoder's state for up to `slots` images of `rows` captions each.

    Images fill the slots from the first on; `active` of them are in use.

    Attributes:
        cross_kv: cross-attention's keys and values of each layer, (slots, heads, S, d).
        self_kv: self-attention's keys and values of each layer, (slots, length * rows, heads, d); position p of row r is
            entry p * rows + r.
        mask: bool (slots, 1, rows, length * rows), the entries that a row attends to.
        position: int64 (slots,), of the last token.
    """

    def __init__(self, decoder: nn.Module, slots: int, rows: int, length: int) -> None:
        self.decoder, self.slots, self.rows, self.length = decoder, slots, rows, length
        self.device = next(decoder.parameters()).device
        self.first = first_position(decoder)
        self.active = 0
        self.cross_dtype = cross_dtype(decoder)
        self.cross_kv: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.self_kv: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.mask = torch.zeros(slots, 1, rows, length * rows, dtype=torch.bool, device=self.device)
        self.position = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.row = torch.arange(rows, device=self.device)
        self.slot = torch.arange(slots, device=self.device)[:, None]
        self.state = [self.mask, self.position]

    def admit(self, features: torch.Tensor, start: int, prefix: Sequence[int] = ()) -> torch.Tensor:
        """Adds images, and decodes their start token once for all rows, which are still the same; then the prefix.

        Args:
            features: the encoder's, (n, S, D); n at most `slots - active`.
            prefix: tokens that each caption begins with; only where no other images are in the slots.

        Returns:
            Logits of the first token after these, (n, 1, vocabulary), behind a prefix (n, rows, vocabulary).
        """
        n = features.shape[0]
        new = slice(self.active, self.active + n)
        self.active += n
        self.mask[new] = False
        self.mask[new, ..., 0] = True
        self.position[new] = 0
        logits = self._decode(
            torch.full((n, 1), start, device=self.device),
            self.position[new, None],
            self.mask[new, :, :1, :1],
            features,
            _Caches(
                _SelfAttentionCache(self, new, self.slot[new, 0] * (self.length * self.rows), 1),
                _CrossAttentionCache(self, new),
                projected=False,
            ),
        )[:, None]
        for i, token in enumerate(prefix):
            rows = torch.full((n, self.rows), token, device=self.device)
            # In a prompt transformers does not count padding tokens as positions of RoBERTa-likes, behind it it does.
            padding = [start, *prefix[:i]].count(self.first - 1) if self.first else 0
            logits = self.step(rows, None, i + 2, padding)
        return logits

    def step(
        self, tokens: torch.Tensor, parents: torch.Tensor | None, positions: int, skipped: int = 0
    ) -> torch.Tensor:
        """Logits of the next token for each row of the first slots: (images, rows, vocabulary).

        Args:
            tokens: int64 (images, rows), the last token of each row.
            parents: int64 (images, rows), the row that each row continues; None if each continues itself.
            positions: no image has more tokens than this.
            skipped: tokens so far that do not count as a position.
        """
        images, rows, used = len(tokens), self.rows, positions * self.rows
        now = slice(0, images)
        position = self.position[now].add_(1).clamp_(max=self.length - 1)  # an image that is done may go on, unread
        mask = self.mask[now, :, :, :used]
        if parents is not None:
            mask.copy_(mask.gather(2, parents[:, None, :, None].expand(mask.shape)))
        entries = position[:, None] * rows + self.row
        mask.scatter_(3, entries[:, None, :, None], True)
        places = (self.slot[now] * (self.length * rows) + entries).flatten()
        return self._decode(
            tokens.reshape(-1, 1),
            (position - skipped)[:, None].expand(images, rows).reshape(-1, 1),
            mask,
            self.cross_kv[0][0],  # not read: its keys and values are cached
            _Caches(_SelfAttentionCache(self, now, places, used), _CrossAttentionCache(self, now), projected=True),
        ).view(images, rows, -1)

    def _decode(
        self, tokens: torch.Tensor, position: torch.Tensor, mask: torch.Tensor, features: torch.Tensor, caches: _Caches
    ) -> torch.Tensor:
        positions = position + self.first
        if self.first:  # RoBERTa-likes give their padding token a position of its own, wherever it is
            positions = positions.masked_fill(tokens == self.first - 1, self.first - 1)
        return self.decoder(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            encoder_hidden_states=features,
            past_key_values=caches,
            use_cache=True,
        ).logits[:, -1]

    def move(self, source: int, target: int) -> None:
        """Copies the image in slot `source` to slot `target`."""
        for pair in (*self.cross_kv, *self.self_kv, (self.mask, self.position)):
            for kept in pair:
                kept[target] = kept[source]


# ---- the model, prepared --------------------------------------------------------------------------------------------

PACK_FROM = 1 << 18  # weights of a matrix; smaller ones stay in the processor's caches
_packed: WeakKeyDictionary[nn.Module, tuple[Any, torch.Tensor]] = WeakKeyDictionary()


def prepared(model: nn.Module) -> Any:
    """The model's twin for decoding: decoder attention shared by an image's rows, and on a CPU weights in oneDNN's layout.

    A step multiplies a few rows with each weight matrix once, and without packing half of that time goes into the layout
    of the weights. The packed copies take the memory of the weights again, and are kept until the weights change.
    """
    twin = twin_of(model, SHARED)
    for module in twin.modules():
        if type(module) in (nn.Linear, Conv1D) and _can_pack(module.weight):
            module.forward = _packed_forward(module)
        elif type(module) is NewGELUActivation:  # one pass over memory instead of eight; the same formula
            module.forward = partial(gelu, approximate="tanh")
        else:
            vars(module).pop("forward", None)
    return twin


def _can_pack(weight: Any) -> bool:
    return (
        weight.numel() >= PACK_FROM
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")  # what torch.compile uses; not promised to stay
    )


def _packed_forward(module: nn.Module) -> Any:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    state = weight.data_ptr(), None if weight.is_inference() else weight._version
    known = _packed.get(module)
    if known is None or known[0] != state:
        plain = weight.detach() if isinstance(module, nn.Linear) else weight.detach().t().contiguous()
        known = _packed[module] = state, torch.ops.mkldnn._reorder_linear_weight(plain, ROWS_TO_EXPECT)
    packed, bias = known[1], module.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return forward
