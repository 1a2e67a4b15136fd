"""ONNX graphs with their weights in int8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = (64, 32, 16)  # weights that share a scale: the first that divides all widths, so that no block is padded


def quantize(source: Path, target: Path) -> None:
    """Writes a graph with its weights in int8.

    Products become `MatMulNBits`: a scale for each `BLOCKS` of a column of weights, and as many of a row of activations, which
    are rounded as they come. onnxruntime's quantize_dynamic has one scale for all activations of a call: in a ViT, whose
    GELUs have a few large values, that leaves few captions the same (docs/benchmarks.md), and a caption would depend on
    the other images of its batch. Embeddings have a scale a token. The first convolution and sums stay in fp32.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    logger = logging.getLogger("onnxruntime.quantization")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model = ONNXModel(onnx.load(source))
        model.replace_gemm_with_matmul()
        _fold_transposes(model.model.graph)
        known = {tensor.name: tensor.dims for tensor in model.model.graph.initializer}
        inner = [
            known[node.input[1]][0]
            for node in model.model.graph.node
            if node.op_type == "MatMul" and node.input[1] in known
        ]
        block = next((size for size in BLOCKS if all(width % size == 0 for width in inner)), BLOCKS[-1])
        quantizer = MatMulNBitsQuantizer(model.model, bits=8, block_size=block, is_symmetric=True, accuracy_level=4)
        quantizer.process()
    finally:
        logger.setLevel(level)
    model = quantizer.model
    _pack_embeddings(model.model.graph)
    model.remove_unused_constant()
    onnx.save(model.model, target)


def _fold_transposes(graph: Any) -> None:
    """The head is the table of embeddings, transposed: a product is rounded only where its weights stand by themselves."""
    from onnx.numpy_helper import from_array, to_array

    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in known:
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            weights = to_array(known[node.input[0]]).transpose(order)
            graph.initializer.append(from_array(np.ascontiguousarray(weights), node.output[0]))
            graph.node.remove(node)


def _pack_embeddings(graph: Any) -> None:
    """Looks tokens up in a table of int8, and multiplies each with its scale."""
    from onnx import TensorProto, helper
    from onnx.numpy_helper import from_array, to_array

    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Gather" or node.input[0] not in known or len(known[node.input[0]].dims) != 2:
            continue
        table, name, place = to_array(known[node.input[0]]), node.output[0], list(graph.node).index(node)
        scale = np.maximum(np.abs(table).max(1, keepdims=True), np.finfo(np.float32).tiny) / 127
        graph.initializer.append(from_array(np.rint(table / scale).astype(np.int8), f"{name}_int8"))
        graph.initializer.append(from_array(scale.astype(np.float32), f"{name}_scale"))
        graph.node.remove(node)
        for i, new in enumerate((
            helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{name}_rounded"]),
            helper.make_node("Cast", [f"{name}_rounded"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{name}_scales"]),
            helper.make_node("Mul", [f"{name}_float", f"{name}_scales"], [name]),
        )):  # fmt: skip
            graph.node.insert(place + i, new)
