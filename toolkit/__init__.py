"""toolkit: from a folder of captioned images to a fine-tuned captioner, and captions for the rest of your folders.

    from toolkit import FinetuneOptions, PreprocessOptions, finetune, load_captioner, preprocess

    preprocess(PreprocessOptions())                       # as `toolkit preprocess`; returns a Summary
    finetune(FinetuneOptions(epochs=5))                   # as `toolkit finetune --epochs 5`
    load_captioner("model").caption(["a.jpg", "b.png"])   # a CaptionResult each

The names in `__all__` are the public API; every other path may move. Each is imported when it is first used, so that
`import toolkit` costs milliseconds and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from toolkit.cache.schema import caption_view, open_cache
    from toolkit.captioning.captioner import load_captioner
    from toolkit.commands.batch_caption import batch_caption
    from toolkit.commands.caption import caption
    from toolkit.commands.demo import demo
    from toolkit.commands.evaluate import evaluate
    from toolkit.commands.export import export
    from toolkit.commands.finetune import finetune
    from toolkit.commands.inspect import inspect
    from toolkit.commands.preprocess import preprocess
    from toolkit.commands.push import push
    from toolkit.commands.review import review
    from toolkit.commands.sample import sample
    from toolkit.errors import ImageError, InputError, ModelError, OutputError, RunError, ToolkitError
    from toolkit.options import (
        BatchCaptionOptions,
        CaptionOptions,
        DemoOptions,
        EvaluateOptions,
        ExportOptions,
        FinetuneOptions,
        GenerationOptions,
        HubOptions,
        InspectOptions,
        PreprocessOptions,
        PromptOptions,
        PushOptions,
        ReviewOptions,
        SampleOptions,
    )
    from toolkit.outputs.tables import read_captions
    from toolkit.records import CaptionResult, ImageRecord, Summary

_MODULES = {
    "toolkit.cache.schema": ["caption_view", "open_cache"],
    "toolkit.captioning.captioner": ["load_captioner"],
    "toolkit.errors": ["ImageError", "InputError", "ModelError", "OutputError", "RunError", "ToolkitError"],
    "toolkit.outputs.tables": ["read_captions"],
    "toolkit.records": ["CaptionResult", "ImageRecord", "Summary"],
    **{
        f"toolkit.commands.{command}": [command]
        for command in (
            "batch_caption", "caption", "demo", "evaluate", "export", "finetune", "inspect", "preprocess", "push",
            "review", "sample",
        )
    },
}  # fmt: skip
__all__ = [
    "BatchCaptionOptions",
    "CaptionOptions",
    "CaptionResult",
    "DemoOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FinetuneOptions",
    "GenerationOptions",
    "HubOptions",
    "ImageError",
    "ImageRecord",
    "InputError",
    "InspectOptions",
    "ModelError",
    "OutputError",
    "PreprocessOptions",
    "PromptOptions",
    "PushOptions",
    "ReviewOptions",
    "RunError",
    "SampleOptions",
    "Summary",
    "ToolkitError",
    "batch_caption",
    "caption",
    "caption_view",
    "demo",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load_captioner",
    "open_cache",
    "preprocess",
    "push",
    "read_captions",
    "review",
    "sample",
]
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_HOME |= {name: "toolkit.options" for name in __all__ if name.endswith("Options")}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
