"""Time onnxruntime's attention with a sliding window: the whole context cached against the window alone.

    python ci/bench/window_cache.py [--tokens 3584] [--rounds 3]

One GroupQueryAttention with Phi-3-mini's sizes reads a prompt in pieces of 512 tokens, then one token at a time. All
ways take turns, and each has a session of its own that is closed before the next. How far the outputs of the two caches
differ is printed too.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Run as a script, this folder comes first on the path, and export.py in it would be taken for the package `export`.
sys.path[0] = str(Path(__file__).parent.parent.parent)
from export.to_onnx.sizes import window_cache_tokens  # noqa: E402

HEADS, HEAD_DIM, CONTEXT, WINDOW = 32, 96, 4096, 2047
KEPT = window_cache_tokens(WINDOW, CONTEXT, "phi3") or CONTEXT
PIECE, SINGLE = 512, 100  # tokens
SCALE = 3 / 127  # of the int8 cache


@dataclass(frozen=True)
class Way:
    """One row of the table."""

    name: str
    int8: bool
    kept: int  # tokens in the cache


WAYS = [
    Way("float, the whole context", False, CONTEXT),
    Way("float, the window alone", False, KEPT),
    Way("int8, the whole context", True, CONTEXT),
    Way("int8, the window alone", True, KEPT),
]


@dataclass(frozen=True)
class Times:
    """Of one round, in seconds: the whole prompt, and the median of a token."""

    prompt_s: float
    token_s: float


@click.command()
@click.option(
    "--tokens", type=click.IntRange(1, CONTEXT - SINGLE), default=3584, show_default=True, help="In the prompt."
)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(tokens: int, rounds: int, threads: int) -> None:
    """Print a table of times, and how far the outputs of a type differ."""
    random = np.random.default_rng(0)
    qkv = random.standard_normal((1, tokens + SINGLE, 3 * HEADS * HEAD_DIM), np.float32)
    times: dict[Way, list[Times]] = {way: [] for way in WAYS}
    outputs: dict[Way, npt.NDArray[np.float32]] = {}
    for _ in range(rounds):
        for way in WAYS:
            measured, outputs[way] = measure(way, qkv, tokens, threads)
            times[way].append(measured)
    print(f"| one attention of Phi-3-mini, {tokens} tokens | prompt | a token after it |\n|---|---:|---:|")
    for way, all_times in times.items():
        prompt = statistics.median(each.prompt_s for each in all_times)
        token = [1000 * each.token_s for each in all_times]
        print(
            f"| {way.name} | {prompt:.2f} s | {statistics.median(token):.2f} ms ({min(token):.2f}-{max(token):.2f}) |"
        )
    for whole, window in (WAYS[:2], WAYS[2:]):
        print(f"{window.name}: at most {np.abs(outputs[whole] - outputs[window]).max():.1e} from the other")


def measure(way: Way, qkv: npt.NDArray[np.float32], tokens: int, threads: int) -> tuple[Times, npt.NDArray[np.float32]]:
    """The times, and the outputs of the single tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model(way).SerializeToString(), options)
    empty = np.zeros((1, HEADS, way.kept, HEAD_DIM), np.int8 if way.int8 else np.float32)
    caches = {name: onnxruntime.OrtValue.ortvalue_from_numpy(empty) for name in ("key", "value")}

    def forward(start: int, end: int) -> tuple[float, npt.NDArray[np.float32]]:
        binding = session.io_binding()
        binding.bind_cpu_input("qkv", qkv[:, start:end])
        binding.bind_cpu_input("last", np.array([end - 1], np.int32))
        binding.bind_cpu_input("total", np.array(end, np.int32))
        binding.bind_output("attended", "cpu")
        for name, cache in caches.items():
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(f"present_{name}", cache)
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        return time.perf_counter() - begin, binding.get_outputs()[0].numpy()[0]

    prompt_s = sum(forward(start, min(start + PIECE, tokens))[0] for start in range(0, tokens, PIECE))
    single = [forward(position, position + 1) for position in range(tokens, qkv.shape[1])]
    return Times(prompt_s, statistics.median(took for took, _ in single)), np.concatenate([row for _, row in single])


def model(way: Way) -> onnx.ModelProto:
    """A graph of one node."""
    cache_type = TensorProto.INT8 if way.int8 else TensorProto.FLOAT
    shape = [1, HEADS, None, HEAD_DIM]
    inputs = [
        helper.make_tensor_value_info("qkv", TensorProto.FLOAT, [1, None, 3 * HEADS * HEAD_DIM]),
        *(helper.make_tensor_value_info(f"past_{name}", cache_type, shape) for name in ("key", "value")),
        helper.make_tensor_value_info("last", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    outputs = [
        helper.make_tensor_value_info("attended", TensorProto.FLOAT, None),
        *(helper.make_tensor_value_info(f"present_{name}", cache_type, None) for name in ("key", "value")),
    ]
    angles = np.arange(CONTEXT)[:, None] / 10000 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    tables: dict[str, npt.NDArray[Any]] = {"cos": np.cos(angles), "sin": np.sin(angles)}
    names = ["qkv", "", "", "past_key", "past_value", "last", "total", "cos", "sin"]
    attributes: dict[str, Any] = {
        "num_heads": HEADS,
        "kv_num_heads": HEADS,
        "do_rotary": 1,
        "local_window_size": WINDOW,
        "sliding_window_cache": int(way.kept < CONTEXT),
    }
    if way.int8:
        names += ["", "", "", "key_scale", "value_scale"]
        tables |= {name: np.full((HEADS, HEAD_DIM), SCALE) for name in ("key_scale", "value_scale")}
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        [output.name for output in outputs],
        domain="com.microsoft",
        **attributes,
    )
    stored = [numpy_helper.from_array(table.astype(np.float32), name) for name, table in tables.items()]
    graph = helper.make_graph([node], "attention", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


if __name__ == "__main__":
    main()
