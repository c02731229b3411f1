"""How Phi-3-small's own operators are written in ONNX, for the CPU and for CUDA."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from export.models.layers import GELU_SLOPE
from export.models.masks import BlockPattern
from export.to_onnx.graph import MICROSOFT, Graph, attention_call, parent

INT32 = ir.DataType.INT32


def block_sparse_attention(graph: Graph, node: fx.Node) -> None:
    """SparseAttention, or GroupQueryAttention where nothing is left out within the context."""
    call = attention_call(node)
    capacity, path = call.past_key.meta["val"].shape[2], f"/model/layers.{graph.attentions()}/attn"
    caches = [graph.values[call.past_key], graph.values[call.past_value]]
    tables = [graph.values[call.cos], graph.values[call.sin]]
    heads, blocks = [call.heads, call.kv_heads], BlockPattern(*call.blocks)
    attributes: dict[str, Any] = {"num_heads": call.heads, "kv_num_heads": call.kv_heads, "scale": call.scale}
    attributes["rotary_interleaved"] = 0
    if blocks.stride == 1 or capacity <= blocks.dense_tokens:
        place = [] if call.rows is None else [graph.values[call.rows]]
        lengths = [graph.values[call.last_position], graph.values[call.total_tokens]]
        graph.values[node] = graph.add(
            path + "/GroupQueryAttention",
            "GroupQueryAttention",
            [graph.values[call.qkv], None, None, *caches, *lengths, *tables, *place],
            attributes | {"do_rotary": 1},
            domain=MICROSOFT,
            outputs=3,
        )
        return
    lists = [
        graph.table(f"block_{kind}_indices", table)
        for kind, table in zip(("row", "col"), blocks.layouts(call.heads, capacity), strict=True)
    ]
    lengths = [graph.values[call.total_tokens], filled(graph, graph.values[call.last_position])]
    # SparseAttention rotates by position alone: where long rope's rows lie elsewhere, the rotation is a node before it.
    packed: list[ir.Value | None] = [graph.values[call.qkv], None, None]
    if call.rows is not None:
        packed, tables = rotated(graph, path, graph.values[call.qkv], [graph.values[call.rows], *tables], heads), []
    graph.values[node] = graph.add(
        path + "/SparseAttention",
        "SparseAttention",
        [*packed, *caches, *lists, *lengths, *tables],
        attributes | {"do_rotary": int(call.rows is None), "sparse_block_size": blocks.size},
        domain=MICROSOFT,
        outputs=3,
    )


def filled(graph: Graph, last_position: ir.Value) -> ir.Value:
    """How many tokens are in, these included, for each sequence."""
    if "filled" not in graph.values:
        one = graph.constant("/constants/one_32", 1, INT32)
        graph.values["filled"] = graph.add("/lengths/filled/Add", "Add", [last_position, one])[0]
    value: ir.Value = graph.values["filled"]
    return value


def rotated(graph: Graph, path: str, qkv: ir.Value, tables: list[ir.Value], heads: list[int]) -> list[ir.Value | None]:
    """Packed query, key and value -> apart, the first two rotated. `tables`: each token's row, cos, sin."""
    sizes = [heads[0], heads[1], heads[1]]
    split = graph.constant("/constants/qkv", [count * graph.config.head_dim for count in sizes])
    query, key, value = graph.add(path + "/Split", "Split", [qkv, split], {"axis": -1}, outputs=3)
    turned = [
        graph.add(f"{path}/{name}/RotaryEmbedding", "RotaryEmbedding", [part, *tables], domain=MICROSOFT)[0]
        for name, part in (("query", query), ("key", key))
    ]
    return [*turned, value]


def gegelu(graph: Graph, node: fx.Node) -> None:
    gate, linear = (graph.values[half] for half in node.args[:2])
    limit = node.args[2]
    assert isinstance(limit, float)
    path, kind = parent(node), graph.float_type
    high, low = (graph.constant(f"/constants/{value}", value, kind) for value in (limit, -limit))
    gate = graph.add(path + "/gate/Clip", "Clip", [gate, None, high])[0]
    gate = graph.add(path + "/gate/QuickGelu", "QuickGelu", [gate], {"alpha": GELU_SLOPE}, domain=MICROSOFT)[0]
    linear = graph.add(path + "/linear/Clip", "Clip", [linear, low, high])[0]
    linear = graph.add(path + "/linear/Add", "Add", [linear, graph.constant("/constants/1.0", 1.0, kind)])[0]
    graph.values[node] = graph.add(path + "/Mul", "Mul", [gate, linear])[0]


def never_chosen(graph: Graph, node: fx.Node) -> None:
    logits, indices = node.args
    assert isinstance(indices, list)
    dummies = set(indices)
    mask = graph.constant(
        "never_chosen", [int(id in dummies) for id in range(graph.config.vocab_size)], ir.DataType.BOOL
    )
    minimum = torch.finfo(getattr(torch, graph.style.activations)).min
    lowest = graph.constant("/constants/lowest", minimum, graph.float_type)
    graph.values[node] = graph.add("/never_chosen/Where", "Where", [mask, lowest, graph.values[logits]])[0]
