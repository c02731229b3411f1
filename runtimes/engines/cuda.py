"""CUDA, through onnxruntime-gpu: which GPU is used, and no silent CPU.

Which GPU is used is decided from facts that are passed in, so it can be tested anywhere; reading them is
runtimes.system.cuda's. It does not install anything.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact, Manifest
from runtimes.engines.device_cache import DeviceCacheEngine
from runtimes.engines.engine import ANY_ADAPTER, Engine, Graphics
from runtimes.engines.onnx_engine import load_session, model_file, open_onnx
from runtimes.errors import EngineError
from runtimes.system.cuda import Gpu, list_gpus
from runtimes.system.packages import installed_versions
from runtimes.system.telemetry import switch_telemetry_off

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits

PROVIDER = "CUDAExecutionProvider"
CAPTURE = "enable_cuda_graph"  # of the provider's options
# The ids of graphs that a run records or replays; -1 is a run as it is.
PLAIN, STEP = "-1", "1"
DEVICE = "cuda"  # the name of its memory
SPARSE = frozenset([(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)])  # that SparseAttention has kernels for (1.31)


def choose_gpu(gpus: Sequence[Gpu], wanted: str | None = None) -> int:
    """The place of the GPU to compute on: by its number or a part of its description; else the first, which CUDA takes
    for the fastest. Raises EngineError where there is none."""
    listed = "; ".join(f"{place}: {gpu.describe()}" for place, gpu in enumerate(gpus)) or "none"
    if wanted is not None:
        found = [place for place, gpu in enumerate(gpus) if _is_named(gpu, place, wanted)]
        if len(found) != 1:
            raise EngineError(f"GPU {wanted!r} matches {len(found)}; there are: {listed}; give one's number or name")
        return found[0]
    if not gpus:
        raise EngineError(
            "no NVIDIA GPU with its driver, so this would run on the CPU; export for --target cpu, or allow the CPU"
        )
    return 0


def _is_named(gpu: Gpu, place: int, wanted: str) -> bool:
    return int(wanted) == place if wanted.isdecimal() else wanted.lower() in gpu.describe().lower()


def check_gpu(manifest: Manifest, gpu: Gpu) -> None:
    """Raises EngineError for an artifact that this GPU cannot run, before anything is loaded."""
    memory, tokens = manifest.memory, manifest.context_tokens
    needed = memory.weights_bytes + tokens * memory.kv_bytes_per_token
    if needed > gpu.memory_bytes:
        raise EngineError(
            f"the weights and the KV cache of {tokens} tokens need {needed / 1e9:.1f} GB, and the GPU is "
            f"{gpu.describe()}; export it again with a smaller --context, or take a smaller model"
        )
    if _sparse(manifest) and gpu.capability not in SPARSE:
        known = ", ".join(f"{major}.{minor}" for major, minor in sorted(SPARSE))
        raise EngineError(
            f"onnxruntime has Phi-3-small's attention for the compute capabilities {known}, and the GPU is "
            f"{gpu.describe()}; export it again with --context 1024 or less, or for --target cpu"
        )


def _sparse(manifest: Manifest) -> bool:
    return "SparseAttention" in manifest.coverage.get(PROVIDER, {})


def check_library(providers: Sequence[str], installed: Sequence[str]) -> None:
    """`providers` of the onnxruntime that is imported; `installed` are the distributions that write its package.
    Raises EngineError where it has no CUDA."""
    if PROVIDER in providers:
        return
    others = [name for name in installed if name != "onnxruntime-gpu"]
    again = "pip install 'phi-edge[cuda]'"
    if "onnxruntime-gpu" in installed:
        again = "pip install --force-reinstall --no-deps onnxruntime-gpu"
    fix = f"pip uninstall {' '.join(others)}, then {again}" if others else again
    raise EngineError("the onnxruntime that is installed has no CUDA provider", fix=fix)


def ready_gpu(manifest: Manifest, wanted: str | None = None) -> tuple[int, Gpu]:
    """The GPU for an artifact and its place, with the library that computes there. Raises EngineError."""
    gpus = list_gpus()
    place = choose_gpu(gpus, wanted)
    check_gpu(manifest, gpus[place])
    _load_library()
    return place, gpus[place]


def refused_here(manifest: Manifest) -> str | None:
    """Why this machine cannot run an artifact for CUDA at all; None where a GPU can, or the CPU."""
    if not _sparse(manifest):
        return None
    try:
        ready_gpu(manifest)
    except EngineError as error:
        return f"ONNX Runtime's CPU has Phi-3-small's attention in float32 only, and here is {error}"
    return None


def open_cuda(artifact: Artifact, threads: int | None, *, graphics: Graphics = ANY_ADAPTER) -> Engine:
    """Load on a GPU. Where the CPU is allowed and takes over, it is reported on stderr. Raises EngineError."""
    switch_telemetry_off()
    try:
        place, gpu = ready_gpu(artifact.manifest, graphics.adapter)
    except EngineError as error:
        if not graphics.allow_cpu or graphics.adapter is not None:
            raise
        print(f"phi-edge: on the CPU: {error}", file=sys.stderr)
        return open_onnx(artifact, threads)
    options = {"device_id": str(place), CAPTURE: str(int(_captures(artifact.manifest)))}
    session = load_session(model_file(artifact), threads, providers=[(PROVIDER, options), "CPUExecutionProvider"])
    if PROVIDER not in session.get_providers():  # onnxruntime warns of it, and goes on with the CPU
        raise EngineError(
            "onnxruntime-gpu cannot load its CUDA provider: CUDA's libraries or cuDNN are missing, or of another major "
            "version",
            fix="pip install 'phi-edge[cuda]'",
        )
    print(f"phi-edge: CUDA on {gpu.describe()}", file=sys.stderr)
    return CudaEngine(session, artifact, place, gpu)


def _captures(manifest: Manifest) -> bool:
    """Whether the export found that a decoding step can be recorded. No other option of the provider is taken from a
    manifest: some are addresses."""
    written = manifest.engine.get("provider_options")
    return isinstance(written, dict) and written.get(CAPTURE) == "1"


def _load_library() -> None:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise EngineError("CUDA needs onnxruntime-gpu", fix="pip install 'phi-edge[cuda]'") from error
    owners = [*installed_versions(("onnxruntime", "onnxruntime-gpu"))]
    check_library(onnxruntime.get_available_providers(), owners)
    # It finds NVIDIA's libraries in pip's packages, and prints what it does not find.
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()


class CudaEngine(DeviceCacheEngine):
    """See Engine. A decoding step may be a CUDA graph, recorded by the first one and replayed: the 300 kernels of a
    step are then started at once, and Phi-3-mini's took a fifth less time on an H100."""

    def __init__(self, session: Any, artifact: Artifact, place: int, gpu: Gpu) -> None:
        import onnxruntime

        self._place = place
        super().__init__(session, artifact, f"CUDA on {gpu.describe()}")
        # After others, SparseAttention takes tokens one by one only: several at once gave wrong logits (docs/gpu.md).
        self.continues = not _sparse(artifact.manifest)
        self._step: CapturedStep | None = None
        if _captures(artifact.manifest):
            self._run_options = onnxruntime.RunOptions()
            self._run_options.add_run_config_entry("gpu_graph_id", PLAIN)
            self._step = CapturedStep(session, self._on_device, self.context_tokens, self._logits[:1], place)

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        if start and len(ids) > 1 and not self.continues:
            for place, id in enumerate(ids):
                logits = self.forward_rows([id], start + place, rows, long=long)
            return logits
        # A recorded step cannot take sequence_tokens.
        early = long and self.switch_tokens is not None and start < self.switch_tokens
        if self._step is None or len(ids) != 1 or early or start >= self.context_tokens:
            return super().forward_rows(ids, start, rows, long=long)
        return self._step.forward(ids[0], start)

    def close(self) -> None:
        """Free the session and the KV cache."""
        self._step = None
        super().close()

    def _allocate(self, shape: tuple[int, ...], kind: Any) -> Any:
        import numpy as np
        import onnxruntime

        try:
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, kind), DEVICE, self._place)
        except Exception as error:  # the library's errors have no common class
            raise EngineError(
                f"the GPU's memory has no room for the KV cache of {shape[2]} tokens; end what else uses it, or export "
                f"again with a smaller --context ({error})"
            ) from error


class CapturedStep:
    """One token's forward whose inputs and outputs stay where they are in the GPU's memory. The mask has a place for
    each position of the context, so that every step has the same shapes."""

    def __init__(self, session: Any, cache: Sequence[Any], context_tokens: int, logits: Any, place: int) -> None:
        """`cache` is each layer's keys and values; `logits` has the shape [1, vocab] and the graph's type."""
        import numpy as np
        import onnxruntime

        def on_device(values: Any) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(values, DEVICE, place)

        self._session = session
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", STEP)
        self._id, self._mask = np.zeros((1, 1), np.int64), np.zeros((1, context_tokens), np.int64)
        self._inputs = on_device(self._id), on_device(self._mask)
        self._logits = on_device(np.zeros((1, *logits.shape), logits.dtype))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("input_ids", self._inputs[0])
        self._binding.bind_ortvalue_input("attention_mask", self._inputs[1])
        self._binding.bind_ortvalue_output("logits", self._logits)
        for index, value in enumerate(cache):
            tail = f"{index // 2}.{('key', 'value')[index % 2]}"
            self._binding.bind_ortvalue_input(f"past_key_values.{tail}", value)
            self._binding.bind_ortvalue_output(f"present.{tail}", value)

    def forward(self, id: int, start: int) -> Logits:
        """The logits after `id` at position `start`, float32 [1, vocab]. Raises EngineError."""
        import numpy as np

        self._id[0, 0] = id
        self._mask[0, : start + 1], self._mask[0, start + 1 :] = 1, 0
        try:
            self._inputs[0].update_inplace(self._id)
            self._inputs[1].update_inplace(self._mask)
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # the library's errors have no common class
            raise EngineError(f"onnxruntime failed at position {start}: {error}") from error
        logits: Logits = self._logits.numpy()[0].astype(np.float32)
        return logits
