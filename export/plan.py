"""What an export will take and what its artifact will take on a device, before any work is done.

Sizes are sums over the model's tensors; the constants below were measured on Phi-3-mini, on two cores.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifact import Memory
from export.errors import OptionError, SpaceError
from export.job import Job
from export.memory import kv_bytes_per_token, plan_memory
from export.scheme import EMBEDDING, HEAD, Precision
from export.system import memory_room, workers
from export.to_onnx.sizes import shared_zero_points
from export.weights.slots import BLOCK_BYTES, BLOCK_WEIGHTS, block_type

if TYPE_CHECKING:
    from export.formats import Layout
    from export.weights.calibration import Batch

GB = 1e9
# Peak resident memory of the process: what the libraries take, plus, per weight of one layer, ExecuTorch's stand-ins.
BASE_BYTES = {"onnx": 0.8e9, "executorch": 1.05e9, "gguf": 0.8e9}
STAND_IN_BYTES_PER_WEIGHT = 4
# Seconds beside the stream of weights: imports and tracing, and for ExecuTorch lowering, per layer.
BASE_S = {"onnx": 3.0, "executorch": 17.0, "gguf": 2.0}
LAYER_S = {"onnx": 0.06, "executorch": 0.25, "gguf": 0.0}
DISK_SPARE_BYTES = 64 << 20  # for what an artifact has beside its weights: graph, program, tokenizer
# Beside the search, of each weight: its products with the text, and GPTQ's own work, on one core.
PRODUCTS_PER_S = 6e10
GPTQ_S_PER_WEIGHT = 3e-7
GPTQ_MATRICES = 3  # of the inputs' second moments, at its peak
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


def verdict(needed_bytes: int, device_bytes: float, system_bytes: int) -> str:
    """Does an artifact that needs so much go on such a device beside its system: `fits`, `tight` or `no`."""
    share = needed_bytes / device_bytes
    if needed_bytes + system_bytes > device_bytes:
        return "no"
    return "fits" if share <= FITS else "tight" if share <= TIGHT else "no"


def make_plan(job: Job) -> Plan:
    """Plan one job. Takes a second: it times the quantiser on this machine."""
    from export.weights.methods.budget import planned_bytes

    config = job.checkpoint.config
    weights = planned_bytes(job)
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


def judge(job: Job) -> Batch:
    """Refuse what would otherwise be found only in the midst of the work: files or a budget that are too small, and a
    text that cannot calibrate. -> that text: it is read once, since it may come from a pipe. Raises OptionError and
    CheckpointError."""
    from export.weights.calibration import make_batch

    check_sizes(job)
    return make_batch(
        job.checkpoint,
        job.scheme.method,
        job.request.calibration,
        int8_cache=job.int8_cache,
        budget=job.request.has_budget,
    )


def check_sizes(job: Job) -> None:
    """Raises OptionError where files or a budget are too small."""
    check_file_size(job)
    if job.request.has_budget:
        check_budget(job)


def check_file_size(job: Job) -> None:
    """Raises OptionError where a matrix's numbers alone are larger than a file may be."""
    for name, shape in matrices(job).items():
        precision = job.scheme.precision(name)
        size = math.prod(shape) * (8 * float_bytes(job) if precision is None else precision.bits) // 8
        if job.format == "onnx" and job.max_file_bytes is not None and size > job.max_file_bytes:
            limit = job.max_file_bytes / 1e6
            raise OptionError(f"--max-file-size {limit:.1f} MB: {name} alone has {size / 1e6:.1f} MB; allow that much")


def check_memory(job: Job) -> None:
    """The export must not be killed half-way for want of memory. Raises SpaceError."""
    peak, room = peak_bytes(job, kv_bytes_per_token(job)), memory_room()
    if room is not None and room.bytes < peak:
        raise SpaceError(
            f"this export needs {peak / 1e9:.1f} GB of memory, {room.bytes / 1e9:.1f} GB are {room.source}; "
            "free some, or raise the limit"
        )


def check_disk(out: Path, folder: Path, layout: Layout) -> None:
    """The disk must hold the weight files, less what an interrupted export has written, and some megabytes.

    Raises SpaceError."""
    ends: dict[str, int] = {}
    for slot in layout.slots.values():
        ends[slot.file] = max(ends.get(slot.file, 0), slot.end)
    written = sum(allocated_bytes(folder / name) for name in ends if (folder / name).is_file())
    check_free(out, folder, max(0, sum(ends.values()) - written))


def check_free(out: Path, folder: Path, weights: int) -> None:
    """The disk that `folder` is on must hold so many bytes of weights, and some megabytes. Raises SpaceError."""
    needed = weights + DISK_SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SpaceError(f"{out}: needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free; free some space")


def allocated_bytes(file: Path) -> int:
    """What a file takes on the disk, without its holes where the system knows them (Windows does not say)."""
    stat = file.stat()
    return stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size


def check_budget(job: Job) -> None:
    """Raises OptionError where the scheme without any more bits takes more than the job's budget."""
    least, most = weight_bytes(job), budget_bytes(job)
    if least <= most:
        return
    if job.request.max_bytes is not None:
        asked, takes = f"--max-bytes {job.request.max_bytes}", f"{math.ceil(least / 1e4) / 100:.2f} MB"
    else:
        weights = sum(math.prod(shape) for shape in matrices(job).values())
        bits = (least - most) * 8 / weights + (job.request.bits_per_weight or 0.0)
        asked, takes = f"--bits-per-weight {job.request.bits_per_weight:g}", f"{math.ceil(bits * 1000) / 1000:g} bits"
    raise OptionError(
        f"{asked}: scheme {job.scheme.name} takes {takes} at least; allow more, or take a scheme with larger blocks"
    )


def budget_bytes(job: Job) -> float:
    """The size of all weight files that the job may reach."""
    if job.request.max_bytes is not None:
        return job.request.max_bytes
    assert job.request.bits_per_weight is not None
    shapes = matrices(job)
    stored = sum(
        stored_bytes(job, name, shape, precision)
        for name, shape in shapes.items()
        if (precision := job.scheme.precision(name)) is not None
    )
    return weight_bytes(job) - stored + sum(map(math.prod, shapes.values())) * job.request.bits_per_weight / 8


def matrices(job: Job) -> dict[str, tuple[int, ...]]:
    """The checkpoint's matrices with their shapes."""
    return {name: shape for name, shape in job.checkpoint.config.tensor_shapes().items() if len(shape) == 2}


def peak_bytes(job: Job, kv_bytes_per_token: int) -> int:
    """Peak resident memory of the export."""
    peak = BASE_BYTES[job.format]
    if job.format == "executorch":
        shapes = job.checkpoint.config.tensor_shapes()
        layer = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
        peak += STAND_IN_BYTES_PER_WEIGHT * layer + (job.ring_tokens or job.context_tokens) * kv_bytes_per_token
    return int(max(peak, BASE_BYTES["onnx"] + max(calibration_bytes(job), measuring_bytes(job))))


def measuring_tokens(job: Job) -> int:
    """How many tokens go through a layer, in the mean, to find out which tensors need more bits."""
    from export.weights.calibration import PROBE_TOKENS

    return len(matrices(job)) * PROBE_TOKENS // 2 if job.request.has_budget else 0


def measuring_bytes(job: Job) -> int:
    """What that pass holds: a row for each tensor, twice while they are joined, and a layer or the head in float32."""
    config, shapes = job.checkpoint.config, job.checkpoint.config.tensor_shapes()
    layer = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
    rows = 2 * 2 * measuring_tokens(job) * config.hidden_size
    return 4 * (rows + max(layer, math.prod(shapes[EMBEDDING]))) if rows else 0


def calibration_bytes(job: Job) -> int:
    """What the pass holds while the text is in a feed-forward, and GPTQ's matrices beside it."""
    from export.weights.calibration import pass_tokens

    config, method = job.checkpoint.config, job.scheme.method
    values = pass_tokens(method, config, int8_cache=job.int8_cache) * (
        5 * config.intermediate_size + 4 * config.hidden_size
    )
    moments = GPTQ_MATRICES * config.intermediate_size**2 if method == "gptq" else 0
    return 4 * (values + moments)


def weight_bytes(job: Job) -> int:
    """Bytes of the weight file, to a few kilobytes: codes, scales in the format's type, norms, tables."""
    config, scheme = job.checkpoint.config, job.scheme
    total = 0
    if job.format != "gguf":  # llama.cpp computes its tables when it starts
        total += 2 * config.rope.stacked_rows(job.context_tokens) * (config.rope.rotary_dim // 2) * float_bytes(job)
    if job.int8_cache:  # a scale for each channel of keys and values
        total += kv_bytes_per_token(job) * float_bytes(job)
    if job.target.provider == "dml":
        budget_block = scheme.linear.block_size if scheme.linear and job.request.has_budget else None
        total += sum(shared_zero_points(config, scheme, budget_block=budget_block).values())
    shapes = config.tensor_shapes()
    if job.format == "executorch" and config.tie_word_embeddings and not scheme.row_table:
        shapes[HEAD] = shapes[EMBEDDING]
    for name, shape in shapes.items():
        precision = scheme.precision(name) if len(shape) == 2 else None
        if precision is None:
            narrow = len(shape) == 2 and scheme.float_type != "float32"
            total += math.prod(shape) * (2 if narrow else float_bytes(job))
            continue
        total += stored_bytes(job, name, shape, precision)
    return total


def float_bytes(job: Job) -> int:
    """Of a number that is not quantised."""
    return 2 if job.activations == "float16" else 4


def stored_bytes(job: Job, name: str, shape: tuple[int, ...], precision: Precision) -> int:
    """Codes, scales and zero points of one matrix."""
    if job.format == "gguf":
        return math.prod(shape) // BLOCK_WEIGHTS * BLOCK_BYTES[block_type(precision)]
    return precision.stored_bytes(shape[0], shape[1], scale_bytes(job, name, precision))


def scale_bytes(job: Job, tensor: str, precision: Precision) -> int:
    """Of one scale: bfloat16 for XNNPACK's blocks of 4 bits, else float32, or the graph's float16."""
    if job.format == "executorch":
        return 2 if precision.bits == 4 and tensor != EMBEDDING else 4
    return 2 if job.activations == "float16" else 4


def seconds_per_weight(job: Job) -> float:
    """One worker's time for one weight, on this machine, now."""
    import torch

    from export.weights.calibration import pass_tokens
    from export.weights.loss import chunk_loss
    from export.weights.methods.method import Quantiser, levels_of
    from export.weights.scratch import Scratch
    from export.weights.stream import CHUNK_WEIGHTS

    scheme, columns = job.scheme, job.checkpoint.config.hidden_size
    if scheme.linear is None:
        return 4 / READ_BYTES_PER_S
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = max(1, CHUNK_WEIGHTS // columns)
    weight, x = torch.randn(rows, columns), torch.randn(64, columns)
    importance = None if scheme.method == "data-free" else torch.ones(columns)
    quantiser = Quantiser(scheme.linear, levels_of(scheme.linear), torch.float32, Scratch(), importance)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        quantised = quantiser.rows(weight.bfloat16().float())
        torch.stack((x @ weight.T, x @ quantised.dequantised.T))
        chunk_loss(weight, quantised)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    tokens = pass_tokens(scheme.method, job.checkpoint.config, int8_cache=job.int8_cache)
    further = tokens / PRODUCTS_PER_S if scheme.method != "data-free" or job.int8_cache else 0.0
    further += measuring_tokens(job) / PRODUCTS_PER_S
    return best / weight.numel() + further + (GPTQ_S_PER_WEIGHT if scheme.method == "gptq" else 0.0)
