"""What an ONNX artifact's graph has for its engine: inputs and outputs, rows of its KV cache, values for LoRA adapters.

onnxruntime takes an adapter with a run's options, but not in a run with bound memory, which is the only one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes.errors import EngineError
from runtimes.system.telemetry import switch_telemetry_off

if TYPE_CHECKING:
    import numpy.typing as npt

    from export.artifact import Manifest, Model

_ELEMENT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_CACHE_TYPES = _ELEMENT_TYPES | {"tensor(int8)": "int8"}


@dataclass(frozen=True, kw_only=True)
class CacheRows:
    """Which tokens are in a KV cache's rows, where GroupQueryAttention keeps only a sliding window
    (`sliding_window_cache`).

    The oldest token is in the first row. When all rows are full, the operator moves those of the window to the
    beginning and goes on behind them: so once after every `capacity - window + 1` tokens. How many rows are filled
    depends on the number of tokens alone, not on how they were given.
    """

    window: int
    capacity: int

    def filled(self, tokens: int) -> int:
        """How many rows are filled after so many tokens."""
        dropped = self.capacity - self.window + 1
        return tokens - dropped * max(0, -(-(tokens - self.capacity) // dropped))

    def can_resume(self, start: int, end: int) -> bool:
        """See WindowEngine: whether no row was moved in between."""
        return start == 0 or self.filled(end) - self.filled(start) == end - start


def cache_rows(manifest: Manifest) -> CacheRows:
    """Of an artifact for ONNX Runtime. A cache of the whole context never moves its rows. Raises EngineError."""
    kept, window = manifest.memory.kept_tokens, manifest.window_tokens
    if kept is None or window is None:
        return CacheRows(window=manifest.context_tokens, capacity=manifest.context_tokens)
    if kept < window:
        raise EngineError(
            f"manifest.json: memory.kept_tokens is {kept}, and attention sees {window} tokens; export it again"
        )
    return CacheRows(window=window, capacity=kept)


def check_graph(session: Any, model: Model) -> npt.DTypeLike:
    """Refuse a graph with other inputs, outputs or sizes than the manifest's; the element type of its KV cache."""
    layers = model.layers
    tails = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    seen_inputs = {item.name for item in session.get_inputs()}
    lengths = {"seqlens_k", "total_sequence_length"} if "seqlens_k" in seen_inputs else {"attention_mask"}
    expected_inputs = {"input_ids", *lengths, *({"position_ids"} & seen_inputs)}
    expected_inputs |= {f"past_key_values.{tail}" for tail in tails}
    seen_outputs = {item.name for item in session.get_outputs()}
    expected_outputs = {"logits", *({"token_logits"} & seen_outputs), *(f"present.{tail}" for tail in tails)}
    for kind, seen, expected in (
        ("inputs", seen_inputs, expected_inputs),
        ("outputs", seen_outputs, expected_outputs),
    ):
        if seen != expected:
            odd = ", ".join(sorted(seen ^ expected)[:4])
            raise EngineError(f"the graph's {kind} are not those of a phi-edge export ({odd}, ...); export it again")
    _check_shapes(session, model)
    types = {item.type for item in session.get_inputs() if re.match("past_key_values", item.name)}
    if len(types) != 1 or not types <= set(_CACHE_TYPES):
        raise EngineError(f"the graph's KV cache is {', '.join(sorted(types))}; known: {', '.join(_CACHE_TYPES)}")
    return _CACHE_TYPES[types.pop()]


def logits_type(session: Any) -> npt.DTypeLike:
    found: str = next(item.type for item in session.get_outputs() if item.name == "logits")
    if found not in _ELEMENT_TYPES:
        raise EngineError(f"the graph's logits are {found}; known: {', '.join(_ELEMENT_TYPES)}; export it again")
    return _ELEMENT_TYPES[found]


def _check_shapes(session: Any, model: Model) -> None:
    """Every size that the graph fixes must be the manifest's. Batch, length and context are open in a graph."""
    cache = {1: model.kv_heads, 3: model.head_dim}
    for item in (*session.get_inputs(), *session.get_outputs()):
        known = cache if item.name.startswith(("past_key_values", "present")) else {}
        known = {2: model.vocab_size} if item.name in ("logits", "token_logits") else known
        for place, size in known.items():
            seen = item.shape[place] if len(item.shape) > place else None
            if seen != size and not isinstance(seen, str):
                raise EngineError(
                    f"the graph's {item.name} has the shape {item.shape}, the manifest says {size} at place {place}; "
                    "export it again"
                )


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
