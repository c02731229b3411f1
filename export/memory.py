"""How much memory an artifact needs on a device: computed here, once, and stored in its manifest."""

from __future__ import annotations

import dataclasses

from export.artifact import Format, Memory
from export.job import Job
from export.to_executorch.sizes import PREFILL_TOKENS

# Phi-3-mini, 2.15 GB of weights, 161 tokens of a float32 cache: 2.83 GB at the peak with ONNX Runtime, 4.17 GB with
# ExecuTorch. Both pack the weights again; XNNPACK's source also stays mapped. llama.cpp packs Q4_0
# again beside the mapped file: SmolLM2, 92 MB of weights, 138 tokens, had 338 MB at the peak.
RESIDENT: dict[Format, float] = {"onnx": 1.2, "executorch": 1.8, "gguf": 1.7}
# Of these the process without a model is about this much: interpreter, libraries, scratch of a prefill.
ENGINE_BYTES: dict[Format, int] = {"onnx": 120_000_000, "executorch": 150_000_000, "gguf": 140_000_000}
PLANNED_CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def plan_memory(job: Job, weights_bytes: int) -> Memory:
    """For each usual context up to the model's own, and for the one exported."""
    per_token = kv_bytes_per_token(job)
    longest = job.checkpoint.config.max_position_embeddings
    contexts = sorted({job.context_tokens, *(tokens for tokens in PLANNED_CONTEXTS if tokens <= longest)})
    memory = Memory(
        weights_bytes=weights_bytes,
        resident_weights_bytes=int(weights_bytes * RESIDENT[job.format]),
        engine_bytes=ENGINE_BYTES[job.format] + float_rows_bytes(job) + ring_copy_bytes(job),
        kv_bytes_per_token=per_token,
        kept_tokens=job.ring_tokens or job.window_cache_tokens,
        total_bytes_per_context={},
    )
    return dataclasses.replace(
        memory, total_bytes_per_context={str(tokens): memory.needed_bytes(tokens) for tokens in contexts}
    )


def float_rows_bytes(job: Job) -> int:
    """What a long prompt takes beside an int8 cache: one layer's keys and values in float, without and with the piece's
    own (export/to_onnx/int8_cache.py). Onnxruntime's arena grows by doubling: four layers of Phi-3-mini took 0.34 GB at
    3584 tokens, which is twice these."""
    model = job.model
    if not job.int8_cache:
        return 0
    return 2 * 2 * (2 * (job.window_cache_tokens or job.context_tokens) * model.kv_heads * model.head_dim * 4)


def ring_copy_bytes(job: Job) -> int:
    """One layer's ring with the call's own keys and values behind it (export/to_executorch/ring.py)."""
    if job.ring_tokens is None:
        return 0
    return 2 * (job.ring_tokens + PREFILL_TOKENS) * job.model.kv_heads * job.model.head_dim * 4


def kv_bytes_per_token(job: Job) -> int:
    """Keys and values of one token in all layers."""
    model = job.model
    # llama.cpp's cache is float16, if it is not told otherwise.
    number_bytes = 1 if job.int8_cache else 2 if job.activations == "float16" or job.format == "gguf" else 4
    return 2 * model.layers * model.kv_heads * model.head_dim * number_bytes
