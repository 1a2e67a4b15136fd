"""Captioning, side by side in one run: the notebook's way, stock `generate`, toolkit's decoder, and the limits.

    python scripts/bench_caption.py                                   # ViT-B/16 + GPT-2 sizes, random weights, 2 CPU cores
    python scripts/bench_caption.py --device cuda --batch-size 64 --images 512
    python scripts/bench_caption.py --size tiny --rounds 1 --images 8 --notebook-images 1   # does it run?

Beams 4, no trigram twice, 20 new tokens of each image (random weights never end early). The ways take turns, round by
round, so that whatever else the machine does falls on each; a ratio is the median of the rounds' ratios.

From files to rows:
- notebook: one image at a time: open, image processor, `generate`, tokenizer (scripts/notebook_baseline.py).
- toolkit: the warm captioner of toolkit/captioning/captioner.py, in batches.
From pixels in memory, one batch:
- encoder: transformers' own, alone; and as toolkit runs it.
- stock: `generate`, encoder included. The tokens of toolkit are compared with its.
From the encoder's states on, one batch:
- stock decoding: `generate(encoder_outputs=...)`.
- toolkit decoding.
- bare loop: the arithmetic that the beams' steps need and nothing else: transformers' own decoder with its own cache, keys
  and values of the images projected once and then repeated for each beam, as many rows as there are beams, the likeliest
  token of each taken; no beams compared or reordered, no scores, no n-grams.
- limit: the larger of two times: FLOPs of the bare loop by count (torch.utils.flop_counter) over the rate of a large
  matrix product; bytes of the decoder's weights once a step, and of the images' keys and values, over the rate of reading
  memory. Likewise of the encoder.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_preprocess import PHOTOS, make_images
from notebook_baseline import build
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.generate import Engine, decode
from toolkit.captioning.kv_cache import prepared
from toolkit.models.loading import silence_transformers
from toolkit.options import GenerationOptions

BEAMS = 4
OPTIONS = GenerationOptions(num_beams=BEAMS, no_repeat_ngram_size=3, length_penalty=2.0, max_length=21)
STEPS = 20


def seconds(run: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bare_loop(model: Any, states: torch.Tensor) -> None:
    caches = EncoderDecoderCache(DynamicCache(), DynamicCache())
    tokens = torch.full((len(states), 1), model.config.decoder_start_token_id, device=states.device)
    for step in range(STEPS):
        logits = model.decoder(
            input_ids=tokens, encoder_hidden_states=states, past_key_values=caches, use_cache=True
        ).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        if step == 0:
            caches.batch_repeat_interleave(BEAMS)
            tokens = tokens.repeat_interleave(BEAMS, 0)
            states = states.repeat_interleave(BEAMS, 0)


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and bytes/s of reading memory; the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    parts = [torch.ones(2**24, device=device) for _ in range(8)]
    product = min(seconds(lambda: a @ b) for _ in range(8))
    read = min(seconds(lambda: [part.sum() for part in parts]) for _ in range(8))
    return 2 * n**3 / product, 8 * 2**26 / read


def limits(model: Any, pixels: torch.Tensor, states: torch.Tensor) -> tuple[float, float]:
    """Seconds that encoder and decoder must take by arithmetic and memory traffic, for this batch."""
    flops, read = rates(pixels.device, pixels.dtype)
    with FlopCounterMode(display=False) as encoder:
        model.encoder(pixel_values=pixels)
    with FlopCounterMode(display=False) as decoder:
        bare_loop(model, states)
    size = states.element_size()
    weights = sum(p.numel() for p in model.decoder.parameters()) * size
    config = model.config.decoder
    kept = 2 * config.num_hidden_layers * states.shape[0] * states.shape[1] * config.hidden_size * size
    return encoder.get_total_flops() / flops, max(decoder.get_total_flops() / flops, STEPS * (weights + kept) / read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images", type=int, default=16, help="that toolkit captions from files")
    parser.add_argument("--notebook-images", type=int, default=2, help="that the notebook's way captions in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    silence_transformers()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, PHOTOS, max(arguments.images, arguments.batch_size), (500, 375))
        paths = sorted((folder / "Images").iterdir())
        model, tokenizer, processor = build(arguments.size, ["a dog runs on the green grass"] * 10)
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder / "model")
        del model
        captioner = load_captioner(folder / "model", arguments.device)
        with torch.inference_mode():
            measure(captioner, paths, arguments)


def measure(captioner: Any, paths: list[Path], arguments: argparse.Namespace) -> None:
    model, device = captioner.model, captioner.device
    size = arguments.batch_size
    config = GenerationConfig(
        num_beams=4, no_repeat_ngram_size=3, length_penalty=2.0, max_new_tokens=STEPS, early_stopping=False
    )
    full = copy.deepcopy(config)
    full.update(**model.generation_config.to_dict(), defaults_only=True)
    full.update(num_return_sequences=1, do_sample=False, defaults_only=True)
    batch = torch.stack(
        [torch.from_numpy(captioner.transform(Image.open(path).convert("RGB"))) for path in paths[:size]]
    )
    pixels = captioner.normalizer(batch.to(device)).to(model.dtype)
    states = model.encoder(pixel_values=pixels).last_hidden_state
    twin = prepared(model)
    engine = Engine(twin, full, size)

    def notebook() -> None:
        for path in paths[: arguments.notebook_images]:
            inputs = captioner.image_processor(Image.open(path).convert("RGB"), return_tensors="pt").pixel_values
            tokens = model.generate(inputs.to(device, model.dtype), generation_config=config)
            captioner.tokenizer.decode(tokens[0], skip_special_tokens=True)

    def own_encoder() -> None:
        prepared(model).encoder(pixel_values=pixels)

    def own_decoding() -> None:
        prepared(model)
        engine.run(states, ())

    def toolkit() -> None:
        for row in captioner.caption(paths[: arguments.images], OPTIONS, size):
            json.dumps(row.to_row())

    outputs = BaseModelOutput(states)
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "notebook, files to rows": (arguments.notebook_images, notebook),
        "toolkit, files to rows": (arguments.images, toolkit),
        "encoder": (size, lambda: model.encoder(pixel_values=pixels)),
        "encoder, as toolkit runs it": (size, own_encoder),
        "stock generate": (size, lambda: model.generate(pixel_values=pixels, generation_config=config)),
        "toolkit": (size, lambda: decode(model, config, pixels)),
        "stock decoding": (size, lambda: model.generate(encoder_outputs=copy.copy(outputs), generation_config=config)),
        "toolkit decoding": (size, own_decoding),
        "bare loop": (size, lambda: bare_loop(model, states)),
    }
    wanted = model.generate(pixel_values=pixels, generation_config=config)[:, 1:].tolist()
    found = [image.tokens[0] for image in decode(model, config, pixels)]
    same = sum(ours == theirs[: len(ours)] for ours, theirs in zip(found, wanted, strict=True))
    own_decoding()  # memory is mapped and, on a GPU, the graph captured before anything is timed

    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(arguments.rounds):
        for way, (images, run) in ways.items():
            times[way].append(seconds(run) / images)
            print(f"  round {round_ + 1}: {way} {times[way][-1]:.4g} s an image", flush=True)
    for way, limit in zip(("encoder limit", "decoding limit"), limits(model, pixels, states), strict=True):
        times[way] = [limit / size] * arguments.rounds

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))

    print(f"\nbatch of {size}, {device}, {model.dtype}; tokens as stock generate's: {same} of {size} images\n")
    print("| way | images/s | at best |\n| --- | ---: | ---: |")
    for way, values in times.items():
        print(f"| {way} | {1 / statistics.median(values):.3g} | {1 / min(values):.3g} |")
    print("\n| ratio of times | median | lowest round | highest |\n| --- | ---: | ---: | ---: |")
    for slow, fast in (
        ("notebook, files to rows", "toolkit, files to rows"),
        ("stock generate", "toolkit"),
        ("stock decoding", "toolkit decoding"),
        ("bare loop", "toolkit decoding"),
        ("encoder", "encoder, as toolkit runs it"),
        ("toolkit decoding", "decoding limit"),
        ("encoder, as toolkit runs it", "encoder limit"),
    ):
        each = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
        print(f"| {slow} / {fast} | {ratio(slow, fast):.2f} | {min(each):.2f} | {max(each):.2f} |")


if __name__ == "__main__":
    main()
