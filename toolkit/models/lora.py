"""Low-rank adaptation through peft: small updates of the attention are trained instead of all weights.

An adapter's folder holds the updates, with tokenizer, image processor and generation settings, and in `base.json` what
they are updates of:

    {"init_from": null, "encoder": "google/vit-base-patch16-224", "decoder": "gpt2", "preset": null, "seed": 42,
     "vocab_size": 50257, "tokens": [50256, 50256, 50256], "weights": "a hash of the base's weights"}
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig, VisionEncoderDecoderModel
from transformers.pytorch_utils import Conv1D

from toolkit.errors import ModelError
from toolkit.models.freezing import hash_weights, used_weights
from toolkit.runtime.files import read_object

BASE = "base.json"
# The parts of a captioner that neither the encoder nor the decoder comes with.
NEW_PARTS = ("crossattention", "ln_cross_attn", "enc_to_dec_proj")


def require_peft() -> None:
    """
    Raises:
        ModelError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            "LoRA needs peft, which is not installed; pip install 'captioning-toolkit[lora]', or pip install peft."
        )


def is_adapted(model: Any) -> bool:
    return hasattr(model, "peft_config")


def plain_model(model: Any) -> VisionEncoderDecoderModel:
    """The captioner inside peft's wrapper, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model


def attention_layers(model: VisionEncoderDecoderModel, targets: str, cross: bool) -> list[str]:
    """Names of the linear layers of attention that captions depend on.

    Args:
        targets: encoder, decoder or both.
        cross: with the decoder's cross-attention.
    """
    used = {id(weight) for weight in (*used_weights(model.encoder).values(), *model.decoder.parameters())}
    parts_of = ("encoder", "decoder") if targets == "both" else (targets,)

    def wanted(name: str, module: nn.Module) -> bool:
        half, *parts = name.split(".")
        return (
            half in parts_of
            and isinstance(module, (nn.Linear, Conv1D))
            and id(module.weight) in used
            and any("attn" in part or "attention" in part for part in parts)
            and (cross or not set(parts) & set(NEW_PARTS))
        )

    return [name for name, module in model.named_modules() if wanted(name, module)]


def add_lora(model: VisionEncoderDecoderModel, rank: int, targets: str, pretrained: bool) -> Any:
    """The model inside peft's wrapper: W + 2 B A for each W of the attention, with B zero at first.

    New cross-attention starts from random weights, so all of it is trained, and so is the projection between an encoder and
    a decoder of different widths.

    Args:
        rank: columns of B.
        targets: encoder, decoder or both.
        pretrained: the model is a captioner already: its cross-attention gets low-rank updates like the rest.

    Raises:
        ModelError: peft is not installed.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    present = {part for name, _ in model.named_modules() for part in name.split(".")}
    whole = [] if pretrained else [part for part in NEW_PARTS if part in present]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=attention_layers(model, targets, cross=pretrained),
        modules_to_save=whole or None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about GPT-2's transposed weights, which peft handles
        adapted = get_peft_model(model, config)
    config.base_model_name_or_path = None  # or each checkpoint would look for it on the hub; BASE names it
    return adapted


def load_adapter_weights(model: Any, directory: Path | str) -> None:
    """Loads a checkpoint into the adapted model; no tensor may be missing or left over."""
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    stored = load_peft_weights(str(directory), device="cpu")
    missing = get_peft_model_state_dict(model).keys() ^ stored.keys()
    if missing:
        raise ModelError(f"{directory}: not an adapter of this model ({sorted(missing)[0]} is only in one of them).")
    set_peft_model_state_dict(model, stored)


def merged(model: Any) -> VisionEncoderDecoderModel:
    """A plain captioner, with the updates added to its weights."""
    return model.merge_and_unload() if is_adapted(model) else model


def _base_hash(model: Any) -> str:
    """A hash of the base's weights, without the adapter and without unused ones such as a random pooler."""
    inside = plain_model(model)
    unused = {id(w) for w in inside.encoder.parameters()} - {id(w) for w in used_weights(inside.encoder).values()}
    own = ("lora_", "modules_to_save", "original_module")
    weights = model.named_parameters()
    base = {n: w.float() for n, w in weights if id(w) not in unused and not any(part in n for part in own)}
    return hash_weights(base).hex()


def save_base(model: Any, base: dict[str, Any], directory: Path) -> None:
    """Writes what the adapter in this folder is an adapter of.

    Args:
        base: as in this module's docstring, without the hash.
    """
    text = json.dumps({**base, "weights": _base_hash(model)}, indent=1)
    (directory / BASE).write_text(text + "\n", encoding="utf-8")


def is_adapter(directory: Path) -> bool:
    return (directory / "adapter_config.json").is_file()


def read_base(name: str | Path, option: str) -> dict[str, Any]:
    """Reads what an adapter's folder is an adapter of.

    Args:
        option: that the folder was given with.

    Raises:
        ModelError: peft is missing, or `base.json`.
    """
    require_peft()
    base = read_object(Path(name) / BASE)
    if base is None:
        raise ModelError(
            f"{option} {name}: an adapter without {BASE}, which says what it adapts; name a folder that toolkit wrote."
        )
    return base


def with_adapter(model: VisionEncoderDecoderModel, base: dict[str, Any], name: str | Path, option: str) -> Any:
    """A base with the updates of an adapter's folder added to its weights.

    Raises:
        ModelError: the base has other weights than when the adapter was trained.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(name))
    if _base_hash(adapted) != base["weights"]:
        what = base["init_from"] or f"{base['encoder']} and {base['decoder']}"
        raise ModelError(f"{option} {name}: an adapter of {what}, but those weights have changed since; restore them.")
    whole = merged(adapted)
    whole.generation_config = GenerationConfig.from_pretrained(name)
    return whole
