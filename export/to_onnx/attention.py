"""Attention in ONNX: GroupQueryAttention, its lengths, and the rows of the rotary tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from torch import fx

from export.models.attention import AttentionNode
from export.to_onnx.graph import MICROSOFT, Graph, attention_call
from export.to_onnx.phi3small import block_sparse_attention


def attention(graph: Graph, node: fx.Node) -> None:
    call = attention_call(node)
    if call.blocks:
        block_sparse_attention(graph, node)
        return
    path = f"/model/layers.{graph.attentions()}/attn"

    def attend(path: str, window: bool) -> list[ir.Value]:
        inputs, attributes = group_query_attention(graph, call, window)
        name = path + "/GroupQueryAttention"
        return graph.add(name, "GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=3)

    graph.values[node] = with_window_cache(graph, call, path, attend)


def with_window_cache(
    graph: Graph, call: AttentionNode, path: str, attend: Callable[[str, bool], list[ir.Value]]
) -> list[ir.Value]:
    """Attention, written by `attend`, to a cache that keeps only the window (True) or all (False). In a graph that has
    both, the first is for a sequence that is longer than the cache."""
    if not graph.style.window_cache:
        return attend(path, False)
    branches = {
        "then_branch": graph.branch(lambda: attend(path + "/window", True), path + "/window"),
        "else_branch": graph.branch(lambda: attend(path + "/whole", False), path + "/whole"),
    }
    return graph.add(path + "/If", "If", [slides(graph, call)], branches, outputs=3)


def slides(graph: Graph, call: AttentionNode) -> ir.Value:
    """Whether the sequence is longer than the cache, which then keeps only the window: bool [1], once for all layers.

    GroupQueryAttention refuses to do that in a cache that is shorter than the window. Onnxruntime-genai makes one for a
    small max_length, and a cache that grows with each call is short at first.
    """
    if "slides" not in graph.values:

        def op(kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            return graph.add(f"/window/{name}/{kind}", kind, list(inputs), attributes)[0]

        shape = op("Shape", "capacity", graph.values[call.past_key])
        capacity = op("Gather", "capacity", shape, graph.constant("/constants/axis_2", [2]))
        total = op("Cast", "total", graph.values[call.total_tokens], to=ir.DataType.INT64.value)
        fits = op("GreaterOrEqual", "fits", capacity, graph.constant("/constants/window", [call.window]))
        graph.values["slides"] = op("And", "slides", op("Greater", "longer", total, capacity), fits)
    found: ir.Value = graph.values["slides"]
    return found


def group_query_attention(
    graph: Graph, call: AttentionNode, window: bool
) -> tuple[list[ir.Value | None], dict[str, Any]]:
    """The operator's inputs up to the rows of the tables, and its attributes. `window`: the cache keeps only that."""
    inputs = [
        graph.values[call.qkv], None, None, graph.values[call.past_key], graph.values[call.past_value],
        graph.values[call.last_position], graph.values[call.total_tokens],
        graph.values[call.cos], graph.values[call.sin],
        *([graph.values[call.rows]] if call.rows is not None else []),
    ]  # fmt: skip
    return inputs, {
        "num_heads": call.heads,
        "kv_num_heads": call.kv_heads,
        "do_rotary": 1,
        "rotary_interleaved": 0,
        "local_window_size": call.window,
        **({"sliding_window_cache": 1} if window else {}),
        "scale": float(call.scale or graph.config.head_dim**-0.5),
    }


def table_rows(graph: Graph, node: fx.Node) -> None:
    """Positions, moved down to the long factors' rows where the sequence is long: the tables are never copied.

    An If that returns the short or the long table, as onnxruntime-genai's builder makes it, copies both each time.
    """
    input_ids, last_position, sequence_tokens, original = node.args
    assert isinstance(original, int)

    def op(kind: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        return graph.add(f"/rope/{name or kind}", kind, list(inputs), attributes)[0]

    to = ir.DataType.INT64.value
    one = graph.constant("/constants/one", 1)
    long = op(
        "Greater", graph.values[sequence_tokens], graph.constant("/constants/original", original, ir.DataType.INT32)
    )
    offset = op("Mul", op("Cast", long, to=to), graph.constant("/constants/original_64", original))
    last = op("Cast", graph.values[last_position], name="last/Cast", to=to)
    last = op("Squeeze", last)
    end = op("Add", op("Add", last, one, name="end/Add"), offset)
    count = op("Gather", op("Shape", graph.values[input_ids]), one, axis=0)
    rows = op("Range", op("Sub", end, count), end, one)
    graph.values[node] = op("Unsqueeze", rows, graph.constant("/constants/axis_0", [0]))


def sequence_lengths(graph: Graph, *, switches: bool) -> tuple[dict[str, ir.Value], list[ir.Value]]:
    """The lengths that GroupQueryAttention wants, from the attention mask that onnxruntime-genai gives.

    With long rope's switch, the mask's ones say what is in and its width how long the sequence will be: zeros after
    the ones tell the first pieces of a long prompt that it is long. onnxruntime-genai gives no zeros (batch 1).
    Returns the traced placeholders they stand for, and the graph's input.
    """
    mask = ir.Value(
        name="attention_mask",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(["batch_size", "total_sequence_length"]),
    )
    one, axis = graph.constant("/constants/one", 1), graph.constant("/constants/axis_1", [1])
    total = graph.add("/lengths/ReduceSum", "ReduceSum", [mask, axis], {"keepdims": 0})[0]
    filled = total
    last = graph.add("/lengths/Sub", "Sub", [total, one])[0]
    last = graph.add("/lengths/last/Cast", "Cast", [last], {"to": ir.DataType.INT32.value})[0]
    shape = graph.add("/lengths/Shape", "Shape", [mask])[0]
    width = graph.add("/lengths/Gather", "Gather", [shape, one], {"axis": 0})[0]
    width = graph.add("/lengths/total/Cast", "Cast", [width], {"to": ir.DataType.INT32.value})[0]
    lengths = {"last_position": last, "total_tokens": width, "sequence_tokens": width}
    if switches:
        lengths["total_tokens"] = graph.add("/lengths/in/Cast", "Cast", [filled], {"to": ir.DataType.INT32.value})[0]
    return lengths, [mask]
