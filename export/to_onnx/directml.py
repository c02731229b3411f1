"""The same graph for DirectML: where its kernels take less than the CPU's, the lowering writes more nodes.

Each row of DIRECTML differs from LOWERINGS for a reason found in DirectML's operators (docs/windows.md says how):
its GroupQueryAttention wants query, key and value apart and does not rotate, its RotaryEmbedding rotates whole heads,
its MatMulNBits takes codes as unsigned unless zero points are given, and GatherBlockQuantized it has none.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from export.to_onnx.attention import sequence_lengths
from export.to_onnx.graph import MICROSOFT, Graph, GraphStyle, attention_call, label
from export.to_onnx.operators import LOWERINGS
from export.weights.slots import SlotId


def directml_style(activations: str, *, lengths_as_inputs: bool) -> GraphStyle:
    """How a graph for DirectML is written. With `lengths_as_inputs` it has no node that needs the CPU."""
    return GraphStyle(
        lowerings=DIRECTML,
        lengths=given_lengths if lengths_as_inputs else mask_and_positions,
        activations=activations,
        scales="float16",
        zero_points=True,
        token_logits=False,
    )


def embedding(graph: Graph, node: fx.Node) -> None:
    """Rows of the quantised table, widened by plain operators: the low half of a byte is the even column's."""
    table, ids = node.args
    assert isinstance(table, fx.Node)
    name, path = graph.parameters[table], label(node)
    precision = graph.scheme.precision(name)
    if precision is None:
        graph.values[node] = graph.add(path + "/Gather", "Gather", [graph.weight(SlotId(name)), graph.values[ids]])[0]
        return
    assert precision.block_size and precision.bits in (4, 8)

    def op(kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return graph.add(f"{path}/{name}", kind, list(inputs), attributes)[0]

    to = graph.float_type
    codes = op("Gather", "codes", graph.weight(SlotId(name, "codes")), graph.values[ids])
    scales = op("Gather", "scales", graph.weight(SlotId(name, "scales")), graph.values[ids])
    last = graph.constant("/constants/axis_last", [-1])
    if precision.bits == 4:
        low = op("BitwiseAnd", "low", codes, graph.constant("/constants/low_half", 15, ir.DataType.UINT8))
        high = op("BitShift", "high", codes, graph.constant("/constants/four", 4, ir.DataType.UINT8), direction="RIGHT")
        pair = [op("Unsqueeze", f"{part}/column", value, last) for part, value in (("low", low), ("high", high))]
        codes = op("Concat", "columns", *pair, axis=-1)
    blocks = precision.blocks(graph.config.hidden_size)
    codes = op("Reshape", "blocks", codes, graph.constant("/constants/blocks", [0, 0, blocks, precision.block_size]))
    middle = graph.constant("/constants/middle", float(1 << (precision.bits - 1)), to)
    centred = op("Sub", "centred", op("Cast", "wide", codes, to=to.value), middle)
    rows = op("Mul", "rows", centred, op("Unsqueeze", "scales/column", scales, last))
    graph.values[node] = op(
        "Reshape", "hidden", rows, graph.constant("/constants/hidden", [0, 0, graph.config.hidden_size])
    )


def attention(graph: Graph, node: fx.Node) -> None:
    """Split, rotate, attend. DirectML has no window: export.pipeline keeps the context within it."""
    call = attention_call(node)
    heads, kv_heads = call.heads, call.kv_heads
    layer = sum(1 for other in graph.nodes if other.op_type == "GroupQueryAttention")
    path, head_dim = f"/model/layers.{layer}/attn", graph.config.head_dim
    sizes = graph.constant("/constants/qkv", [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
    query, key, value = graph.add(path + "/Split", "Split", [graph.values[call.qkv], sizes], {"axis": -1}, outputs=3)
    tables = [graph.positions if call.rows is None else graph.values[call.rows]]
    tables += [graph.values[call.cos], graph.values[call.sin]]
    query = rotate(graph, path + "/query", query, tables, heads)
    key = rotate(graph, path + "/key", key, tables, kv_heads)
    graph.values[node] = graph.add(
        path + "/GroupQueryAttention",
        "GroupQueryAttention",
        [
            query, key, value, graph.values[call.past_key], graph.values[call.past_value],
            graph.values[call.last_position], graph.values[call.total_tokens],
        ],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "local_window_size": call.window,
            "scale": float(call.scale or head_dim**-0.5),
        },
        domain=MICROSOFT,
        outputs=3,
    )  # fmt: skip


def rotate(graph: Graph, path: str, x: ir.Value, tables: list[ir.Value | None], heads: int) -> ir.Value:
    """Rotate [batch, tokens, heads * head_dim]. A part that is not rotated is cut off and put back."""
    config = graph.config
    rotary, head_dim = config.rope.rotary_dim, config.head_dim

    def turn(value: ir.Value) -> ir.Value:
        return graph.add(path + "/RotaryEmbedding", "RotaryEmbedding", [value, *tables], domain=MICROSOFT)[0]

    def shaped(name: str, value: ir.Value, sizes: list[int]) -> ir.Value:
        shape = graph.constant("/constants/shape_" + "_".join(map(str, sizes)), [0, 0, *sizes])
        return graph.add(f"{path}/{name}", "Reshape", [value, shape])[0]

    if rotary == head_dim:
        return turn(x)
    sizes = graph.constant("/constants/rotary", [rotary, head_dim - rotary])
    apart = shaped("heads", x, [heads, head_dim])
    turned, rest = graph.add(path + "/Split", "Split", [apart, sizes], {"axis": -1}, outputs=2)
    turned = shaped("turned", turn(shaped("rotary", turned, [heads * rotary])), [heads, rotary])
    whole = graph.add(path + "/Concat", "Concat", [turned, rest], {"axis": -1})[0]
    return shaped("whole", whole, [heads * head_dim])


def table_rows(graph: Graph, node: fx.Node) -> None:
    """Positions, moved down to the long factors' rows where the sequence is long."""
    _, last_position, _, original = node.args
    assert isinstance(original, int) and graph.positions is not None
    # By the last position, which is in DirectML's memory: the sequence's length is in the CPU's.
    limit = graph.constant("/constants/last_short", original - 1, ir.DataType.INT32)
    long = graph.add("/rope/Greater", "Greater", [graph.values[last_position], limit])[0]
    long = graph.add("/rope/Cast", "Cast", [long], {"to": ir.DataType.INT64.value})[0]
    offset = graph.add("/rope/Mul", "Mul", [long, graph.constant("/constants/original_64", original)])[0]
    graph.values[node] = graph.add("/rope/Add", "Add", [graph.positions, offset])[0]


def mask_and_positions(graph: Graph, *, switches: bool) -> tuple[dict[str, ir.Value], list[ir.Value]]:
    """Lengths from the mask and positions as an input, both of which onnxruntime-genai gives."""
    # A prompt goes in whole, so the mask need not tell of more to come (see sequence_lengths).
    lengths, inputs = sequence_lengths(graph, switches=False)
    return lengths, [*inputs, positions(graph)]


def given_lengths(graph: Graph, *, switches: bool) -> tuple[dict[str, ir.Value], list[ir.Value]]:
    """All lengths as inputs, so that no node computes with them: seqlens_k is the position of the last token."""
    last, total = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([size]))
        for name, size in (("seqlens_k", "batch_size"), ("total_sequence_length", 1))
    )
    lengths = {"last_position": last, "total_tokens": total, "sequence_tokens": total}
    return lengths, [last, total, positions(graph)]


def positions(graph: Graph) -> ir.Value:
    """The graph's input position_ids."""
    graph.positions = ir.Value(
        name="position_ids",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(["batch_size", "sequence_length"]),
    )
    return graph.positions


DIRECTML = {
    **LOWERINGS,
    torch.ops.aten.embedding.default: embedding,
    torch.ops.phi_edge.attention.default: attention,
    torch.ops.phi_edge.table_rows.default: table_rows,
}
