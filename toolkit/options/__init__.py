"""The options of every command: frozen dataclasses, a file each, defaults written here and nowhere else.

In: values as typed or passed. Out: a checked, frozen dataclass; a wrong value raises `InputError` with the option's name
as it is typed. Start with `preprocess.py`; the command line is made from these classes (toolkit/cli.py).
"""

from toolkit.options.batch_caption import BatchCaptionOptions
from toolkit.options.caption import CaptionOptions
from toolkit.options.demo import DemoOptions
from toolkit.options.evaluate import EvaluateOptions
from toolkit.options.export import ExportOptions
from toolkit.options.finetune import FinetuneOptions
from toolkit.options.generation import GenerationOptions
from toolkit.options.inspect import InspectOptions
from toolkit.options.preprocess import PreprocessOptions
from toolkit.options.prompts import PromptOptions
from toolkit.options.push import HubOptions, PushOptions
from toolkit.options.review import ReviewOptions
from toolkit.options.sample import SampleOptions

__all__ = [
    "BatchCaptionOptions",
    "CaptionOptions",
    "DemoOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FinetuneOptions",
    "GenerationOptions",
    "HubOptions",
    "InspectOptions",
    "PreprocessOptions",
    "PromptOptions",
    "PushOptions",
    "ReviewOptions",
    "SampleOptions",
]
