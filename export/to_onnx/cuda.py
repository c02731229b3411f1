"""The same graph for CUDA: the CPU's in float16, Phi-3-small's SparseAttention included, but for long rope.

There GroupQueryAttention rotates by the sequence's own positions alone, and wants on the CPU how long it is. So each
call gathers the tables that the sequence's length asks for, from the lengths in the GPU's memory: as a recorded step
must (docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import torch
from torch import fx

from export.models.attention import AttentionNode
from export.to_onnx import attention, operators
from export.to_onnx.graph import SEQUENCE_TOKENS, Graph, GraphStyle, attention_call


def cuda_style(activations: str) -> GraphStyle:
    """How a graph for CUDA is written."""
    return GraphStyle(
        lowerings=CUDA,
        lengths=sequence_lengths,
        activations=activations,
        scales="float16",
        zero_points=False,
        token_logits=False,
    )


def cuda_options(operators: Collection[str]) -> dict[str, str]:
    """The provider's options for a graph of these operators: whether a decoding step is recorded once, as a CUDA graph,
    and replayed. The blocks that SparseAttention visits are counted on the CPU, which is not replayed."""
    return {"enable_cuda_graph": str(int("SparseAttention" not in operators))}


def sequence_lengths(graph: Graph, *, switches: bool) -> tuple[dict[str, ir.Value], list[ir.Value]]:
    """As the CPU's, by the mask's ones: a recorded step's mask is as wide as the context. For the first pieces of a
    long prompt, the optional input SEQUENCE_TOKENS is its whole length."""
    lengths, inputs = attention.sequence_lengths(graph, switches=False)
    if switches:
        given = graph.option(SEQUENCE_TOKENS, [0])
        one = graph.constant("/constants/one", 1)
        last = graph.add("/lengths/last_64/Cast", "Cast", [lengths["last_position"]], {"to": ir.DataType.INT64.value})
        filled = graph.add("/lengths/sequence/Add", "Add", [*last, one])
        lengths["sequence_tokens"] = graph.add("/lengths/sequence/Max", "Max", [*filled, given])[0]
    return lengths, inputs


def table_rows(graph: Graph, node: fx.Node) -> None:
    """The tables of the whole context: the rows of the short factors, or those below them where the sequence is long.
    The attention finds its tokens there by itself."""
    original = node.args[-1]
    assert isinstance(original, int)
    calls = [(user, attention_call(user)) for user in node.users]
    _, first = calls[0]
    context_tokens = first.past_key.meta["val"].shape[2]

    def op(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return graph.add(f"/rope/{kind}", kind, list(inputs), attributes)[0]

    limit = graph.constant("/constants/original_64", original)
    long = op("Greater", graph.values[node.args[2]], limit)
    offset = op("Mul", op("Cast", long, to=ir.DataType.INT64.value), limit)
    ends = {"zero": 0, "context": context_tokens, "one": 1}
    places = op("Range", *(graph.constant(f"/constants/{name}", value) for name, value in ends.items()))
    rows = op("Add", places, offset)
    for table in (first.cos, first.sin):
        graph.values[table] = graph.add(f"/rope/{table.name}/Gather", "Gather", [graph.values[table], rows])[0]
    for user, _ in calls:
        user.update_arg(AttentionNode._fields.index("rows"), None)


CUDA = {**operators.LOWERINGS, torch.ops.phi_edge.table_rows.default: table_rows}
