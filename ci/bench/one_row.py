"""Time MatMulNBits of one row where its weights are in the processor's cache, and where they come from memory.

    python ci/bench/one_row.py [--block 64] [--threads 2] [--rounds 12]

A token reads all weights once, so memory's speed bounds the tokens a second; how near a kernel comes to that depends
on what it needs for its arithmetic. In the cache there is nothing else: the first figure is the arithmetic's speed, in
bytes of packed weights (codes, scales, block sums). The second is of matrices that are read once. The two graphs take
turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Run as a script, this folder comes first on the path, and export.py in it would be taken for the package `export`.
sys.path[0] = str(Path(__file__).parent.parent.parent)
from runtimes.system.telemetry import switch_telemetry_off  # noqa: E402

INPUTS, OUTPUTS = 3072, 768  # 1.5 MB packed: it fits a core's second cache
MATRICES = 400  # 0.6 GB: no cache holds it
PACKED_PER_BLOCK = 8  # bytes: a scale, and the sum that a zero point needs


@click.command()
@click.option("--block", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=12, show_default=True)
def main(block: int, threads: int, rounds: int) -> None:
    """Print both speeds, medians of the rounds with their range."""
    sessions = {"in the cache": session(1, block, threads), "from memory": session(MATRICES, block, threads)}
    packed_bytes = MATRICES * OUTPUTS * INPUTS * (0.5 + PACKED_PER_BLOCK / block)
    row = np.random.default_rng(0).random((1, INPUTS), dtype=np.float32)
    speeds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds + 1):
        for name, each in sessions.items():
            begin = time.perf_counter()
            each.run(None, {"row": row})
            speeds[name].append(packed_bytes / (time.perf_counter() - begin) / 1e9)
    for name, (_, *timed) in speeds.items():  # the first round takes the buffers from the system
        print(f"{name}: {statistics.median(timed):.1f} GB/s ({min(timed):.1f} to {max(timed):.1f})")


def session(matrices: int, block: int, threads: int) -> Any:
    """MATRICES products of one row, with so many different matrices."""
    switch_telemetry_off()
    import onnxruntime

    generator = np.random.default_rng(0)
    weights = []
    for number in range(matrices):
        codes = generator.integers(0, 256, (OUTPUTS, INPUTS // block, block // 2), dtype=np.uint8)
        scales = generator.random(OUTPUTS * INPUTS // block, dtype=np.float32)
        weights += [
            numpy_helper.from_array(codes, f"codes{number}"),
            numpy_helper.from_array(scales, f"scales{number}"),
        ]
    kind: dict[str, Any] = {
        "domain": "com.microsoft",
        "K": INPUTS,
        "N": OUTPUTS,
        "bits": 4,
        "block_size": block,
        "accuracy_level": 4,
    }
    nodes = [
        helper.make_node(
            "MatMulNBits", ["row", f"codes{place % matrices}", f"scales{place % matrices}"], [f"product{place}"], **kind
        )
        for place in range(MATRICES)
    ]
    nodes.append(helper.make_node("Sum", [f"product{place}" for place in range(MATRICES)], ["sum"]))
    graph = helper.make_graph(
        nodes,
        "one_row",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, [1, INPUTS])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, OUTPUTS])],
        weights,
    )
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else equal products of equal inputs are made one.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
