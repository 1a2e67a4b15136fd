"""Fetches an encoder's image processor and a decoder's tokenizer and saves both beside a cache.

In a process of its own: transformers' processors import torch, 300 MB that preprocess and its workers would otherwise
carry along. What it finds is kept (kept.py), so that the next build with the same models starts without it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import toolkit
from toolkit.errors import ModelError, ToolkitError
from toolkit.models.kept import FOLDERS, keep, key_of, take
from toolkit.records import SpecialTokens

# With -P: the user's folder, where a `random.py` may lie, is not searched for modules. Ctrl-C is the parent's business.
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path.append(sys.argv[2])
from toolkit.models.processors import main
main(sys.argv[1], int(sys.argv[3]))
"""


def fetch_processors(
    encoder: str, decoder: str, preset: str | None, directory: Path
) -> tuple[dict[str, Any], SpecialTokens, int]:
    """Writes `tokenizer/` and `image_processor/` below `directory`, which holds the staged records: a preset's own
    tokenizer is trained on their captions.

    Returns:
        The image processor's full settings, the special tokens, and the size of the vocabulary.

    Raises:
        ModelError: one of them could not be loaded, or the processor does more than resize, crop and normalise.
    """
    answer = _answer(encoder, decoder, preset, directory)
    return answer["image_processor"], *_tokens(answer)


def fetch_image_processor(encoder: str, directory: Path) -> dict[str, Any]:
    """The same of an encoder alone: writes `image_processor/`, and returns its full settings."""
    settings: dict[str, Any] = _answer(encoder, None, None, directory)["image_processor"]
    return settings


def enlarge_image_processor(directory: Path, margin: int) -> dict[str, Any]:
    """Lets the processor in `image_processor/` resize to `margin` pixels more, and crop to the size that it gave before.

    Returns:
        Its full settings.

    Raises:
        ModelError: a processor of this kind does not crop.
    """
    request = {"directory": str(directory), "margin": margin}
    settings: dict[str, Any] = _in_child("enlarge", request, "loading the image processor")["image_processor"]
    return settings


def fetch_new_tokenizer(directory: Path, vocab_size: int | None, by_index: bool) -> tuple[SpecialTokens, int]:
    """Writes `tokenizer/` below `directory`, trained on the train captions there (`read_train_captions`).

    Returns:
        The special tokens, and the size of the vocabulary.
    """
    request = {"directory": str(directory), "vocab_size": vocab_size, "by_index": by_index}
    return _tokens(_in_child("train", request, "training the tokenizer"))


def _tokens(answer: dict[str, Any]) -> tuple[SpecialTokens, int]:
    tokens = dict(answer["tokens"])
    vocab_size = tokens.pop("vocab_size")
    return SpecialTokens(**tokens), vocab_size


def _answer(encoder: str, decoder: str | None, preset: str | None, directory: Path) -> dict[str, Any]:
    """What was read of the models, kept or anew; without a decoder there is no tokenizer."""
    named = [encoder] if decoder is None else [encoder, decoder]
    key = key_of(*named) if preset is None else None
    answer = take(key, directory) if key is not None else None
    if answer is None:
        new = not any((directory / name).exists() for name in FOLDERS)
        answer = _fetch(encoder, decoder, preset, directory)
        # Not where files of an unfinished build are beside them, or where the models' files have changed meanwhile.
        if key is not None and new and key == key_of(*named):
            keep(key, directory, answer)
    return answer


def _fetch(encoder: str, decoder: str | None, preset: str | None, directory: Path) -> dict[str, Any]:
    request = {"encoder": encoder, "decoder": decoder, "preset": preset, "directory": str(directory)}
    models = " and ".join(filter(None, (encoder, decoder)))
    return _in_child("save", request, f"{models}: loading their processors")


def _in_child(job: str, request: dict[str, Any], doing: str) -> dict[str, Any]:
    """What one of `JOBS` answers in a process of its own."""
    package = str(Path(toolkit.__file__).parent.parent)
    command = [sys.executable, "-P", "-c", CHILD, json.dumps({"job": job, **request}), package, str(os.getpid())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ModelError(f"{doing} failed; see the messages above.") from None
    if "error" in answer:
        raise ModelError(answer["error"])
    return answer


def _save(encoder: str, decoder: str | None, preset: str | None, directory: str) -> dict[str, Any]:
    from toolkit.cache.staging import read_captions
    from toolkit.data.pixels import PixelTransform, same_pixels
    from toolkit.models.loading import load_image_processor, load_tokenizer, silence_transformers
    from toolkit.models.presets import tiny_image_processor, train_tokenizer

    silence_transformers()
    if preset == "tiny":
        processor = tiny_image_processor()
        tokenizer = train_tokenizer(read_captions(Path(directory)))
    else:
        processor = load_image_processor(encoder)
        tokenizer = load_tokenizer(decoder) if decoder is not None else None
    answer = _save_tokenizer(tokenizer, decoder, directory) if tokenizer is not None else {}
    settings = json.loads(processor.to_json_string())
    if not same_pixels(PixelTransform.from_processor_config(settings), processor):
        kind = type(processor).__name__
        raise ModelError(f"--encoder {encoder}: {kind} does more to an image than resize and crop it; name another.")
    processor.save_pretrained(Path(directory) / "image_processor")
    return {"image_processor": settings, **answer}


def _enlarge(directory: str, margin: int) -> dict[str, Any]:
    from toolkit.data.pixels import PixelTransform, same_pixels, settings_with_margin
    from toolkit.models.loading import load_image_processor, silence_transformers

    silence_transformers()
    place = Path(directory) / "image_processor"
    plain = load_image_processor(place)
    processor = type(plain).from_dict(settings_with_margin(json.loads(plain.to_json_string()), margin))
    settings = json.loads(processor.to_json_string())
    ours = PixelTransform.from_processor_config(settings)
    if ours.crop is None or not same_pixels(ours, processor):
        kind = type(processor).__name__
        raise ModelError(
            f"--pixel-margin {margin}: {kind} does not crop what it has resized; leave the option out, or name another "
            "--encoder."
        )
    processor.save_pretrained(place)
    return {"image_processor": settings}


def _train(directory: str, vocab_size: int | None, by_index: bool) -> dict[str, Any]:
    from toolkit.cache.staging import read_train_captions
    from toolkit.models.presets import train_tokenizer

    tokenizer = train_tokenizer(read_train_captions(Path(directory), by_index), vocab_size)
    return _save_tokenizer(tokenizer, None, directory)


def _save_tokenizer(tokenizer: Any, decoder: str | None, directory: str) -> dict[str, Any]:
    from toolkit.models.special_tokens import special_tokens_of

    tokens = special_tokens_of(tokenizer, decoder or "the tokenizer")
    tokenizer.save_pretrained(Path(directory) / "tokenizer")
    if not (Path(directory) / "tokenizer" / "tokenizer.json").exists():
        raise ModelError(f"--decoder {decoder}: has no fast tokenizer (tokenizer.json); name another --decoder.")
    return {"tokens": {**asdict(tokens), "vocab_size": len(tokenizer)}}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"save": _save, "enlarge": _enlarge, "train": _train}


def main(request: str, parent: int) -> None:
    """The child process: a JSON object in, one line of JSON out; it ends with the command, however that is killed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
    try:
        values = json.loads(request)
        answer = JOBS[values.pop("job")](**values)
    except ToolkitError as error:
        answer = {"error": str(error)}
    try:
        print(json.dumps(answer), flush=True)
    except BrokenPipeError:  # elsewhere than on Linux; nobody is there to be told
        os._exit(1)
