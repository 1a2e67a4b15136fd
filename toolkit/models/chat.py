"""Models that are told what to do, and their processors: loading, also of adapters, quantised models, and processors whose
video half needs packages that images do not.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from toolkit.errors import ModelError
from toolkit.models.loading import load_part
from toolkit.models.lora import is_adapter, require_peft
from toolkit.models.precision import DTYPES
from toolkit.runtime.files import read_object


def base_of(name: str | Path, option: str) -> str:
    """What an adapter of peft's adapts.

    Raises:
        ModelError: it does not say.
    """
    config = read_object(Path(name) / "adapter_config.json") or {}
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{option} {name}: an adapter that does not say of which model; put it into base_model_name_or_path of its "
            "adapter_config.json."
        )
    return str(base)


def load_chat_model(name: str | Path, option: str, hint: str, device: torch.device, precision: str) -> Any:
    """In evaluation mode on the device; an adapter is merged into its model, and a quantised model stays as its config says.

    Args:
        precision: "fp32", "bf16" or "fp16".

    Raises:
        ModelError: it can't be loaded.
    """
    if is_adapter(Path(name)):
        require_peft()
        from peft import PeftModel

        base = base_of(name, option)
        model = load_chat_model(base, f"{option} {name}, an adapter of", hint, device, precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = load_part("adapter", option, name, lambda **_: PeftModel.from_pretrained(model, str(name)), hint)
        if getattr(model, "is_quantized", False):  # merging would round the weights once more
            return adapted.eval()
        return adapted.merge_and_unload().eval()

    def load(**where: Any) -> Any:
        config = AutoConfig.from_pretrained(str(name), **where)
        if getattr(config, "quantization_config", None) is not None:
            quantised = {"dtype": "auto", "device_map": {"": str(device)}}
            return AutoModelForImageTextToText.from_pretrained(str(name), **quantised, **where)
        model: Any = AutoModelForImageTextToText.from_pretrained(str(name), dtype=DTYPES[precision], **where)
        return model.to(device)

    return load_part("captioner", option, name, load, hint).eval()


def load_chat_processor(name: str | Path, option: str, hint: str) -> Any:
    """The processor with Pillow's image processor; where its video half can't be loaded, without that.

    Raises:
        ModelError: it can't be loaded.
    """
    if is_adapter(Path(name)) and not (Path(name) / "tokenizer_config.json").exists():
        return load_chat_processor(base_of(name, option), option, hint)

    def load(**where: Any) -> Any:
        try:
            processor = AutoProcessor.from_pretrained(str(name), backend="pil", **where)
            if isinstance(getattr(processor, "image_token", None), str) and hasattr(processor, "num_query_tokens"):
                # BLIP-2's own code takes it for an AddedToken, which it is not where the tokenizer names it.
                processor.image_token = AddedToken(processor.image_token, normalized=False, special=True)
            return processor
        except (ImportError, ValueError, TypeError):
            found = _without_video(str(name), where)
            if found is None:
                raise
            return found

    return load_part("processor", option, name, load, hint)


def _without_video(name: str, where: dict[str, Any]) -> Any:
    """A processor put together from image processor, tokenizer and chat template; None if it has no video half."""
    config = AutoConfig.from_pretrained(name, **where)
    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return None
    settings, _ = kind.get_processor_dict(name, **where)

    class ForImages(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        def apply_chat_template(
            self, *arguments: Any, **keywords: Any
        ) -> Any:  # some ask the video half how many frames
            return ProcessorMixin.apply_chat_template(self, *arguments, **keywords)

    ForImages.__name__ = kind.__name__
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(name, backend="pil", **where),
        "tokenizer": AutoTokenizer.from_pretrained(name, **where),
        "video_processor": None,
    }
    module = sys.modules[kind.__module__]
    with _pretended(module, "num2words"):  # SmolVLM's writes the number of frames with it
        return ForImages.from_args_and_dict([parts[part] for part in kind.get_attributes()], settings)


class _pretended:
    """While it lasts, a package that a module lacks is there."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self.module, self.name = module, name
        self.lacks = name in vars(module) and vars(module)[name] is None

    def __enter__(self) -> None:
        if self.lacks:
            setattr(self.module, self.name, str)

    def __exit__(self, *_: object) -> None:
        if self.lacks:
            setattr(self.module, self.name, None)


def processor_settings(processor: Any) -> dict[str, Any]:
    """Whatever of a processor decides its inputs, besides the tokenizer: plain values."""
    plain = {
        name: value
        for name, value in sorted(vars(processor).items())
        if isinstance(value, (str, int, float, bool, dict, type(None))) and name != "video_processor"
    }
    images = json.loads(processor.image_processor.to_json_string())
    return {"processor": type(processor).__name__, "settings": plain, "images": images}
