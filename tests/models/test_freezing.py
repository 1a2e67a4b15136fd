"""What of an encoder is trained: gradients, optimizer state, dropout; for every family of encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import ENCODERS, tiny_encoder

from toolkit.errors import ModelError
from toolkit.models.freezing import encoder_layers, freeze_encoder, freeze_unused, used_weights

# The prefix that the last layer's weights have, and what follows it.
LAST: dict[str, tuple[str, set[str]]] = {
    "vit": ("layers.2.", {"layernorm"}),
    "deit": ("layers.2.", {"layernorm"}),
    "beit": ("layers.2.", set()),
    "dinov2": ("encoder.layer.2.", {"layernorm"}),
    "clip": ("encoder.layers.2.", set()),
    "siglip": ("encoder.layers.2.", {"post_layernorm"}),
    "swin": ("encoder.layers.1.blocks.1.", {"layernorm"}),
}


def encoder_of(name: str) -> Any:
    torch.manual_seed(0)
    encoder = tiny_encoder(name, layers=3, dropout=0.5)
    freeze_unused(encoder)
    return encoder


def moved(encoder: Any) -> set[str]:
    """The weights that get a gradient from the last hidden states."""
    torch.manual_seed(0)
    encoder(pixel_values=torch.randn(2, 3, 32, 32)).last_hidden_state.square().sum().backward()
    return {name for name, weight in encoder.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_frozen_encoder_is_a_function_of_the_image(name: str) -> None:
    encoder = encoder_of(name)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder.eval()(pixel_values=pixels).last_hidden_state
    encoder.train()
    assert not torch.equal(encoder(pixel_values=pixels).last_hidden_state, expected), "dropout should show"
    freeze_encoder(encoder)
    encoder.train()  # as Trainer does at every step
    states = encoder(pixel_values=pixels).last_hidden_state
    assert torch.equal(states, expected)
    assert states.grad_fn is None
    assert not any(weight.requires_grad for weight in encoder.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_stop_at_the_right_layer(name: str) -> None:
    last, after = LAST[name]
    encoder = encoder_of(name)
    whole = moved(encoder)
    assert whole == set(used_weights(encoder)), "each used weight gets a gradient, no other one waits for it"
    encoder.zero_grad()
    freeze_encoder(encoder, 1)
    encoder.train()
    expected = {n for n in whole if n.startswith(last) or n.split(".")[0] in after}
    assert moved(encoder) == expected
    assert any(n.startswith(last) for n in expected)
    assert {n for n, weight in encoder.named_parameters() if weight.requires_grad} == expected
    training = {n for n, module in encoder.named_modules() if module.training and list(module.parameters())}
    assert all(last.startswith(n) or n.startswith(last[:-1]) or n in after for n in training), "frozen layers are quiet"
    assert last[:-1] in training


@pytest.mark.parametrize("name", ENCODERS)
def test_all_layers_are_the_whole_but_the_embeddings(name: str) -> None:
    encoder = encoder_of(name)
    number = len(encoder_layers(encoder))
    assert number == 3
    freeze_encoder(encoder, number)
    frozen = {n.split(".")[0] for n, weight in used_weights(encoder).items() if not weight.requires_grad}
    assert frozen <= {"embeddings", "pre_layrnorm"}
    with pytest.raises(ModelError, match="--unfreeze-last 4: the encoder has 3 layers"):
        freeze_encoder(encoder, 4)


@pytest.mark.parametrize(
    ("options", "trained"),
    [({"freeze_encoder": True}, ()), ({"unfreeze_last": 1}, ("encoder.encoder.layer.3.", "encoder.layernorm."))],
)
def test_the_command(
    options: dict[str, Any], trained: tuple[str, ...], three_updates: Callable[..., None], tmp_path: Path
) -> None:
    """No optimizer state for what is frozen, whose weights end as they began; the rest learns."""
    from safetensors.torch import load_file

    out = tmp_path / "model"
    three_updates(out, **options)
    saved = load_file(out / "model.safetensors")
    three_updates(tmp_path / "none", max_steps=0, epochs=0.0)
    begun = load_file(tmp_path / "none" / "model.safetensors")
    changed = {name for name in saved if not torch.equal(saved[name], begun[name])}
    learnt = {n for n in saved if n.startswith(("decoder.", *trained))}
    assert changed == learnt
    state = torch.load(next((out / "checkpoints").glob("checkpoint-3")) / "optimizer.pt", weights_only=True)
    numbers = sum(value["exp_avg"].numel() for value in state["state"].values())
    assert numbers == sum(saved[n].numel() for n in learnt)
