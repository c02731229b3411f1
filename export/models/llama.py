"""Llama and Mistral decoders (model_type "llama", "mistral") that compute what a Phi-3 does: phi3.py is their page.

Their checkpoints keep query, key and value apart, and gate and up; trainers save a fine-tuned Phi-3 so, too. What
Phi-3's page does not compute is refused by name: scaled rope, biases, heads of another size, experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.errors import CheckpointError
from export.models.config import IGNORED, SIZES, flag, head_size, refuse_other, refuse_unknown, sizes, window
from export.models.phi3 import SplitPhi3Config
from export.models.rope import positive, read_rope, rope_settings

FIXED: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "attention_bias": False,
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_interleaved": False,
        "sliding_window": None,
    },
    "mistral": {"hidden_act": "silu"},
}
KNOWN = {
    *SIZES,
    *("model_type", "head_dim", "hidden_act", "rms_norm_eps", "sliding_window", "tie_word_embeddings"),
    *("rope_parameters", "rope_scaling", "rope_theta"),
}
# What training puts there.
OTHERS = {"attention_dropout"}
# What transformers takes where the key is missing.
DEFAULT_WINDOW = 4096


def read_config(content: Mapping[str, Any]) -> SplitPhi3Config:
    """config.json's content. Raises CheckpointError with the key, the value seen and those allowed."""
    kind = content["model_type"]
    refuse_unknown(content, KNOWN | set(FIXED[kind]), IGNORED | OTHERS)
    refuse_other(content, FIXED[kind])
    refuse_scaled_rope(content)
    if kind == "mistral":
        content = {"sliding_window": DEFAULT_WINDOW} | dict(content)
    elif content.get("num_key_value_heads") is None:
        content = dict(content) | {"num_key_value_heads": content.get("num_attention_heads")}
    numbers = sizes(content, SIZES)
    return SplitPhi3Config(
        **numbers,
        sliding_window=window(content),
        tie_word_embeddings=flag(content, "tie_word_embeddings", default=False),
        rms_norm_eps=positive("rms_norm_eps", content, default=1e-6),
        rope=read_rope(content, head_dim=head_size(content)),
    )


def refuse_scaled_rope(content: Mapping[str, Any]) -> None:
    """Of the rope types only the default is computed; the settings may have nothing but rope_theta beside it."""
    settings = rope_settings(content)
    name = settings.get("rope_type", settings.get("type", "default"))
    if name != "default":
        raise CheckpointError(
            f"config.json: rope type {name!r} is not supported in a {content['model_type']}; default is"
        )
    if unknown := sorted(set(settings) - {"rope_type", "type", "rope_theta"}):
        raise CheckpointError(
            f"config.json: rope key {unknown[0]!r} is not known in a {content['model_type']}; known: rope_theta"
        )
