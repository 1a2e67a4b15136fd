"""What only a GPU can show; `scripts/prove_gpu.sh` runs it. With PROVE_ON_CPU=1 what can be is run on the CPU instead."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranked
import torch
from random_models import complete, random_model, random_settings
from safetensors.torch import load_file

from toolkit.cache.schema import open_cache
from toolkit.captioning import generate as decoding
from toolkit.captioning.captioner import Batches, load_captioner
from toolkit.captioning.generate import decode, stock
from toolkit.commands.finetune import finetune
from toolkit.options import FinetuneOptions, GenerationOptions

ON_CPU = os.environ.get("PROVE_ON_CPU") == "1"
DEVICE = torch.device("cpu" if ON_CPU else "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_CPU and not torch.cuda.is_available(), reason="no GPU here"),
]
needs_gpu = pytest.mark.skipif(ON_CPU, reason="means nothing on a CPU")


@pytest.fixture(autouse=True)
def _exact() -> Any:
    """Matrix products of fp32 in fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default", "ignore:Unfeasible length constraints")
@pytest.mark.parametrize("seed", range(60))
def test_tokens_of_generate(seed: int) -> None:
    """In fp32, token for token, by CUDA graphs on a GPU."""
    rng = random.Random(seed)
    model, config = random_model(rng).to(DEVICE), random_settings(rng)
    inputs = (torch.randn(rng.randint(1, 6), 3, 16, 16) * 2).to(DEVICE)
    with torch.no_grad():
        wanted = stock(model, inputs, complete(model, config))
    found = decode(model, config, inputs)
    assert [image.tokens for image in found] == [image.tokens for image in wanted], config.to_diff_dict()


@needs_gpu
def test_with_and_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    class Eager(decoding.Engine):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.captures = False

    for seed in range(100, 130):
        rng = random.Random(seed)
        model, config = random_model(rng).to(DEVICE), random_settings(rng)
        inputs = (torch.randn(4, 3, 16, 16) * 2).to(DEVICE)
        replayed = decode(model, config, inputs)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "Engine", Eager)
            decoding._engines.clear()
            eager = decode(model, config, inputs)
        assert [image.tokens for image in replayed] == [image.tokens for image in eager], seed


def test_loss_and_gradient_against_the_cpu() -> None:
    torch.manual_seed(0)
    model = random_model(random.Random(5)).train(False)
    pixels, labels = torch.randn(3, 3, 16, 16), torch.randint(0, 12, (3, 7))

    def step(device: torch.device) -> tuple[float, float]:
        model.to(device).zero_grad()
        loss = model(pixel_values=pixels.to(device), labels=labels.to(device)).loss
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        return loss.item(), norm.item()

    assert step(DEVICE) == pytest.approx(step(torch.device("cpu")), rel=1e-4)


def three_steps(cache_dir: Path, out: Path, **more: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    finetune(
        FinetuneOptions(
            cache=cache_dir,
            output_dir=out,
            max_steps=3,
            batch_size=8,
            generation=GenerationOptions(num_beams=1),
            **more,
        )
    )
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return load_file(out / "model.safetensors"), rows


def test_training_copies_pinned_batches(cache_dir: Path, tmp_path: Path) -> None:
    """The logged losses of a run on the device are those of a forward pass on the CPU, over what is in the cache."""
    _, rows = three_steps(cache_dir, tmp_path / "model", precision="fp32", report_to="none")
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    captioner = load_captioner(tmp_path / "model", "cpu")
    reader = open_cache(cache_dir)["validation"]
    total = count = 0.0
    for i in range(len(reader)):
        row = reader[i]
        pixels = captioner.normalizer(torch.from_numpy(np.array(row["pixel_values"]))[None])
        for labels in row["labels"]:
            kept = torch.tensor([int(token) for token in labels if token != -100])[None]
            with torch.no_grad():
                total += captioner.model(pixel_values=pixels, labels=kept).loss.item() * kept.numel()
            count += kept.numel()
    assert losses[-1] == pytest.approx(total / count, rel=1e-3)


@needs_gpu
def test_a_batch_that_does_not_fit(model_dir: Path) -> None:
    """Captioning goes on with half as many images, and the captions are those of one image at a time."""
    captioner = load_captioner(model_dir, "cuda")
    options = GenerationOptions(max_length=12)
    rng = np.random.default_rng(0)
    pixels = list(rng.integers(0, 256, (64, 3, 64, 64), dtype=np.uint8))
    alone = Batches(captioner, options, 1).generate(pixels[:8])
    torch.cuda.empty_cache()
    batches = Batches(captioner, options, "auto")
    batches.size = 4096
    many = pixels * 64
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + 2**28) / total))
    try:
        found = batches.generate(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert batches.size < 4096
    assert [d.captions for d in found[:8]] == [d.captions for d in alone]


def test_one_rank(cache_dir: Path, tmp_path: Path) -> None:
    """torchrun with one process (NCCL on a GPU) gives the model that no torchrun gives."""
    alone, _ = three_steps(cache_dir, tmp_path / "alone", precision="fp32")
    command = ["-m", "toolkit", "finetune", str(cache_dir), "--output-dir", str(tmp_path / "rank")]
    command += ["--max-steps", "3", "--batch-size", "8", "--num-beams", "1", "--precision", "fp32"]
    code, _, errors, said = ranked.ended(ranked.torchrun(1, *command))
    assert (code, errors) == (0, []), said
    assert ranked.difference(alone, ranked.weights(tmp_path / "rank")) < (1e-6 if ON_CPU else 1e-4)


@needs_gpu
def test_full_shards(cache_dir: Path, tmp_path: Path) -> None:
    """--fsdp on one GPU, whole checkpoints included."""
    command = ["-m", "toolkit", "finetune", str(cache_dir), "--output-dir", str(tmp_path / "sharded"), "--fsdp"]
    command += ["--max-steps", "3", "--batch-size", "8", "--num-beams", "1", "--precision", "fp32"]
    code, _, errors, said = ranked.ended(ranked.torchrun(1, *command))
    assert (code, errors) == (0, []), said
    assert torch.isfinite(torch.stack([w.float().sum() for w in ranked.weights(tmp_path / "sharded").values()])).all()


@needs_gpu
def test_training_that_does_not_fit() -> None:
    """A real out-of-memory error is one that is answered with smaller parts."""
    from accelerate.utils.memory import should_reduce_batch_size

    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**50, device="cuda")
    assert should_reduce_batch_size(caught.value)
