"""A captioner with a GPT-2 decoder as two ONNX graphs, which transformers.js and optimum know by their names:

    encoder_model         pixel_values (images, C, H, W) -> last_hidden_state (images, 2 * layers * heads, S, d)
    decoder_model_merged  input_ids (rows, T), encoder_hidden_states (images, 2 * layers * heads, S, d) and of each layer
                          past_key_values.I.key and .value (rows, heads, P, d); P is 0 for the first tokens
                          -> logits (rows, T, vocabulary), present.I.key and .value (rows, heads, P + T, d)

What the encoder gives are not its hidden states but what each layer of the decoder makes of them: the keys and values of its
cross-attention, layer by layer. Both programs hand it on as it is, and so project once an image what the usual graph projects
again at every token. The rows of an image (its beams) are a multiple that the graph counts itself.

transformers' own modules are traced, with another attention function and another cache.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, Cache, EncoderDecoderCache

from toolkit.errors import ModelError, RunError
from toolkit.models.onnx_int8 import quantize

ENCODER, DECODER = "encoder_model", "decoder_model_merged"
QUANTIZED = "_quantized"  # what transformers.js adds to the names of its dtype q8
ATTENTION = "toolkit_graph"
OPSET = 18  # what torch translates to; onnxruntime reads it since 1.14
LARGEST = 1_900_000_000  # bytes of weights in one file: protobuf ends at 2 GiB
TOLERANCE = 1e-3  # of the largest value; sums in another order give some 1e-6


def require(*packages: str) -> None:
    """
    Raises:
        ModelError: one of them is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"ONNX needs {' and '.join(missing)}, which is not installed; pip install 'captioning-toolkit[onnx]'."
        )


def why_not(model: Any) -> str | None:
    """Why a VisionEncoderDecoderModel can't be exported; None if it can."""
    kind = model.config.decoder.model_type
    if kind != "gpt2":
        return f"its decoder is of type {kind}, and only GPT-2 decoders are"
    for part in (model.encoder, model.decoder):
        weights = sum(p.numel() * p.element_size() for p in part.parameters())
        if weights > LARGEST:
            return f"one of its halves has {weights / 1e9:.1f} GB of weights, and a file in the format ends at 2 GB"
    return None


# ---- what is traced -------------------------------------------------------------------------------------------------


def graph_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as plain products; in cross-attention the rows of an image share its keys and values.

    Args:
        query: (rows, heads, T, d)
        key, value: (rows, heads, P + T, d), or in cross-attention (images, heads, S, d)
        attention_mask: added to the scores, (1, 1, T, P + T), or None.

    Returns:
        (rows, T, heads, d), and None for the weights.
    """
    rows, heads, tokens, d = query.shape
    images = key.shape[0]
    if module.is_cross_attention:
        query = query.reshape(images, -1, heads, tokens, d).transpose(1, 2).reshape(images, heads, -1, d)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    out = scores.softmax(-1) @ value
    if module.is_cross_attention:
        out = out.reshape(images, heads, -1, tokens, d).transpose(1, 2).reshape(rows, heads, tokens, d)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, graph_attention)


class _SelfAttentionCache(Cache):
    """Adds the new keys and values to those before, and keeps both as `present`."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        self.past, self.present = past, list[torch.Tensor]()
        self.layers: list[Any] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = torch.cat([self.past[2 * layer_idx], key_states], 2)
        values = torch.cat([self.past[2 * layer_idx + 1], value_states], 2)
        self.present += [keys, values]
        return keys, values


class _Layer:
    """Where transformers looks for a layer's existing keys and values."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values


class _CrossAttentionCache(Cache):
    def __init__(self, states: torch.Tensor, layers: int) -> None:
        parts = states.chunk(2 * layers, 1)
        self.layers = [_Layer(*parts[2 * i : 2 * i + 2]) for i in range(layers)]


class _Caches(EncoderDecoderCache):
    def __init__(self, self_attention: _SelfAttentionCache, cross: _CrossAttentionCache) -> None:
        self.self_attention_cache, self.cross_attention_cache = self_attention, cross
        self.is_updated = dict.fromkeys(range(len(cross.layers)), True)


class EncoderGraph(nn.Module):
    """Pixels to the keys and values of the decoder's cross-attention."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.project = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.layers = nn.ModuleList(block.crossattention for block in model.decoder.transformer.h)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states, found = self.project(self.encoder(pixel_values=pixel_values).last_hidden_state), []
        for layer in self.layers:
            for part in layer.c_attn(states).split(layer.split_size, 2):  # type: ignore[operator]
                found.append(part.view(*part.shape[:-1], layer.num_heads, layer.head_dim).transpose(1, 2))
        return torch.cat(found, 1)


class DecoderGraph(nn.Module):
    """Tokens behind those of the past to logits, and to the past of the next call."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.layers = model.config.decoder.n_layer

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        before = past[0].shape[2]
        place = torch.arange(before, before + input_ids.shape[1], device=input_ids.device)
        later = torch.arange(before + input_ids.shape[1], device=input_ids.device) > place[:, None]
        mask = torch.zeros_like(later, dtype=torch.float32).masked_fill(later, torch.finfo(torch.float32).min)
        kept = _SelfAttentionCache(past)
        logits = self.decoder(
            input_ids=input_ids,
            position_ids=place[None],
            attention_mask=mask[None, None],
            encoder_hidden_states=encoder_hidden_states,  # not read: its keys and values are in the cache
            past_key_values=_Caches(kept, _CrossAttentionCache(encoder_hidden_states, self.layers)),
            use_cache=True,
        ).logits
        return (logits, *kept.present)


def traceable(model: Any) -> tuple[EncoderGraph, DecoderGraph]:
    """Both halves over the same weights; the model itself stays as it is."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}).eval()
    for half, attention in ((twin.encoder, "eager"), (twin.decoder, ATTENTION)):
        for part in half.modules():
            if hasattr(part, "config"):  # attention modules may have one of their own
                part.config._attn_implementation_internal = attention
    return EncoderGraph(twin).eval(), DecoderGraph(twin).eval()


# ---- files ----------------------------------------------------------------------------------------------------------


def write_graphs(model: Any, shape: tuple[int, ...], folder: Path, int8: bool) -> None:
    """Writes both graphs into a folder, and compares them with the model on random pixels.

    Args:
        model: a VisionEncoderDecoderModel in fp32 on the CPU, of which `why_not` says nothing.
        shape: of an image's pixels, (C, H, W), as its image processor makes them; the encoder's graph takes no other.
        int8: also those with weights in int8, under the same names and `QUANTIZED`.

    Raises:
        RunError: torch can't trace the encoder, or a graph gives other numbers than the model.
    """
    encoder, decoder = traceable(model)
    config = model.config.decoder
    pixels = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    layers = [f"{layer}.{kind}" for layer in range(config.n_layer) for kind in ("key", "value")]
    past = [torch.zeros(6, config.n_head, 5, config.n_embd // config.n_head) for _ in layers]
    kept = {0: "batch_size", 2: "past_sequence_length"}
    with torch.no_grad():
        states = encoder(pixels)
        trace(encoder, {"pixel_values": (pixels, {0: "batch_size"})}, ["last_hidden_state"], folder / f"{ENCODER}.onnx")
        inputs = {
            "input_ids": (torch.zeros(6, 3, dtype=torch.int64), {0: "batch_size", 1: "sequence_length"}),
            "encoder_hidden_states": (states, {0: "images"}),
            **{f"past_key_values.{name}": (tensor, kept) for name, tensor in zip(layers, past, strict=True)},
        }
        outputs = ["logits", *(f"present.{name}" for name in layers)]
        trace(decoder, inputs, outputs, folder / f"{DECODER}.onnx")
        _compare(encoder, decoder, pixels, folder)
    if int8:
        for name in (ENCODER, DECODER):
            quantize(folder / f"{name}.onnx", folder / f"{name}{QUANTIZED}.onnx")


def trace(
    module: nn.Module, inputs: dict[str, tuple[torch.Tensor, dict[int, str]]], outputs: list[str], path: Path
) -> None:
    """Writes what a module computes as a graph.

    Args:
        inputs: by name, an example, and the dimensions that vary with what they are called.

    Raises:
        RunError: torch can't.
    """
    known = {name: torch.export.Dim(name) for _, axes in inputs.values() for name in axes.values()}
    shapes = [{axis: known[name] for axis, name in axes.items()} for _, axes in inputs.values()]
    first = len(inspect.signature(module.forward).parameters) - 1  # what is behind goes to *past
    given: Any = shapes if len(inputs) == first + 1 else [*shapes[:first], tuple(shapes[first:])]
    try:
        with _quietly():
            program = torch.onnx.export(
                module, tuple(example for example, _ in inputs.values()), input_names=list(inputs),
                output_names=outputs, dynamic_shapes=tuple(given), dynamo=True, verbose=False, opset_version=OPSET,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise RunError(f"torch can't write this model as ONNX ({str(error).splitlines()[0][:200]}).") from None
    assert program is not None
    for node in program.model.graph.all_nodes():  # each line of Python that it comes from, with paths of this machine
        node.metadata_props.clear()
    program.save(path, external_data=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """torch warns of packages that it does without, and of its own names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare(encoder: EncoderGraph, decoder: DecoderGraph, pixels: torch.Tensor, folder: Path) -> None:
    """Other numbers of images, rows and tokens than were traced: what torch took for a constant shows here."""
    pixels = torch.cat([pixels, pixels[:1] / 2])
    sessions = [open_session(folder / f"{name}.onnx") for name in (ENCODER, DECODER)]
    wanted = encoder(pixels)
    found = [sessions[0].run(None, {"pixel_values": part.numpy()})[0] for part in (pixels, pixels[:1])]
    _check_close("encoder", [wanted, wanted[:1]], found)
    config = decoder.decoder.config
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (6, 4), generator=random)
    past = [torch.zeros(6, config.n_head, 0, config.n_embd // config.n_head) for _ in range(2 * config.n_layer)]
    inputs = [node.name for node in sessions[1].get_inputs()]
    for part in (tokens[:, :3], tokens[:, 3:]):
        wanted_all = decoder(part, wanted, *past)
        feeds = dict(zip(inputs, (part, wanted, *past), strict=True))
        found = sessions[1].run(None, {name: np.ascontiguousarray(value.numpy()) for name, value in feeds.items()})
        _check_close("decoder", list(wanted_all), found)
        past = list(wanted_all[1:])


def _check_close(half: str, wanted: list[torch.Tensor], found: list[Any]) -> None:
    for ours, theirs in zip(wanted, found, strict=True):
        far = (ours - torch.from_numpy(theirs)).abs().max() if ours.shape == theirs.shape else torch.inf
        if not far <= TOLERANCE * max(1.0, float(ours.abs().max())):
            raise RunError(
                f"the {half} as ONNX gives other numbers than the model (they differ by {float(far):.2g}); it can't be exported."
            )


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has.

    Raises:
        ModelError: the file is missing or damaged, or not read by this onnxruntime.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base of its own
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: can't be opened by onnxruntime ({reason}); export the model again.") from None
