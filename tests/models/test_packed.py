"""Linear layers in bf16 and int8 against the same products by hand; captioners made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from toolkit.captioning import captioner as captioning
from toolkit.captioning.captioner import faster_precision, load_captioner
from toolkit.captioning.pipeline import model_fingerprint
from toolkit.commands.batch_caption import batch_caption
from toolkit.errors import ModelError
from toolkit.models import packed
from toolkit.models.loading import OURS
from toolkit.models.packed import PackedLinear, pack_linears, why_not_int8
from toolkit.options import BatchCaptionOptions, GenerationOptions

needs_int8 = pytest.mark.skipif(why_not_int8() is not None, reason=str(why_not_int8()))
BOTH = ["bf16", pytest.param("int8", marks=needs_int8)]


def toolkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def layer(out: int = 48, given: int = 32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(given, out)


@torch.inference_mode()
def test_bf16_is_the_product_of_rounded_numbers() -> None:
    plain, x = layer(), torch.randn(3, 5, 32)
    found = PackedLinear(plain.weight, plain.bias, "bf16", torch.float32)(x)
    exact = x.bfloat16().double() @ plain.weight.bfloat16().double().t() + plain.bias.bfloat16().double()
    assert found.shape == (3, 5, 48)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8)


@needs_int8
@torch.inference_mode()
def test_int8_by_hand() -> None:
    """Against NumPy's whole numbers: a scale for each row of x and for each row of the weights, rounded to the nearest."""
    plain, x = layer(), torch.randn(7, 32) * torch.logspace(-3, 3, 7)[:, None]
    found = PackedLinear(plain.weight, plain.bias, "int8", torch.float32)(x)
    weight, rows = plain.weight.numpy(), x.numpy()
    w_scale, x_scale = (np.abs(a).max(1, keepdims=True) / np.float32(127) for a in (weight, rows))
    product = np.rint(rows / x_scale).astype(np.int64) @ np.rint(weight / w_scale).astype(np.int64).T
    expected = product * (x_scale.astype(np.float64) * w_scale.T) + plain.bias.numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    error = (found - plain(x)).norm(dim=1) / plain(x).norm(dim=1)
    assert error.max() < 0.02


@pytest.mark.parametrize("precision", BOTH)
@torch.inference_mode()
def test_rows_do_not_depend_on_others(precision: str) -> None:
    plain, x = layer(), torch.randn(9, 32)
    x[3] *= 1000
    x[4] = 0
    of = PackedLinear(plain.weight, plain.bias, precision, torch.float32)
    whole = of(x)
    assert all(torch.equal(of(x[i : i + 1])[0], whole[i]) for i in range(len(x)))
    assert torch.equal(whole[4], plain.bias if precision == "int8" else plain.bias.bfloat16().float())


@pytest.mark.parametrize("scaling", [None, 0.3])
@torch.inference_mode()
def test_attention_by_products(scaling: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 7, 16), torch.randn(2, 3, 7, 16)
    found = packed.attention_by_products(query.bfloat16(), key.bfloat16(), value.bfloat16(), scaling)
    exact = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


@needs_int8
def test_the_encoder_in_int8_attends_by_products(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where linear layers give bf16. It is as near to fp32 as with transformers' attention."""
    monkeypatch.setattr(packed, "cpu_has_bf16", lambda: True)
    captioner, calls, real = load_captioner(model_dir, precision="int8"), [], packed.attention_by_products
    monkeypatch.setattr(packed, "attention_by_products", lambda *given: calls.append(1) or real(*given))
    encoder, pixels = captioner.model.encoder, torch.randn(2, *captioner.transform.shape)
    with torch.inference_mode():
        found = encoder(pixel_values=pixels).last_hidden_state
        assert len(calls) == encoder.config.num_hidden_layers
        for part in encoder.modules():
            if hasattr(part, "config"):
                part.config._attn_implementation_internal = "sdpa"
        stock = encoder(pixel_values=pixels).last_hidden_state
        exact = load_captioner(model_dir).model.encoder(pixel_values=pixels).last_hidden_state
    assert len(calls) == encoder.config.num_hidden_layers
    assert (found - exact).norm() < 1.2 * (stock - exact).norm() < 0.1 * exact.norm()
    assert packed.cross_dtype(captioner.model.decoder) == torch.bfloat16


@pytest.mark.parametrize("precision", BOTH)
@torch.inference_mode()
def test_what_is_packed(precision: str) -> None:
    """Each nn.Linear and Conv1D, with or without a bias; their fp32 weights are gone. Subclasses stay as they are."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 32, bias=False), Conv1D(8, 32)
            self.head, self.norm = nn.Linear(8, 40), nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.b(self.a(x)).float()))

    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(4, 16)
    before = model(x)
    pack_linears(model, precision)
    assert [type(part) for part in (model.a, model.b, model.head)] == [PackedLinear] * 3
    assert (model.norm.weight.dtype, type(model.attention.out_proj)) == (
        torch.float32,
        nn.modules.linear.NonDynamicallyQuantizableLinear,
    )
    after = model(x)
    assert after.dtype == torch.float32
    assert (after - before).norm() / before.norm() < 0.03
    assert {name for name, _ in model.named_parameters()} == {
        "norm.weight", "norm.bias", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight",
        "attention.out_proj.bias",
    }  # fmt: skip


@pytest.mark.parametrize("precision", BOTH)
def test_a_captioner(precision: str, model_dir: Path, pictures: Callable[[int], Path]) -> None:
    """The same captions whatever else is in the batch; scores near those of fp32; another journal key."""
    paths = sorted(pictures(8).glob("[0-9].jpg"))
    options = GenerationOptions(num_beams=3, max_length=12)
    plain, other = load_captioner(model_dir), load_captioner(model_dir, precision=precision)
    assert (plain.precision, other.precision) == ("fp32", precision)
    assert model_fingerprint(plain, options) != model_fingerprint(other, options)
    assert plain.hash_weights().hex() == other.hash_weights().hex()
    together = other.caption(paths, options, batch_size=8)
    assert together == other.caption(paths, options, batch_size=3) == other.caption(paths, options, batch_size=1)
    exact = plain.caption(paths, options)
    assert [a.score for a in together] == pytest.approx([b.score for b in exact], abs=0.1)


def test_what_can_not_be_had(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no such operator\nC++ stack")

    with monkeypatch.context() as within:
        within.setattr(packed, "_product", fails)
        with pytest.raises(
            ModelError, match=r"--precision int8: this build of torch has no int8 product \(no such operator\); use"
        ):
            load_captioner(model_dir, precision="int8")
    monkeypatch.setattr(packed, "_product", lambda *_: torch.full((2, 2), 32767.0))
    with pytest.raises(
        ModelError, match=r"--precision int8: this processor's int8 products overflow \(it has no VNNI\); use bf16"
    ):
        load_captioner(model_dir, precision="int8")


def test_who_is_told_of_it(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_captioner(model_dir)
    monkeypatch.setattr(captioning, "cpu_has_bf16", lambda: True)
    assert faster_precision(plain) is None  # the tiny preset does not gain
    for width, names in (
        (256, "--precision bf16 is faster"),
        (768, "--precision bf16 and --precision int8 are faster"),
    ):
        config = SimpleNamespace(model_type=OURS, decoder=SimpleNamespace(hidden_size=width))
        wide = replace(plain, model=SimpleNamespace(config=config, device=torch.device("cpu")))
        assert names in (faster_precision(wide) or "")
        assert faster_precision(replace(wide, precision="bf16")) is None
    monkeypatch.setattr(captioning, "cpu_has_bf16", lambda: False)
    assert faster_precision(wide) is None


@pytest.mark.slow
def test_inspect_compares(model_dir: Path, pictures: Callable[[int], Path], tmp_path: Path) -> None:
    """Its count is what two runs of batch-caption give."""
    captions, folder = {}, str(pictures(8))
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.jsonl"
        batch_caption(BatchCaptionOptions(paths=(folder,), model=str(model_dir), output=out, precision=precision))
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        captions[precision] = [row["caption"] for row in rows if row["error"] is None]
    given = ["inspect", str(model_dir), "--precision", "bf16", "--images", folder, "--json"]
    found = json.loads(toolkit(*given).stdout)["precision"]
    pairs = list(zip(*captions.values(), strict=True))
    assert (found["images"], found["equal"]) == (len(pairs), sum(a == b for a, b in pairs))
    assert found["times_faster"] > 0
    text = toolkit(*given[:-1]).stdout
    assert f"{found['equal']} of {found['images']} captions are those of fp32" in text


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE_VNNI"])
def test_a_processor_without_these_units(limit: str, model_dir: Path, pictures: Callable[[int], Path]) -> None:
    """As oneDNN sees it: auto is fp32, bf16 says that it is emulated, int8 works or says why it does not."""
    image = pictures(1) / "0.jpg"

    def caption(precision: str) -> subprocess.CompletedProcess[str]:
        return toolkit(
            "caption", str(image), "--model", str(model_dir), "--precision", precision, ONEDNN_MAX_CPU_ISA=limit
        )

    assert caption("auto").stdout == caption("fp32").stdout
    emulated = caption("bf16")
    assert emulated.returncode == 0
    assert "this processor has no bf16 arithmetic" in emulated.stderr
    small = caption("int8")
    assert small.returncode == 0 or "--precision int8: this processor's int8 products overflow" in small.stderr
