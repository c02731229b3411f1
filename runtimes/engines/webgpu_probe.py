"""What an adapter of WebGPU can do, found out with a graph of one node: the plugin lists neither whether it has float16
nor how large a buffer may be.

Without it a model that the adapter cannot run would be refused at its first token, after gigabytes were loaded.
"""

from __future__ import annotations

from typing import Any

from export.artifact import Manifest
from runtimes.errors import EngineError
from runtimes.system.telemetry import switch_telemetry_off

# Gather(x [n], i [1]) -> y [1], as the library onnx writes it.
GATHER = {
    "float16": bytes.fromhex(
        "08083a4a0a110a01780a016912017922064761746865721201675a100a0178120b0a09080a12050a0312016e5a0f0a0169120a0a0808071204"
        "0a020801620f0a0179120a0a08080a12040a02080142040a001011"
    ),
    "float32": bytes.fromhex(
        "08083a4a0a110a01780a016912017922064761746865721201675a100a0178120b0a09080112050a0312016e5a0f0a0169120a0a0808071204"
        "0a020801620f0a0179120a0a08080112040a02080142040a001011"
    ),
}
SILENT, WARNINGS = 4, 2  # severities of onnxruntime's log; the second is its default


def check_adapter(device: Any, name: str, manifest: Manifest) -> None:
    """Raises EngineError where the adapter has no such floats as the artifact, or no buffer as large as a layer's keys.
    `device` is an OrtEpDevice."""
    kind = "float16" if manifest.scheme.activations.startswith("float16") else "float32"
    said = run_gather(device, kind, 1)
    if said is not None and "requires f16" in said:
        raise EngineError(f"{name} has no float16, which this artifact needs; export it with --activations float32")
    model, width = manifest.model, 2 if kind == "float16" else 4
    numbers = model.kv_heads * manifest.context_tokens * model.head_dim
    if said is None and (said := run_gather(device, kind, numbers)) is not None and "uffer" in said:
        raise EngineError(
            f"a layer's keys for {manifest.context_tokens} tokens have {numbers * width} bytes, which {name} does not "
            "take in a buffer; export with a shorter --context"
        )
    if said is not None:
        raise EngineError(f"{name} does not run a graph of one node: {said}")


def run_gather(device: Any, kind: str, numbers: int) -> str | None:
    """Read one of so many numbers in the adapter's memory. -> what the library said where it failed, as one line."""
    import numpy as np

    switch_telemetry_off()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.add_provider_for_devices([device], {})
    onnxruntime.set_default_logger_severity(SILENT)
    try:
        session = onnxruntime.InferenceSession(GATHER[kind], options)
        there = onnxruntime.OrtValue.ortvalue_from_shape_and_type((numbers,), np.dtype(kind), "gpu", 0, 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", there)
        binding.bind_cpu_input("i", np.zeros(1, np.int64))
        binding.bind_output("y")
        session.run_with_iobinding(binding)
    except Exception as error:  # the library's errors have no common class
        return " ".join(str(error).split()) or type(error).__name__
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)
    return None
