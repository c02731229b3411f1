"""A matrix that side adapters change: its product, and two more by inputs that are empty unless one is chosen."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from export.adapters.side import input_names
from export.to_onnx.graph import Graph, label


def with_side_adapter(graph: Graph, node: fx.Node, name: str, product: ir.Value) -> ir.Value:
    """x @ W -> x @ W + x @ A @ B."""
    x, weight = node.args[:2]
    assert isinstance(weight, fx.Node)
    rows, columns = weight.meta["val"].shape
    for_a, for_b = input_names(name)
    a, b = graph.side_input(for_a, (columns, f"{for_a}_rank")), graph.side_input(for_b, (f"{for_a}_rank", rows))
    low = graph.add(label(node) + "/lora_A/MatMul", "MatMul", [graph.values[x], a])
    high = graph.add(label(node) + "/lora_B/MatMul", "MatMul", [low[0], b])
    return graph.add(label(node) + "/lora/Add", "Add", [product, high[0]])[0]
