"""An int8 KV cache: GroupQueryAttention quantises each new key and value by the scales of their channels.

That operator is fast for one token and slow for many: it converts each key's codes anew for every query. So a call with
many tokens takes another way through the layer: what is cached becomes float once, attention is that of a float cache,
and the new rows are quantised and written to their places. The two ways are the branches of one If.

Both channels of a key that rotation mixes have one scale, so that scaling commutes with the rotation: queries are
multiplied and keys and values divided by the scales beforehand, and a code needs no more than a cast to fit them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from export.models.attention import AttentionNode
from export.to_onnx.attention import group_query_attention, with_window_cache
from export.to_onnx.graph import MICROSOFT, Graph, attention_call
from export.to_onnx.operators import CPU, LOWERINGS
from export.weights.kv_scales import scale_ids

PAST_KEY, K_SCALE = 3, 12  # inputs of the operator, each followed by the value's
# The most tokens that do not go through float. At 3584 tokens of Phi-3-mini both ways take the same time for about 40.
FEW_TOKENS = 40


@dataclass(frozen=True)
class NewRows:
    """Where this call's tokens go in the cache: `start` int64 [1]; `indices` int64 [kv_heads, tokens, 3] for ScatterND.
    `many` bool [1]: whether they go through float."""

    many: ir.Value
    start: ir.Value
    indices: ir.Value


def attention(graph: Graph, node: fx.Node) -> None:
    """The next layer's attention, in either way."""
    call, layer = attention_call(node), graph.attentions()
    rows = new_rows(graph, call)

    def attend(path: str, window: bool) -> list[ir.Value]:
        many, few = path + "/many", path + "/few"
        branches = {
            "then_branch": graph.branch(lambda: through_float(graph, call, layer, many, rows, window), many),
            "else_branch": graph.branch(lambda: in_codes(graph, call, layer, few, window), few),
        }
        return graph.add(path + "/If", "If", [rows.many], branches, outputs=3)

    graph.values[node] = with_window_cache(graph, call, f"/model/layers.{layer}/attn", attend)


def new_rows(graph: Graph, call: AttentionNode) -> NewRows:
    """Made by the first layer, and the same for all."""
    if "new rows" in graph.values:
        found: NewRows = graph.values["new rows"]
        return found

    def op(kind: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        return graph.add(f"/kv_cache/{name or kind}", kind, list(inputs), attributes)[0]

    heads = graph.config.num_key_value_heads
    zero, one = graph.constant("/constants/axis_0", [0]), graph.constant("/constants/axis_1", [1])
    shape = op("Shape", graph.values[call.qkv])
    batch, tokens = op("Gather", shape, zero, name="batch/Gather"), op("Gather", shape, one, name="tokens/Gather")
    total = op("Cast", graph.values[call.total_tokens], to=ir.DataType.INT64.value)
    end = op("Reshape", total, one, name="end/Reshape")
    start = op("Sub", end, tokens)
    many = op("Greater", tokens, graph.constant("/constants/few_tokens", [FEW_TOKENS]))
    # The indices are those of one sequence.
    many = op("And", many, op("Equal", batch, one))
    first, last = op("Squeeze", start, name="start/Squeeze"), op("Squeeze", end, name="end/Squeeze")
    positions = op("Range", first, last, graph.constant("/constants/one", 1))
    positions = op("Unsqueeze", positions, graph.constant("/constants/axes_0_2", [0, 2]))
    numbers = graph.table("kv_heads", np.arange(heads).reshape(heads, 1, 1))
    nothing = op("Mul", positions, graph.table("no_kv_heads", np.zeros((heads, 1, 1), np.int64)))
    each = [nothing, op("Add", nothing, numbers, name="heads/Add"), op("Add", nothing, positions, name="positions/Add")]
    rows = NewRows(many, start, op("Concat", *each, axis=-1))
    graph.values["new rows"] = rows
    return rows


def in_codes(graph: Graph, call: AttentionNode, layer: int, path: str, window: bool) -> list[ir.Value]:
    """The operator on the int8 cache."""
    inputs, attributes = group_query_attention(graph, call, window)
    inputs += [None] * (K_SCALE - len(inputs))
    inputs += [graph.weight(id) for id in scale_ids(layer)]
    attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    name = path + "/GroupQueryAttention"
    return graph.add(name, "GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=3)


def through_float(
    graph: Graph, call: AttentionNode, layer: int, path: str, rows: NewRows, window: bool
) -> list[ir.Value]:
    """The operator on what is cached in float, in units of the scales; then the new rows into the int8 cache. Where the
    cache keeps a window, the operator moves its rows, so that all of them go to float and back, which changes none."""

    def op(kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return graph.add(f"{path}/{name}/{kind}", kind, list(inputs), attributes)[0]

    first, axis = (graph.constant(f"/constants/axis_{number}", [number]) for number in (0, 2))
    last = graph.constant("/constants/end", [2**62])
    unit = graph.constant("/constants/unit", 1.0, ir.DataType.FLOAT)
    zero = graph.constant("/constants/zero_code", 0, ir.DataType.INT8)
    pasts = {"key": graph.values[call.past_key], "value": graph.values[call.past_value]}
    by_query, own = scale_vectors(graph, call, layer, op)
    inputs, attributes = group_query_attention(graph, call, window)
    inputs[0] = op("Mul", "qkv", graph.values[call.qkv], op("Concat", "qkv", by_query[0], *own, axis=0))
    for place, (part, past) in enumerate(pasts.items(), start=PAST_KEY):
        codes = past if window else op("Slice", f"{part}/past", past, first, rows.start, axis)
        inputs[place] = op("Cast", f"{part}/past", codes, to=ir.DataType.FLOAT.value)
    name = path + "/GroupQueryAttention"
    attended, *present = graph.add(name, "GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=3)
    caches = []
    for (part, past), floats in zip(pasts.items(), present, strict=True):
        if window:
            caches.append(op("QuantizeLinear", part, floats, unit, zero))
            continue
        new = op("Slice", f"{part}/new", floats, rows.start, last, axis)
        codes = op("Squeeze", part, op("QuantizeLinear", part, new, unit, zero), first)
        caches.append(op("ScatterND", part, past, rows.indices, codes))
    return [op("Mul", "output", attended, by_query[1]), *caches]


def scale_vectors(
    graph: Graph, call: AttentionNode, layer: int, op: Callable[..., ir.Value]
) -> tuple[list[ir.Value], list[ir.Value]]:
    """Of keys and of values: the scales of each query head's channels, and what their own channels are multiplied with.
    Onnxruntime computes them once, as it loads the graph."""
    shape = [call.kv_heads, call.heads // call.kv_heads, graph.config.head_dim]
    wide, flat = graph.constant("/constants/query_heads", shape), graph.constant("/constants/last", [-1])
    by_query, own = [], []
    for part, id in zip(("key", "value"), scale_ids(layer), strict=True):
        scale = graph.weight(id, name=f"{id}_by_head", shape=(shape[0], 1, shape[2]))
        by_query.append(op("Reshape", f"{part}/by_query", op("Expand", part, scale, wide), flat))
        own.append(op("Reciprocal", part, op("Reshape", part, scale, flat)))
    return by_query, own


INT8_CACHE = replace(CPU, lowerings={**LOWERINGS, torch.ops.phi_edge.attention.default: attention}, int8_cache=True)
