"""LoRA adapters beside an ONNX artifact's weights, as values for the graph's inputs.

onnxruntime takes an adapter with a run's options, but not in a run with bound memory, which is the only one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.errors import EngineError
from runtimes.system.telemetry import switch_telemetry_off


def empty_values(session: Any) -> dict[str, Any]:
    """No adapter: the graph's inputs for A and B, with rank 0."""
    import numpy as np

    switch_telemetry_off()
    import onnxruntime

    optional = session.get_overridable_initializers()
    shapes = {item.name: item.shape for item in optional if item.name.endswith(("lora_A", "lora_B"))}
    return {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros([size if isinstance(size, int) else 0 for size in shape], np.float32)
        )
        for name, shape in shapes.items()
    }


def read_values(file: Path, empty: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's file. Its values must be the graph's, of one rank for each matrix. Raises EngineError."""
    switch_telemetry_off()
    import onnxruntime

    try:
        values: dict[str, Any] = onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters()
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{file}: onnxruntime cannot read this adapter ({error}); export it again") from error
    for name, value in values.items():
        expected = list(empty[name].shape()) if name in empty else None
        seen = list(value.shape())
        free = 1 if name.endswith("lora_A") else 0  # the rank's axis
        if expected is None or len(seen) != 2 or seen[1 - free] != expected[1 - free]:
            raise EngineError(f"{file}: {name:.120} does not fit the graph; export the artifact again")
        if value.data_type() != "tensor(float)":
            raise EngineError(f"{file}: {name:.120} is {value.data_type()}, not float; export the artifact again")
    return values
