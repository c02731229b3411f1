"""The same graph for WebGPU, in browsers and through onnxruntime-ep-webgpu: the CPU's, but for long rope.

Its GroupQueryAttention rotates by the sequence's own positions and does not look at the rows that it is given, so where
these decide between the short and the long factors, RotaryEmbedding rotates before it (docs/web.md).
"""

from __future__ import annotations

import torch
from torch import fx

from export.to_onnx import attention, directml, operators
from export.to_onnx.graph import Graph, GraphStyle, attention_call


def webgpu_style(activations: str) -> GraphStyle:
    """How a graph for WebGPU is written: the same weights for both types of activations."""
    return GraphStyle(
        lowerings=WEBGPU,
        lengths=attention.sequence_lengths,
        activations=activations,
        scales="float16",
        zero_points=False,
        token_logits=False,
    )


def attend(graph: Graph, node: fx.Node) -> None:
    """Rotated inside where it can be."""
    lower = attention.attention if attention_call(node).rows is None else directml.attention
    lower(graph, node)


WEBGPU = {**operators.LOWERINGS, torch.ops.phi_edge.attention.default: attend}
