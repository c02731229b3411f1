"""What the graph of an ONNX artifact must have for its engine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from runtimes.errors import EngineError

if TYPE_CHECKING:
    import numpy.typing as npt

    from export.artifact import Model

ELEMENT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_CACHE_TYPES = ELEMENT_TYPES | {"tensor(int8)": "int8"}


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
    if found not in ELEMENT_TYPES:
        raise EngineError(f"the graph's logits are {found}; known: {', '.join(ELEMENT_TYPES)}; export it again")
    return ELEMENT_TYPES[found]


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
