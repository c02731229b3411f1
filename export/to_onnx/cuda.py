"""The same graph for CUDA: the CPU's in float16, Phi-3-small's SparseAttention included.

It has no long rope beyond its switch: export.job keeps the context below it (docs/gpu.md says why).
"""

from __future__ import annotations

from collections.abc import Collection

from export.to_onnx import operators
from export.to_onnx.graph import GraphStyle


def cuda_style(activations: str) -> GraphStyle:
    """How a graph for CUDA is written."""
    return GraphStyle(
        lowerings=operators.LOWERINGS,
        lengths=operators.sequence_lengths,
        activations=activations,
        scales="float16",
        zero_points=False,
        token_logits=False,
    )


def cuda_options(operators: Collection[str]) -> dict[str, str]:
    """The provider's options for a graph of these operators: whether a decoding step is recorded once, as a CUDA graph,
    and replayed. The blocks that SparseAttention visits are counted on the CPU, which is not replayed."""
    return {"enable_cuda_graph": str(int("SparseAttention" not in operators))}
