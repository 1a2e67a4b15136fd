"""Cross-attention for images with several captions each, with keys and values projected once per image.

A batch holds B images and B x n captions. The decoder's queries are (B * n, heads, T, d), the encoder's keys and values
(B, heads, S, d): the captions of an image are folded into the query axis, (B, heads, n * T, d), so that attention sees
equal batches, and unfolded after. Self-attention and the encoder pass through untouched, and with n = 1 nothing is
folded. The mathematics is that of repeating the encoder's states n times; the arithmetic is a third of it.

Registered with transformers' own attention interface, so the model needs no wrapper: `model(pixel_values=[B],
decoder_input_ids=[B * n, T])`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "toolkit_grouped_sdpa"


def grouped_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA, which also takes keys of B rows for queries of B * n rows; returns (B * n, T, heads, d)."""
    rows, heads, length, size = query.shape
    images = key.shape[0]
    if images == rows:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # An image is seen whole by every token of each of its captions, so there is no mask to fold.
    kwargs["is_causal"] = False
    folded = query.view(images, rows // images, heads, length, size).transpose(1, 2)
    folded = folded.reshape(images, heads, -1, size)
    output, _ = sdpa_attention_forward(module, folded, key, value, None, **kwargs)
    return output.view(rows, length, heads, size), None


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def grouped_captions(model: Any) -> Iterator[None]:
    """Within it, `model` takes several captions an image; afterwards its configs are as they were."""
    # Modules keep config objects of their own, which `set_attn_implementation` does not reach.
    configs = {id(m.config): m.config for m in model.decoder.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
