"""Which weights of an encoder are trained: all, those of its last layers, or none; and which never are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.errors import ModelError
from toolkit.runtime.hashing import Hasher

# By model type, what an encoder applies to its pooled output alone, or only when patches are masked.
UNUSED: dict[str, tuple[str, ...]] = {
    "clip_vision_model": ("post_layernorm",),
    "siglip_vision_model": ("head",),
    "dinov2": ("mask_token",),
}


def used_weights(encoder: Any) -> dict[str, nn.Parameter]:
    """The weights that the last hidden states depend on."""
    names = ("pooler", *UNUSED.get(encoder.config.model_type, ()))
    return {k: v for k, v in encoder.named_parameters() if not any(part in names for part in k.split("."))}


def hash_weights(weights: Mapping[str, torch.Tensor], *settings: str) -> Hasher:
    """Over settings, then name and bytes of each weight in the order of their names."""
    digest = Hasher(*settings)
    for name, weight in sorted(weights.items()):
        digest.update(name)
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest


def freeze_unused(encoder: nn.Module) -> None:
    """The decoder reads the last hidden states, never the pooled one: a pooler gets no gradient, and under DDP or
    checkpointing a parameter that waits for one is an error. It stays, since `from_pretrained` expects it."""
    used = {id(weight) for weight in used_weights(encoder).values()}
    for weight in encoder.parameters():
        if id(weight) not in used:
            weight.requires_grad_(False)


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """Its transformer layers from the first to the last; of Swin's stages those inside.

    They are the modules of transformers' gradient checkpointing, which have one base class in every encoder.
    """
    layers = [module for module in encoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [
        m for m in layers if not any(isinstance(inner, GradientCheckpointingLayer) for inner in list(m.modules())[1:])
    ]


def freeze_encoder(encoder: nn.Module, unfreeze_last: int = 0) -> None:
    """Takes an encoder out of training, but for its last layers and what follows them (a final layer norm).

    Frozen weights get no gradient and no optimizer state. They stay in evaluation mode too: dropout would only show
    the decoder noisier images than it will have to describe, and stored features would be one sample of that noise.

    Raises:
        ModelError: the encoder has fewer layers.
    """
    layers = encoder_layers(encoder)
    if unfreeze_last > len(layers):
        raise ModelError(f"--unfreeze-last {unfreeze_last}: the encoder has {len(layers)} layers; name fewer.")
    trained: set[int] = set()
    if unfreeze_last:
        # Encoders register their parts in the order in which they are run, so that what follows can be told by it.
        parameters = list(encoder.parameters())
        first = next(layers[-unfreeze_last].parameters())
        start = next(i for i, parameter in enumerate(parameters) if parameter is first)
        trained = {id(parameter) for parameter in parameters[start:] if parameter.requires_grad}
    for parameter in encoder.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    _rest(encoder)


def unfreeze_encoder(encoder: nn.Module) -> None:
    """Takes all of an encoder into training again, but for what its last hidden states do not depend on."""
    encoder.requires_grad_(True)
    freeze_unused(encoder)
    for module in encoder.modules():
        vars(module).pop("train", None)  # of `_rest`
    encoder.train()


def _rest(module: nn.Module) -> None:
    """Keeps modules without trainable weights in evaluation mode; Trainer calls `train()` at every step."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        module.train = MethodType(_stay, module)  # type: ignore[method-assign]
    else:
        for child in module.children():
            _rest(child)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)
