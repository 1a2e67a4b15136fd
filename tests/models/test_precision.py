"""Faster arithmetic, the same results: precision, gradient checkpointing, compilation, the fused optimizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toolkit.errors import InputError
from toolkit.models import precision
from toolkit.models.freezing import freeze_encoder
from toolkit.models.loading import build_captioner
from toolkit.models.lora import add_lora, plain_model
from toolkit.models.precision import pick_device, resolve_precision
from toolkit.options import FinetuneOptions
from toolkit.records import SpecialTokens
from toolkit.training import run_folder
from toolkit.training.setup import trainer_arguments

TOKENS = SpecialTokens(0, 0, 0)


def run(three_updates: Callable[..., None], out: Path, **more: Any) -> tuple[dict[str, torch.Tensor], float]:
    """The weights after three updates, and the loss on the validation images."""
    three_updates(out, **more)
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return load_file(out / "model.safetensors"), next(row["eval_loss"] for row in rows if "eval_loss" in row)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def plain(
    three_updates: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], float]:
    return run(three_updates, tmp_path_factory.mktemp("plain") / "model")


def test_precision_and_checkpointing(three_updates: Callable[..., None], tmp_path: Path, plain: Any) -> None:
    weights, loss = plain
    checkpointed, same = run(three_updates, tmp_path / "checkpointed", gradient_checkpointing=True)
    assert same == loss
    assert difference(checkpointed, weights) == 0
    rounded, near = run(three_updates, tmp_path / "bf16", precision="bf16")
    assert near == pytest.approx(loss, abs=2e-2)
    assert near != loss
    assert all(weight.dtype == torch.float32 for weight in rounded.values())


@pytest.mark.parametrize("kind", ["whole", "last layer", "lora", "lora of the encoder"])
def test_gradients_with_checkpointing(kind: str) -> None:
    """Reentrant checkpointing would silently drop those of the layers above frozen ones."""
    found = []
    for checkpointing in (False, True):
        model: Any = build_captioner("", "", "tiny", 384, TOKENS, seed=0)
        if kind == "last layer":
            freeze_encoder(model.encoder, 1)
        elif kind != "whole":
            model = add_lora(model, 2, "both" if kind == "lora" else "encoder", pretrained=kind != "lora")
            torch.manual_seed(1)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(std=0.1)
        if checkpointing:
            plain_model(model).activation_checkpointing_enable({"use_reentrant": False})
        calls: list[int] = []
        layer = plain_model(model).decoder.transformer.h[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()
        torch.manual_seed(0)
        pixels, labels = torch.randn(2, 3, 64, 64), torch.randint(3, 384, (2, 7))
        model(pixel_values=pixels, labels=labels, use_cache=False).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)
        found.append({n: w.grad for n, w in model.named_parameters() if w.requires_grad})
    assert all(grad is not None for grad in found[0].values())
    for name, grad in found[0].items():
        assert torch.equal(found[1][name], grad), name


def test_compiled(
    three_updates: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Any
) -> None:
    """Several captions in a row survive it; here without the minutes that code generation takes."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # put back afterwards: Trainer sets it for the whole process
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiler(model, backend=backend))
    compiled, same = run(three_updates, tmp_path / "compiled", compile=True)
    assert graphs
    assert same == pytest.approx(plain[1], abs=1e-5)
    assert difference(compiled, plain[0]) < 1e-4


@pytest.mark.slow
def test_compiled_for_real(
    three_updates: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Any
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    compiled, same = run(three_updates, tmp_path / "compiled", compile=True)
    assert same == pytest.approx(plain[1], abs=1e-3)
    assert difference(compiled, plain[0]) < 1e-2


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda has=has: has)
        assert resolve_precision("auto", cuda) == resolve_precision("auto", cuda, True) == ("bf16" if has else "fp32")
        assert resolve_precision("auto", cpu) == "fp32"
        assert resolve_precision("auto", cpu, training=True) == ("bf16" if has else "fp32")
    assert resolve_precision("int8", cpu) == "int8"


@pytest.mark.parametrize(
    ("flags", "limit", "has"),
    [
        ("fpu avx512f avx512_bf16", None, True),
        ("fpu avx512f avx512_bf16", "ALL", True),
        ("fpu avx512f avx512_bf16", "avx512_core_bf16", True),
        ("fpu avx512f avx512_bf16", "AVX512_CORE_VNNI", False),
        ("fpu avx512f avx512_bf16", "avx2", False),
        ("fpu avx512f avx512_vnni", None, False),
        ("fpu amx_tile amx_bf16", None, True),
        ("fp asimd bf16", None, True),
        ("fp asimd", None, False),
    ],
)
def test_bf16_in_hardware(monkeypatch: pytest.MonkeyPatch, flags: str, limit: str | None, has: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA") if limit else ():
        with monkeypatch.context() as within:
            within.setenv(variable, limit or "")
            assert precision.cpu_has_bf16() is has
    if limit is None:
        assert precision.cpu_has_bf16() is has


def test_training_arguments(three_updates: Callable[..., None], tmp_path: Path) -> None:
    options = FinetuneOptions(output_dir=tmp_path, gradient_checkpointing=True, precision="fp32").resolved(None)
    arguments = trainer_arguments(options, tmp_path, 4, torch.nn.Linear(1, 1))
    assert (arguments.optim, arguments.activation_checkpointing) == ("adamw_torch_fused", True)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--precision fp16: training needs a GPU; use auto"):
            run(three_updates, tmp_path / "fp16", precision="fp16")


def test_a_run_keeps_its_precision(
    three_updates: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What auto stood for when a run began holds until its end, on whatever machine it goes on."""
    monkeypatch.setattr(run_folder, "resolve_precision", lambda *_, training=False: "bf16")
    begun, _ = run(three_updates, tmp_path / "model")
    file = tmp_path / "model" / "options.json"
    assert json.loads(file.read_text())["precision"] == "bf16"
    assert "| computed in | bf16 (auto: there is hardware for it) |" in (tmp_path / "model" / "README.md").read_text()
    explicit, _ = run(three_updates, tmp_path / "explicit", precision="bf16")
    assert difference(begun, explicit) == 0
    monkeypatch.setattr(run_folder, "resolve_precision", lambda *_, training=False: "fp32")
    three_updates(tmp_path / "model", max_steps=6)
    kept = json.loads(file.read_text())
    assert (kept["precision"], kept["options"]["precision"]) == ("bf16", "auto")


def test_an_older_run_goes_on_in_fp32(
    three_updates: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that wrote no precision down took fp32 on a CPU, whatever it has."""
    three_updates(tmp_path / "model")
    file = tmp_path / "model" / "options.json"
    written = json.loads(file.read_text())
    del written["precision"]
    file.write_text(json.dumps(written))
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    identity = run_folder.read_run(tmp_path / "model")
    assert identity is not None
    assert identity.computes_in == resolve_precision("auto", pick_device("auto"))
