"""genai_config.json: what stock onnxruntime-genai needs to load an ONNX artifact unchanged.

Format: onnxruntime-genai, src/config.h. It is derived from what the manifest says and adds nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.artifact import Model, Tokens


def genai_config(
    model: Model,
    tokens: Tokens,
    *,
    model_type: str,
    context_tokens: int,
    window_tokens: int | None,
    kept_tokens: int | None,
    provider: str,
    provider_options: Mapping[str, str],
    quiet: bool = False,
) -> dict[str, Any]:
    """The content of genai_config.json. `kept_tokens`: how many the KV cache has, where it keeps only those of the
    sliding window and a few more. `provider` is "" for the CPU, or the name of an execution provider.
    `quiet`: without warnings, because onnxruntime warns of every input that need not be given."""
    return {
        "model": {
            "type": model_type,
            "bos_token_id": tokens.bos,
            "eos_token_id": list(tokens.stop),
            "pad_token_id": tokens.pad if tokens.pad is not None else tokens.stop[0],
            "vocab_size": model.vocab_size,
            "context_length": context_tokens,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    **({"log_severity_level": 3} if quiet else {}),
                    "provider_options": [{provider: dict(provider_options)}] if provider else [],
                },
                "filename": "model.onnx",
                "head_size": model.head_dim,
                "hidden_size": model.hidden_size,
                "num_attention_heads": model.heads,
                "num_hidden_layers": model.layers,
                "num_key_value_heads": model.kv_heads,
                **windowed_cache(model, window_tokens, kept_tokens),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    **({"position_ids": "position_ids"} if provider == "dml" else {}),
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context_tokens,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 50,  # genai's own default; with 1 its temperature would do nothing
            "top_p": 1.0,
        },
    }


def windowed_cache(model: Model, window_tokens: int | None, kept_tokens: int | None) -> dict[str, Any]:
    """Says how long each layer's KV cache is, where GroupQueryAttention keeps a window. Nothing where it keeps all."""
    if kept_tokens is None or window_tokens is None:
        return {}
    window = {
        "window_size": window_tokens,
        "cache_slack": kept_tokens - window_tokens,
        "slide_key_value_cache": False,
        "slide_inputs": False,
        "layers": list(range(model.layers)),
    }
    return {"sliding_window": window}
