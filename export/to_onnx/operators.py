"""How each traced operator is written in ONNX for the CPU: one small function each, in the table LOWERINGS."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from export.models.shape import EMBEDDING
from export.scheme import Precision
from export.to_onnx.attention import attention, sequence_lengths, table_rows
from export.to_onnx.graph import (
    MICROSOFT,
    TOKEN_LOGITS_FROM,
    Graph,
    GraphStyle,
    label,
    last_along,
    parent,
)
from export.to_onnx.phi3small import gegelu, never_chosen
from export.to_onnx.side_adapters import with_side_adapter
from export.to_onnx.slots import shared_zero_points_id
from export.weights.slots import SlotId

aten = torch.ops.aten


def embedding(graph: Graph, node: fx.Node) -> None:
    table, ids = node.args
    assert isinstance(table, fx.Node)
    name = graph.parameters[table]
    precision = graph.scheme.precision(name)
    if precision is None:
        result = graph.add(label(node) + "/Gather", "Gather", [graph.weight(SlotId(name)), graph.values[ids]])
    else:
        result = graph.add(
            label(node) + "/GatherBlockQuantized",
            "GatherBlockQuantized",
            [graph.weight(SlotId(name, "codes")), graph.values[ids], graph.weight(SlotId(name, "scales"))],
            {"bits": precision.bits, "block_size": precision.block_size, "gather_axis": 0, "quantize_axis": 1},
            domain=MICROSOFT,
        )
    graph.values[node] = result[0]


def linear(graph: Graph, node: fx.Node) -> None:
    x, weight, *biases = node.args
    assert isinstance(weight, fx.Node)
    name = graph.parameters[weight]
    bias = graph.weight(SlotId(graph.parameters[biases[0]])) if biases and isinstance(biases[0], fx.Node) else None
    tied = name == EMBEDDING  # a tied lm_head reads the embedding's bytes, in MatMulNBits's shape
    precision = graph.scheme.precision(name)
    if precision is None:
        result = graph.add(
            label(node) + "/FusedMatMul",
            "FusedMatMul",
            [graph.values[x], graph.weight(SlotId(name))],
            {"transB": 1},
            domain=MICROSOFT,
        )
        if bias is not None:
            result = graph.add(label(node) + "/Add", "Add", [result[0], bias])
    else:
        assert precision.block_size
        rows, columns = weight.meta["val"].shape
        shape = (rows, precision.blocks(columns), precision.block_size * precision.bits // 8)
        packed = graph.weight(SlotId(name, "codes"), name="lm_head.weight_q" if tied else None, shape=shape)
        inputs = [graph.values[x], packed, graph.weight(SlotId(name, "scales"))]
        zeros = zero_points(graph, name, rows, columns, precision)
        if bias is not None:
            zeros = [*(zeros or [None]), None, bias]
        result = graph.add(
            label(node) + "/MatMulNBits",
            "MatMulNBits",
            [*inputs, *zeros],
            {
                "K": columns,
                "N": rows,
                "bits": precision.bits,
                "block_size": precision.block_size,
                "accuracy_level": graph.accuracy_level,
            },
            domain=MICROSOFT,
        )
    side = name in graph.side_matrices
    graph.values[node] = with_side_adapter(graph, node, name, result[0]) if side else result[0]


def zero_points(graph: Graph, name: str, rows: int, columns: int, precision: Precision) -> list[ir.Value | None]:
    """A matrix's own zero points; or the middle code for every block, which is the default, so that it is written only
    where the provider does not know it. These are all the same bytes: every matrix reads them in one slot."""
    if not precision.symmetric:
        return [graph.weight(SlotId(name, "zero_points"))]
    if not graph.style.zero_points:
        return []
    blocks, bits = precision.blocks(columns), precision.bits
    row_bytes = -(-blocks * bits // 8)
    name = f"zero_points_{rows}_{blocks}_{bits}"
    return [graph.weight(shared_zero_points_id(bits), name=name, shape=(rows, row_bytes))]


def rms_norm(graph: Graph, node: fx.Node) -> None:
    norm(graph, node, "SimplifiedLayerNormalization")


def layer_norm(graph: Graph, node: fx.Node) -> None:
    norm(graph, node, "LayerNormalization")


def norm(graph: Graph, node: fx.Node, operator: str) -> None:
    if node in graph.values:  # the residual addition before it has already taken it in
        return
    weights, epsilon = norm_weights(graph, node)
    attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    inputs = [graph.values[node.args[0]], *weights]
    graph.values[node] = graph.add(f"{label(node)}/{operator}", operator, inputs, attributes)[0]


def norm_weights(graph: Graph, node: fx.Node) -> tuple[list[ir.Value], float]:
    """A norm's weight, a layer norm's bias too, and epsilon."""
    weights = node.args[2 : 4 if node.target is aten.layer_norm.default else 3]
    epsilon = node.args[2 + len(weights)]
    assert isinstance(epsilon, float)
    return [
        graph.weight(SlotId(graph.parameters[weight])) for weight in weights if isinstance(weight, fx.Node)
    ], epsilon


# A norm -> the operator that takes in the addition before it.
SKIPS: Mapping[Any, str] = {
    aten.rms_norm.default: "SkipSimplifiedLayerNormalization",
    aten.layer_norm.default: "SkipLayerNormalization",
}


def add(graph: Graph, node: fx.Node) -> None:
    """A residual addition. The norm that reads it (at once, or after the last token is cut out) is fused with it."""
    left, right = node.args
    norm = next((user for user in node.users if user.target in SKIPS), None)
    if norm is None:
        graph.values[node] = graph.add(label(node) + "/Add", "Add", [graph.values[left], graph.values[right]])[0]
        return
    weights, epsilon = norm_weights(graph, norm)
    result = graph.add(
        label(norm) + "/SkipLayerNorm",
        SKIPS[norm.target],
        [graph.values[left], graph.values[right], *weights],
        {"epsilon": epsilon},
        domain=MICROSOFT,
        outputs=4,
    )
    result[1].name, result[2].name = "", ""
    graph.values[norm], graph.values[node] = result[0], result[3]


def silu(graph: Graph, node: fx.Node) -> None:
    x = graph.values[node.args[0]]
    gate = graph.add(parent(node) + "/Sigmoid", "Sigmoid", [x])[0]
    graph.values[node] = graph.add(parent(node) + "/SiLU", "Mul", [x, gate])[0]


def mul(graph: Graph, node: fx.Node) -> None:
    left, right = node.args
    path, factor = parent(node), graph.values.get(right)
    if isinstance(right, float):  # muP's, which belong to no module
        path, factor = f"/scale/{node.name}", graph.constant(f"/constants/{right}", right, graph.float_type)
    graph.values[node] = graph.add(path + "/Mul", "Mul", [graph.values[left], factor])[0]


def chunk(graph: Graph, node: fx.Node) -> None:
    """A projection's halves, which belong to the layer that it is in."""
    x, parts = node.args[:2]
    assert isinstance(parts, int)
    graph.values[node] = graph.add(
        parent(node) + "/Split", "Split", [graph.values[x]], {"axis": -1, "num_outputs": parts}, outputs=parts
    )


def last_token(graph: Graph, node: fx.Node) -> None:
    """hidden[:, -1:], the one slice that the module makes: what gets logits. With token_logits it may begin earlier."""
    first = graph.option(TOKEN_LOGITS_FROM, [-1]) if graph.style.token_logits else None
    graph.values[node] = last_along(graph, "/last_token/Slice", graph.values[node.args[0]], first)


def get_item(graph: Graph, node: fx.Node) -> None:
    source, index = node.args
    graph.values[node] = graph.values[source][index]


def part_after_part(graph: Graph, node: fx.Node) -> None:
    """Nothing: the rows lie part after part in the data file (slots.py), and so the products come."""
    graph.values[node] = graph.values[node.args[0]]


LOWERINGS: Mapping[Any, Callable[[Graph, fx.Node], None]] = {
    aten.embedding.default: embedding,
    aten.linear.default: linear,
    aten.rms_norm.default: rms_norm,
    aten.layer_norm.default: layer_norm,
    aten.add.Tensor: add,
    aten.mul.Tensor: mul,
    aten.silu.default: silu,
    aten.chunk.default: chunk,
    aten.slice.Tensor: last_token,
    operator.getitem: get_item,
    torch.ops.phi_edge.attention.default: attention,
    torch.ops.phi_edge.table_rows.default: table_rows,
    torch.ops.phi_edge.part_after_part.default: part_after_part,
    torch.ops.phi_edge.gegelu.default: gegelu,
    torch.ops.phi_edge.never_chosen.default: never_chosen,
}

CPU = GraphStyle(
    lowerings=LOWERINGS, lengths=sequence_lengths, activations="float32", scales="float32", zero_points=False
)
