"""`python -m ci.gpu.work KIND JSON`: one check of ci/gpu_check.py in a process of its own, so that its GPU memory is
freed and its crash is one line of the table. The last line of stdout is the answer, `ANSWER` and JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from ci.gpu.meter import PeakGpuMemory
from export.artifact import Artifact, open_artifact
from runtimes.engines.cuda import open_cuda, ready_gpu
from runtimes.engines.engine import Engine, Graphics
from runtimes.engines.onnx_engine import model_file, open_onnx
from runtimes.engines.webgpu import find_device, open_webgpu
from runtimes.subject import EngineSubject
from runtimes.system.telemetry import switch_telemetry_off

Logits = npt.NDArray[np.float32]
MARK = "ANSWER "
REPEATS = 5  # of each prefill; the median counts
WARM_STEPS = 3  # the first ones choose kernels, and record the CUDA graph
IDS_SEED = 0


def open_engine(artifact: Artifact, provider: str, adapter: str | None) -> Engine:
    """Our engine on that provider. Raises EngineError."""
    graphics = Graphics(adapter=adapter)
    if provider == "cuda":
        return open_cuda(artifact, None, graphics=graphics)
    return open_webgpu(artifact, None, graphics=graphics) if provider == "webgpu" else open_onnx(artifact, None)


def greedy(engine: Engine, ids: Sequence[int], count: int) -> tuple[list[int], Logits]:
    """`count` greedy tokens after a prompt, and the logits [count, vocab] behind them."""
    rows: list[Logits] = []
    tokens: list[int] = []
    at = 0
    for piece in [*pieces(ids, engine.max_forward_tokens), *([] for _ in range(count - 1))]:
        step = piece or [tokens[-1]]
        logits = engine.forward(step, at).copy()
        at += len(step)
        if at >= len(ids):
            rows.append(logits)
            tokens.append(int(logits.argmax()))
    return tokens, np.stack(rows)


def pieces(ids: Sequence[int], most: int) -> list[Sequence[int]]:
    return [ids[start : start + most] for start in range(0, len(ids), most)]


def speeds(engine: Engine, prompts: Sequence[int], steps: int, vocab_size: int) -> dict[str, dict[int, float]]:
    """Tokens a second: prefill of prompts of so many tokens, and decoding after each."""
    prefill: dict[int, float] = {}
    decode: dict[int, float] = {}
    ids = np.random.default_rng(IDS_SEED).integers(3, min(vocab_size, 500), max(prompts, default=0)).tolist()
    for count in prompts:
        taken: list[float] = []
        for _ in range(1 + REPEATS):
            begin = time.perf_counter()
            start = 0
            for piece in pieces(ids[:count], engine.max_forward_tokens):
                logits = engine.forward(piece, start)
                start += len(piece)
            taken.append(time.perf_counter() - begin)
        prefill[count] = count / median(taken[1:])
        for step in range(WARM_STEPS + steps):
            if step == WARM_STEPS:
                begin = time.perf_counter()
            logits = engine.forward([int(logits.argmax())], count + step)
        decode[count] = steps / (time.perf_counter() - begin)
    return {"prefill": prefill, "decode": decode}


def ours(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Our engine on the provider, then the CPU provider with the same artifact, or what stands for it there."""
    artifact = open_artifact(Path(asked["folder"]))
    with PeakGpuMemory() as peak:
        engine = open_engine(artifact, asked["provider"], asked["adapter"])
        with contextlib.closing(engine):
            seen = [greedy(engine, ids, asked["count"]) for ids in asked["prompts"]]
            found = speeds(engine, asked["lengths"], asked["steps"], engine.vocab_size)
    with contextlib.closing(open_onnx(open_artifact(Path(asked["reference"])), None)) as plain:
        expected = [greedy(plain, ids, asked["count"]) for ids in asked["prompts"]]
    off, spread, gaps = 0.0, 0.0, []
    for (tokens, logits), (their_tokens, theirs) in zip(seen, expected, strict=True):
        parting = next(
            (at for at, pair in enumerate(zip(tokens, their_tokens, strict=True)) if len(set(pair)) > 1), None
        )
        if parting is not None:
            gaps.append(float(theirs[parting].max() - theirs[parting, tokens[parting]]))
        # After another token, the logits are another text's.
        same = slice(None if parting is None else parting + 1)
        off = max(off, float(np.abs(logits[same] - theirs[same]).max()))
        spread = max(spread, float(theirs.std(axis=1).mean()))
    return found | {
        "difference": off,
        "spread": spread,
        "gaps": gaps,
        "tokens": [tokens for tokens, _ in seen],
        "expected": [tokens for tokens, _ in expected],
        "memory_bytes": peak.bytes(),
    }


def stock(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The artifact as it is in onnxruntime-genai. A prefill lasts until the first token."""
    switch_telemetry_off()
    import onnxruntime
    import onnxruntime_genai as genai

    if asked["provider"] == "cuda":
        onnxruntime.preload_dlls()  # CUDA's libraries of pip's packages, which genai does not look for

    with PeakGpuMemory() as peak:
        config = genai.Config(asked["folder"])
        config.overlay(json.dumps({"model": {"eos_token_id": asked["stop"]}}))
        model = genai.Model(config)

        def generate(ids: Sequence[int], count: int) -> tuple[list[int], float, float]:
            parameters = genai.GeneratorParams(model)
            parameters.set_search_options(max_length=asked["context_tokens"], do_sample=False)
            generator = genai.Generator(model, parameters)
            begin = time.perf_counter()
            generator.append_tokens(np.array(ids, np.int32))
            generator.generate_next_token()
            tokens = [int(generator.get_next_tokens()[0])]
            prefill_s = time.perf_counter() - begin
            while len(tokens) < count and not generator.is_done():
                if len(tokens) == WARM_STEPS:
                    begin = time.perf_counter()
                generator.generate_next_token()
                tokens.append(int(generator.get_next_tokens()[0]))
            return tokens, prefill_s, time.perf_counter() - begin

        answers = [generate(ids, asked["count"])[0] for ids in asked["prompts"]]
        prefill: dict[int, float] = {}
        decode: dict[int, float] = {}
        ids = np.random.default_rng(IDS_SEED).integers(3, 500, max(asked["lengths"], default=0)).tolist()
        for count in asked["lengths"]:
            prefill[count] = count / median(generate(ids[:count], 1)[1] for _ in range(REPEATS))
            tokens, _, taken_s = generate(ids[:count], WARM_STEPS + asked["steps"])
            decode[count] = (len(tokens) - WARM_STEPS) / taken_s
    return {"tokens": answers, "prefill": prefill, "decode": decode, "memory_bytes": peak.bytes()}


def placements(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A session whose verbose log, on stderr, says where each node is."""
    switch_telemetry_off()
    import onnxruntime

    artifact, adapter = open_artifact(Path(asked["folder"])), asked["adapter"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0
    providers: list[Any] | None = ["CPUExecutionProvider"]
    if asked["provider"] == "cuda":
        place, _ = ready_gpu(artifact.manifest, adapter)
        providers = [("CUDAExecutionProvider", {"device_id": str(place)}), "CPUExecutionProvider"]
    elif asked["provider"] == "webgpu":
        options.add_provider_for_devices([find_device(adapter).handle], {})
        providers = None
    onnxruntime.InferenceSession(str(model_file(artifact)), options, providers=providers)
    return {}


def conform(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A small variant with its published head layout, window and factors, against the float model."""
    from ci.variants import make_checkpoint
    from export.pipeline import export_model
    from export.request import ExportRequest
    from export.verify.conformance import examine

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(asked["variant"], Path(folder) / "checkpoint")
        request = ExportRequest(
            checkpoint=str(checkpoint), out=Path(folder) / "artifact", target=asked["target"], scheme="int4-b32",
            context_tokens=asked["context_tokens"],
        )  # fmt: skip
        artifact = export_model(request)
        report = examine(
            artifact,
            str(checkpoint),
            lambda opened: EngineSubject(open_engine(opened, asked["provider"], asked["adapter"])),
        )
    return {
        "difference": report.max_difference,
        "relative": report.relative,
        "mean_kl": report.mean_kl,
        "top1_agreement": report.top1_agreement,
        "failures": report.failures,
    }


KINDS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "ours": ours,
    "stock": stock,
    "placements": placements,
    "conform": conform,
}

if __name__ == "__main__":
    print(MARK + json.dumps(KINDS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
