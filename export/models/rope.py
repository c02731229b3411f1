"""Rotary positions: the factors as transformers computes them, and the cos/sin tables that the graphs carry.

Long rope (type "longrope", or the older "su") has two sets of factors: short ones while the whole sequence is at most
`original_context_tokens` long, long ones beyond it, for all positions; the attention factor is the same in both.
Source: transformers, modeling_rope_utils.py, _compute_longrope_parameters and longrope_frequency_update.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from export.errors import CheckpointError

# rope_type in config.json -> what we call it. "su" is longrope's name in the first Phi-3 checkpoints.
ROPE_TYPES: Mapping[str, Literal["default", "longrope"]] = {
    "default": "default",
    "longrope": "longrope",
    "su": "longrope",
}
KNOWN_KEYS = frozenset(
    (
        *("type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
        *("short_factor", "long_factor", "factor", "attention_factor"),
    )
)
# Phi-3-small-128k's own attention factors, one for each set; transformers reads none of them for phi3.
MSCALE_KEYS = ("short_mscale", "long_mscale")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """What decides the rotation. `short_factor` and `long_factor` are empty for the default type."""

    type: Literal["default", "longrope"]
    theta: float
    rotary_dim: int
    original_context_tokens: int
    attention_factor: float
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    long_attention_factor: float | None = None  # where the long factors have another one

    def tables(self, length: int, *, long: bool = False) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """cos and sin, each [length, rotary_dim / 2], attention factor included."""
        # torch's power, because it is transformers': numpy's differs in the last bit of some frequencies, and at
        # position 4096 that is 1e-3 in a logit.
        exponent = torch.arange(0, self.rotary_dim, 2).float() / self.rotary_dim
        factors = torch.tensor((self.long_factor if long else self.short_factor) or 1.0, dtype=torch.float32)
        frequency = (1.0 / (factors * self.theta**exponent)).numpy()
        angles = np.arange(length, dtype=np.float32)[:, None] * frequency[None, :]
        scale = np.float32((long and self.long_attention_factor) or self.attention_factor)
        return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)

    def switches(self, context_tokens: int) -> bool:
        """Whether sequences within this context need both sets of factors."""
        return self.type == "longrope" and context_tokens > self.original_context_tokens

    def stacked_tables(self, context_tokens: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """cos and sin for a context: the short factors' rows; below them the long ones', where one may need them.

        Then position p is row p while the sequence is short, and row original_context_tokens + p when it is long.
        """
        if not self.switches(context_tokens):
            return self.tables(context_tokens)
        short, long = self.tables(self.original_context_tokens), self.tables(context_tokens, long=True)
        return np.concatenate((short[0], long[0])), np.concatenate((short[1], long[1]))

    def stacked_rows(self, context_tokens: int) -> int:
        """How many rows the stacked tables have."""
        return context_tokens + (self.original_context_tokens if self.switches(context_tokens) else 0)


def rope_settings(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json's rope settings, in the new spelling (rope_parameters) or the old (rope_scaling); empty where it has
    none. Raises CheckpointError where it has two, or no object."""
    given = [content.get(key) for key in ("rope_scaling", "rope_parameters")]
    for settings in given:
        if settings is not None and not isinstance(settings, dict):
            raise CheckpointError(f"config.json: the rope settings are {settings!r}; they must be null or an object")
    if all(given) and given[0] != given[1]:
        raise CheckpointError("config.json: rope_scaling and rope_parameters differ; leave one of them out")
    return next(filter(None, given), {})


def read_rope(config: Mapping[str, Any], *, head_dim: int, mscale: bool = False) -> RopeConfig:
    """The rope part of config.json.

    With `mscale` it may give the attention factors itself: see MSCALE_KEYS. Raises CheckpointError for a type, key or
    list that we do not honour.
    """
    scaling = rope_settings(config)
    known = KNOWN_KEYS | set(MSCALE_KEYS if mscale else ())
    if unknown := sorted(set(scaling) - known):
        raise CheckpointError(f"config.json: rope key {unknown[0]!r} is not known; known: {', '.join(sorted(known))}")
    name = str(scaling.get("rope_type", scaling.get("type", "default")))
    if name not in ROPE_TYPES:
        raise CheckpointError(f"config.json: rope type {name!r} is not known; known: {', '.join(ROPE_TYPES)}")
    fraction = positive("partial_rotary_factor", scaling, config, default=1.0)
    rotary_dim = int(head_dim * fraction)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise CheckpointError(
            f"config.json: partial_rotary_factor {fraction} of head_dim {head_dim} is not an even size"
        )
    longest = int(config["max_position_embeddings"])
    original = scaling.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    attention_factor = 1.0
    if ROPE_TYPES[name] == "longrope":
        if not isinstance(original, int) or original < 2:
            raise CheckpointError(
                f"config.json: longrope needs original_max_position_embeddings; it is {original!r}, Phi-3's is 4096"
            )
        short, long = (_factors(scaling, key, rotary_dim // 2) for key in ("short_factor", "long_factor"))
        ratio = longest / original
        if scaling.get("factor") not in (None, ratio):
            raise CheckpointError(
                f"config.json: rope factor is {scaling['factor']}; only {ratio} (max / original) is known"
            )
        attention_factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        attention_factor = positive("attention_factor", scaling, default=attention_factor)
    of_short, of_long = (positive(key, scaling, default=attention_factor) for key in MSCALE_KEYS)
    return RopeConfig(
        type=ROPE_TYPES[name],
        theta=positive("rope_theta", scaling, config, default=10000.0),
        rotary_dim=rotary_dim,
        original_context_tokens=int(original or longest),
        attention_factor=of_short,
        short_factor=short,
        long_factor=long,
        long_attention_factor=of_long if of_long != of_short else None,
    )


def _factors(scaling: Mapping[str, Any], key: str, expected: int) -> tuple[float, ...]:
    values = scaling.get(key)
    if not isinstance(values, list) or len(values) != expected:
        seen = len(values) if isinstance(values, list) else repr(values)
        raise CheckpointError(
            f"config.json: rope {key} has {seen} numbers; this model needs {expected} (rotary_dim / 2)"
        )
    return tuple(positive(f"{key}[{index}]", {f"{key}[{index}]": value}) for index, value in enumerate(values))


def positive(key: str, *places: Mapping[str, Any], default: float | None = None) -> float:
    """A number above 0 from the first place that has it; null takes the default. Raises CheckpointError."""
    value = next((place[key] for place in places if place.get(key) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"config.json: {key} is {value!r:.60}; it must be a number above 0")
    return float(value)
