"""What config.json says twice and differently, or says of a model that cannot be: stopped before it is read.

A reader takes one of two values and never sees the other. Which one transformers takes depends on its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.errors import CheckpointError
from export.models.rope import ROPE_TYPES, rope_settings

# Keys that may be beside the rope settings, as in the published files, or among them, as transformers 5 writes them.
TWO_PLACES = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
OF_LONGROPE = ("short_factor", "long_factor", "attention_factor", "factor")
# The published configs of the mini models with 128k tokens say so, and mean that there is no window.
NO_WINDOW = 262144
# What transformers' Phi3Config takes where the key is missing, whatever the rope settings say.
PHI3_ORIGINAL = 4096


def refuse_contradictions(content: Mapping[str, Any]) -> None:
    """Raises CheckpointError for the first that is found in config.json's content."""
    _refuse_in_rope(content, rope_settings(content))
    _refuse_window(content)


def _refuse_in_rope(content: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    names = [ROPE_TYPES.get(str(rope[key])) for key in ("rope_type", "type") if key in rope]
    if len(set(names)) == 2:
        raise CheckpointError(
            f"config.json: rope_type is {rope['rope_type']!r} and type {rope['type']!r}; leave one of them out"
        )
    for key in TWO_PLACES:
        inner, outer = rope.get(key), content.get(key)
        if inner is not None and outer is not None and inner != outer:
            raise CheckpointError(
                f"config.json: {key} is {outer!r}, and {inner!r} in the rope settings; leave one of them out"
            )
        seen = outer if inner is None else inner
        if seen is not None and (isinstance(seen, bool) or not isinstance(seen, int | float)):
            raise CheckpointError(f"config.json: {key} is {seen!r}; it must be a number, or left out")
    if not names or names[0] == "default":
        if found := [key for key in OF_LONGROPE if rope.get(key) is not None]:
            raise CheckpointError(
                f"config.json: the rope settings have {found[0]} without type longrope; give the type, or leave it out"
            )
        return
    inner, outer = (place.get("original_max_position_embeddings") for place in (rope, content))
    if content.get("model_type") == "phi3" and outer is None and inner not in (None, PHI3_ORIGINAL):
        raise CheckpointError(
            f"config.json: original_max_position_embeddings is {inner!r} in the rope settings alone, where "
            f"transformers takes {PHI3_ORIGINAL}; write it beside them too"
        )


def _refuse_window(content: Mapping[str, Any]) -> None:
    window, longest = content.get("sliding_window"), content.get("max_position_embeddings")
    if isinstance(window, int) and isinstance(longest, int) and window > longest and window != NO_WINDOW:
        raise CheckpointError(
            f"config.json: sliding_window {window} is larger than max_position_embeddings {longest}; allowed: null for "
            f"no window, 1 to {longest}, or {NO_WINDOW}, which Phi-3 publishes for none"
        )
