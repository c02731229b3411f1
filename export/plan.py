"""What an export will take and what its artifact will take on a device, before any work is done.

Sizes are sums over the model's tensors; the constants below were measured on Phi-3-mini (docs/benchmarks.md says how).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from export.artifact import Memory
from export.job import Job
from export.memory import plan_memory
from export.models.shape import EMBEDDING
from export.system import workers

GB = 1e9
# Peak resident memory of the process: what the libraries take, plus, per weight of one layer, ExecuTorch's stand-ins.
BASE_BYTES = {"onnx": 0.8e9, "executorch": 1.05e9}
STAND_IN_BYTES_PER_WEIGHT = 4
# Seconds beside the stream of weights: imports and tracing, and for ExecuTorch lowering, per layer.
BASE_S = {"onnx": 3.0, "executorch": 17.0}
LAYER_S = {"onnx": 0.06, "executorch": 0.25}
DISK_SPARE_BYTES = 64 << 20  # for what an artifact has beside its weights: graph, program, tokenizer
READ_BYTES_PER_S = 1.5e9  # hashing the source, beside the stream
# Of a device's memory, how much a model may take without trouble, and how much at all.
FITS, TIGHT = 0.6, 0.8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The figures of `phi-edge export --dry-run`."""

    artifact_bytes: int
    peak_bytes: int
    disk_bytes: int
    expected_s: float
    memory: Memory  # what the artifact will need on a device


def verdict(needed_bytes: int, device_bytes: float) -> str:
    """Does an artifact that needs so much go on such a device: `fits`, `tight` or `no`."""
    share = needed_bytes / device_bytes
    return "fits" if share <= FITS else "tight" if share <= TIGHT else "no"


def make_plan(job: Job) -> Plan:
    """Plan one job. Takes a second: it times the quantiser on this machine."""
    config = job.checkpoint.config
    weights = weight_bytes(job)
    memory = plan_memory(job, weights)
    source = sum(tensor.length for tensor in job.checkpoint.tensors.values())
    stream_s = config.parameters * seconds_per_weight(job) / workers() + source / READ_BYTES_PER_S / workers()
    return Plan(
        artifact_bytes=weights,
        peak_bytes=peak_bytes(job, memory.kv_bytes_per_token),
        disk_bytes=weights + DISK_SPARE_BYTES,
        expected_s=BASE_S[job.format] + LAYER_S[job.format] * config.num_hidden_layers + stream_s,
        memory=memory,
    )


def peak_bytes(job: Job, kv_bytes_per_token: int) -> int:
    """Peak resident memory of the export."""
    peak = BASE_BYTES[job.format]
    if job.format == "executorch":
        shapes = job.checkpoint.config.tensor_shapes()
        layer = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
        peak += STAND_IN_BYTES_PER_WEIGHT * layer + job.context_tokens * kv_bytes_per_token
    return int(peak)


def weight_bytes(job: Job) -> int:
    """Bytes of the weight file, to a few kilobytes: codes, scales in the format's type, norms, rotary tables."""
    config, scheme = job.checkpoint.config, job.scheme
    float_bytes = 2 if job.activations == "float16" else 4
    total = 2 * config.rope.stacked_rows(job.context_tokens) * (config.rope.rotary_dim // 2) * float_bytes
    shapes = config.tensor_shapes()
    if config.tie_word_embeddings and job.format == "executorch":  # whose operators cannot share one table
        shapes["lm_head.weight"] = shapes[EMBEDDING]
    for name, shape in shapes.items():
        count = math.prod(shape)
        bits = scheme.embedding_bits if name == EMBEDDING else scheme.bits
        if len(shape) == 1 or bits is None:
            total += count * float_bytes
            continue
        assert scheme.block_size
        scale_bytes = 2 if job.format == "executorch" and name != EMBEDDING else float_bytes
        total += count * bits // 8 + count // scheme.block_size * scale_bytes
    return total


def seconds_per_weight(job: Job) -> float:
    """One worker's time for one weight, on this machine, now."""
    import torch

    from export.weights.loss import chunk_loss
    from export.weights.quantize import quantise_rows
    from export.weights.scratch import Scratch
    from export.weights.stream import CHUNK_WEIGHTS

    scheme, columns = job.scheme, job.checkpoint.config.hidden_size
    if scheme.bits is None or scheme.block_size is None:
        return 4 / READ_BYTES_PER_S
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = max(1, CHUNK_WEIGHTS // columns)
    weight, x, scratch = torch.randn(rows, columns), torch.randn(64, columns), Scratch()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        quantised = quantise_rows(
            weight.bfloat16().float(),
            bits=scheme.bits,
            block_size=scheme.block_size,
            scale_dtype=torch.float32,
            scratch=scratch,
        )
        torch.stack((x @ weight.T, x @ quantised.dequantised.T))
        chunk_loss(weight, quantised)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best / weight.numel()
