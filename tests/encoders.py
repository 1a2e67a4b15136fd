"""Tiny encoders with random weights, one of each family, for images of 32x32."""

from __future__ import annotations

from typing import Any

import transformers

# Each with its model, its config, and by which of its options a batch in training is not the one in evaluation.
ENCODERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vit": ("ViTModel", "ViTConfig", ("hidden_dropout_prob",)),
    "deit": ("DeiTModel", "DeiTConfig", ("hidden_dropout_prob",)),
    "beit": ("BeitModel", "BeitConfig", ("hidden_dropout_prob", "drop_path_rate")),
    "swin": ("SwinModel", "SwinConfig", ("hidden_dropout_prob", "drop_path_rate")),
    "dinov2": ("Dinov2Model", "Dinov2Config", ("drop_path_rate",)),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", ("attention_dropout",)),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", ("attention_dropout",)),
}


def tiny_encoder(name: str, layers: int = 2, dropout: float | None = None) -> Any:
    """
    Args:
        layers: of the last stage, for Swin.
        dropout: of every kind that it has; None leaves its own.
    """
    model, config, kinds = ENCODERS[name]
    if name == "swin":
        size: dict[str, Any] = {
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, layers - 1],
            "num_heads": [1, 2],
            "window_size": 4,
        }
    else:
        size = {"patch_size": 16, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
                "intermediate_size": 64}  # fmt: skip
    drop = {} if dropout is None else dict.fromkeys(kinds, dropout)
    return getattr(transformers, model)(getattr(transformers, config)(image_size=32, **size, **drop))
