"""Linear layers in bf16 or int8 on a CPU: what `--precision bf16` and `int8` make of a captioner that is loaded there.

Each nn.Linear (GPT-2's Conv1D too) becomes a `PackedLinear`, whose weights are copied once into oneDNN's layout and whose
fp32 weights are given back. All else stays in fp32: embeddings, norms, the residual stream, the head's logits and the
search. Softmax too, for scaled_dot_product_attention sums in fp32 whatever its inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from toolkit.models.precision import cpu_has_bf16

TINY = torch.finfo(torch.float32).tiny  # the scale of zeros
ROWS_TO_EXPECT = 32  # 8 images with 4 beams; weights packed for 32 rows work for any number
PRECISIONS = ("bf16", "int8")
ATTENTION = "toolkit_packed"
ARITHMETIC = 2  # raised when the same weights and pixels give other numbers than before: captions are then made again


def attention_by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None = None
) -> torch.Tensor:
    """scaled_dot_product_attention without a mask, in about half its time on a CPU without AMX while the scores of all
    heads stay in the processor's cache: of a few queries, or of two images at a time.

    Args:
        query: bfloat16 (n, heads, T, d).
        key, value: bfloat16 (n, heads, S, d).
    """
    scores = (query @ key.transpose(-1, -2)).float().mul_(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores.softmax(-1).to(value.dtype) @ value


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", of an encoder in int8."""
    plain = attention_mask is None and query.shape == key.shape and not getattr(module, "is_causal", True)
    if plain and query.dtype is torch.bfloat16 and not kwargs.get("dropout"):
        return attention_by_products(query, key, value, kwargs.get("scaling")).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, _packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class PackedLinear(nn.Module):
    """x W^T + b with W in bf16 or int8, for inference on a CPU.

    int8: a scale for each output channel of W and one for each row of x (a token), so that a caption does not depend on
    the other images of its batch. Rows are uint8 around 128, which is what VNNI multiplies with int8.

    Args:
        weight: float32 (out, in).
        bias: float32 (out,), or None.
        precision: "bf16" or "int8".
        dtype: of the output.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, precision: str, dtype: torch.dtype) -> None:
        super().__init__()
        weight = (
            weight.detach().contiguous()
        )  # of a Conv1D it is a transposed view, which int8 packing takes for another
        self.out_features, self.in_features = weight.shape
        self.precision, self.dtype = precision, dtype
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().clone()
        self.packed: torch.Tensor
        self.bias: torch.Tensor
        self.scale: torch.Tensor
        self.zero: torch.Tensor
        if precision == "bf16":
            packed, bias = weight.bfloat16(), bias.bfloat16()
            self.reordered = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not without AVX512
            if self.reordered:
                packed = torch.ops.mkldnn._reorder_linear_weight(packed, ROWS_TO_EXPECT)
        else:
            scale = weight.abs().amax(1).clamp_min(TINY) / 127
            rounded = (weight / scale[:, None]).round().to(torch.int8)
            packed = torch.ops.onednn.qlinear_prepack(rounded, None)
            self.register_buffer("scale", scale, persistent=False)
            self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int64), persistent=False)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.precision == "bf16":
            x = x.bfloat16()
            if self.reordered:
                return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "").to(self.dtype)
            return nn.functional.linear(x, self.packed, self.bias).to(self.dtype)
        rows = x.reshape(-1, self.in_features)
        scale = rows.abs().amax(1, keepdim=True).float().clamp_min(TINY) / 127
        signed = torch.div(rows, scale).round_().to(torch.int8)  # to uint8 it would be five times as slow
        product = _product(signed.view(torch.uint8).bitwise_xor_(128), self.packed, self.scale, self.zero)
        return torch.addcmul(self.bias, product, scale).to(self.dtype).view(*x.shape[:-1], self.out_features)


def _product(rounded: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """(rounded - 128) W^T in float32, from uint8 (n, in) and packed int8 (out, in) with a scale for each row of W."""
    return torch.ops.onednn.qlinear_pointwise(
        rounded, 1.0, 128, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )


def pack_linears(model: Any, precision: str) -> None:
    """Replaces the linear layers of a model on the CPU, one after the other, so that memory falls as it goes.

    The decoder's head over the vocabulary is the largest product of a step. It is int8 in both precisions, for int8
    gives logits in fp32; bf16 would round them to 8 bits and make ties. Without exact int8 products it stays fp32.
    The decoder's layers give fp32: its few rows are small, and sums of bf16 with the fp32 residual stream are slow.
    """
    output = model.float().get_output_embeddings()
    head = "fp32" if why_not_int8() else "int8"
    inner = torch.bfloat16 if precision == "bf16" or cpu_has_bf16() else torch.float32
    of_decoder = set(model.decoder.modules()) if hasattr(model, "decoder") else set()
    if precision == "int8":
        for part in set(model.modules()) - of_decoder:
            config: Any = getattr(part, "config", None)
            if getattr(config, "_attn_implementation", None) == "sdpa":
                config._attn_implementation_internal = ATTENTION
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) not in (nn.Linear, Conv1D):
                continue
            of = head if module is output else precision
            if of != "fp32":
                weight: torch.Tensor = module.weight.t() if isinstance(module, Conv1D) else module.weight
                bias: Any = module.bias
                dtype = torch.float32 if module is output or module in of_decoder else inner
                setattr(parent, name, PackedLinear(weight, bias, of, dtype))


def why_not_int8() -> str | None:
    """Why int8 products can't be had from this processor and torch; None if they come out exact.

    Without VNNI oneDNN adds two products in 16 bits, which overflow: asked of the arithmetic itself, not of the flags.
    """
    try:
        weight = torch.tensor([[127] * 64, [-127] * 64], dtype=torch.int8)
        given = torch.tensor([[255] * 64, [1] * 64], dtype=torch.uint8)
        packed = torch.ops.onednn.qlinear_prepack(weight.clone(), None)
        found = _product(given, packed, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    except (RuntimeError, AttributeError) as error:
        return f"this build of torch has no int8 product ({str(error).splitlines()[0][:80]})"
    exact = (given.long() - 128) @ weight.long().t()
    return None if torch.equal(found.long(), exact) else "this processor's int8 products overflow (it has no VNNI)"


def cross_dtype(decoder: nn.Module) -> torch.dtype | None:
    """What a packed decoder keeps its keys and values of cross-attention in, which each step reads as a whole; None for
    what they come in."""
    kinds = {layer.precision for layer in decoder.modules() if isinstance(layer, PackedLinear)}
    return torch.bfloat16 if "bf16" in kinds or (kinds and cpu_has_bf16()) else None


def packing(model: nn.Module) -> str:
    """What the linear layers of a model are packed in, as "bf16 to torch.bfloat16, int8 to torch.float32; 2"; "" if they
    are not. It differs between processors, which may lack int8 or bf16."""
    kinds = {f"{layer.precision} to {layer.dtype}" for layer in model.modules() if isinstance(layer, PackedLinear)}
    return f"{', '.join(sorted(kinds))}; {ARITHMETIC}" if kinds else ""
