"""A second model over the same weights, where decoding and heat maps may change the attention.

The user's own model stays as it is: it may be trained, or used by `generate` in another thread, while toolkit captions.
"""

from __future__ import annotations

import copy
from itertools import chain
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_twins: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, nn.Module]]] = WeakKeyDictionary()
_turns: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_looking_up = Lock()


def turn(model: nn.Module) -> Any:
    """A lock to hold while the model's twins are used: threads that share a captioner take turns."""
    with _looking_up:
        return _turns.setdefault(model, RLock())


def forget_twins(model: nn.Module) -> None:
    """Drops the twins of a model, and everything kept for them."""
    with turn(model):
        _twins.pop(model, None)


def twin_of(model: Any, attention: str) -> Any:
    """An encoder-decoder that shares the model's weights, and whose decoder has this attention implementation.

    Made once, and again when the model gets other parts or settings; weights that change in place are its own.
    """
    state: list[Any] = [id(module) for module in model.modules()]
    state += [id(tensor) for tensor in chain(model.parameters(), model.buffers())]
    state.append([module.config._attn_implementation for module in model.modules() if hasattr(module, "config")])
    of_model = _twins.setdefault(model, {})
    known, twin = of_model.get(attention, (None, model))
    if known != state:
        twin = copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
        for part in twin.decoder.modules():
            if hasattr(part, "config"):  # attention modules may have one of their own
                part.config._attn_implementation_internal = attention
        of_model[attention] = state, twin
    for ours, theirs in zip(twin.modules(), model.modules(), strict=True):
        ours.training = theirs.training
    return twin
