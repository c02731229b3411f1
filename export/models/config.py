"""How the models' files read config.json: the checks that they share. Each raises CheckpointError in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from export.errors import CheckpointError
from export.models.rope import positive

MOST_SIZE = 1 << 24  # of a matrix's side: what is larger is an error, and would be computed with for hours
MOST_POSITIONS = 1 << 31
# Keys that say nothing about inference, whatever the model.
IGNORED = frozenset(
    (
        *("_attn_implementation", "_name_or_path", "architectures", "auto_map", "dtype", "initializer_range"),
        *("torch_dtype", "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
)
# What trainers and other versions of transformers leave behind, and what it has to be where it could mean something.
LEFT_BEHIND = frozenset(
    (
        *("_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash", "id2label", "label2id"),
        *("model_max_length", "problem_type", "task_specific_params", "finetuning_task", "tokenizer_class"),
        *("transformers.js_config", "transformers_weights", "unsloth_fixed", "unsloth_version", "is_llama_config"),
        *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens"),
        *("decoder_start_token_id", "sep_token_id", "forced_bos_token_id", "forced_eos_token_id"),
        *("gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
    )
)
INERT: Mapping[str, Any] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "torchscript": False,
    "use_bfloat16": False,
}
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings"),
)
ROPE_KEYS = (
    *("original_max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta"),
)


def refuse_unknown(content: Mapping[str, Any], known: Collection[str], ignored: Collection[str]) -> None:
    """Every key must be known: another might change the computation."""
    refuse_other({key: value for key, value in content.items() if value is not None}, INERT)
    for key in content:
        if not any(key in keys for keys in (known, ignored, LEFT_BEHIND, INERT)):
            raise CheckpointError(
                f"config.json: {key!r:.80} is not known, so it might change the computation; remove it if your "
                f"trainer wrote it; known keys: {', '.join(sorted(known))}"
            )


def unused_keys(content: Mapping[str, Any]) -> list[str]:
    """The keys that were left behind by a trainer: they are accepted, and the manifest names them."""
    return sorted(key for key in content if (key in LEFT_BEHIND or key in INERT) and content[key] is not None)


def refuse_other(content: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """These keys may be left out, or have the one value that the model computes."""
    for key, allowed in fixed.items():
        if content.get(key, allowed) != allowed:
            raise CheckpointError(f"config.json: {key} is {content[key]!r}; only {allowed!r} is supported")


def sizes(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, int]:
    """Whole numbers from 1 on, all of them given, and none that no model has."""
    for key in keys:
        value = content.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"config.json: {key} is {value!r:.60}; it must be a positive whole number")
        most = MOST_POSITIONS if key == "max_position_embeddings" else MOST_SIZE
        if value > most:
            raise CheckpointError(f"config.json: {key} is {value!r:.60}; it must be at most {most}")
    return {key: content[key] for key in keys}


def numbers(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float]:
    """Numbers above 0, all of them given."""
    return {key: positive(key, content) for key in keys}


def flag(content: Mapping[str, Any], key: str, default: bool | None = None) -> bool:
    """true or false; without a default it must be given."""
    value = content.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be true or false")
    return value


def head_size(content: Mapping[str, Any]) -> int:
    """What each head has of hidden_size; the heads must divide it, and the key-value heads the heads."""
    hidden, heads, kv_heads = (content[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if hidden % heads or heads % kv_heads:
        raise CheckpointError(
            f"config.json: hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads {kv_heads} "
            "must divide one another in this order"
        )
    if content.get("head_dim") not in (None, hidden // heads):
        raise CheckpointError(f"config.json: head_dim is {content['head_dim']}; only hidden_size / heads is supported")
    return int(hidden // heads)


def window(content: Mapping[str, Any]) -> int | None:
    """sliding_window in tokens. As in transformers: a window as long as the longest sequence is no window (Phi-4-mini
    says 262144)."""
    value, longest = content.get("sliding_window"), content["max_position_embeddings"]
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CheckpointError(f"config.json: sliding_window is {value!r}; it must be null or a positive whole number")
    return value if value is not None and value < longest else None
