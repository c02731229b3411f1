"""adapter_config.json of PEFT, read strictly: what decides how the adapter's matrices are added to the base's.

The file is not trusted: its numbers are bounded, and of its patterns only those are tried that cannot take long. Which
modules an adapter changes is read from its tensors, not from target_modules.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from export.errors import AdapterError
from export.strict import read_json

T = TypeVar("T", int, float)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MERGE_IN_PEFT = "merge it in PEFT (merge_and_unload), save model and tokenizer, and export that folder"

# Keys that are used here.
KNOWN = frozenset(
    (
        *("alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying", "lora_alpha", "lora_bias"),
        *("peft_type", "r", "rank_pattern", "trainable_token_indices", "use_dora", "use_rslora"),
        *("fan_in_fan_out", "init_lora_weights"),
    )
)
# Keys that say which modules are changed, which the tensors say too, or that only training uses.
INERT = frozenset(
    (
        *("auto_mapping", "corda_config", "eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
        "velora_config",
    )
)
# Values of a key that change nothing.
OFF: tuple[object, ...] = (None, False, [], {})
# init_lora_weights: these begin from the base's own weights, or leave them as they are; others change the base first.
INITIAL = ("gaussian", "eva", "orthogonal", "mica")
MOST_RANK = 1 << 13
MOST_SCALE = 1e6
MOST_PATTERNS = 10_000
MATCHING_S = 10.0  # for all patterns of an adapter, with all names of a model

# A pattern that is matched in no more steps than the square of a name's length: no repeated group, at most two
# repetitions, no look-around.
PATTERN = re.compile(r"(?:[\w.^$|()\[\]-]|\\[.dw]|(?<!\))[*+](?!\+)\??|\(\?:){1,300}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """An adapter's numbers. The patterns go from a module's name, or the end of one, to its own rank or alpha."""

    base: str | None  # base_model_name_or_path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool  # rsLoRA
    dora: bool
    tied: bool  # what changes the embedding changes a tied head
    token_ids: Mapping[str, tuple[int, ...]]  # the end of a module's name -> the ids whose rows were trained


def read_config(folder: Path) -> LoraConfig:
    """An adapter folder's config. Raises AdapterError with the key, the value seen and those allowed."""
    path = folder / CONFIG
    content = read_json(path, AdapterError, "download the adapter again")
    if not isinstance(content, dict) or "peft_type" not in content:
        raise AdapterError(f"{path}: is not PEFT's (it has no peft_type); save the adapter with PEFT's save_pretrained")
    where = str(path)
    if content["peft_type"] != "LORA":
        raise AdapterError(f"{where}: peft_type is {content['peft_type']!r:.40}; only LORA can be merged in the stream")
    refuse_unknown(where, content)
    refuse_other(where, content)
    base = content.get("base_model_name_or_path")
    return LoraConfig(
        base=base if isinstance(base, str) and base else None,
        rank=_rank(where, "r", content.get("r", 8)),
        alpha=_alpha(where, "lora_alpha", content.get("lora_alpha", 8)),
        rank_pattern={
            key: _rank(where, f"rank_pattern: {key}", rank) for key, rank in _patterns(where, content, "rank")
        },
        alpha_pattern={
            key: _alpha(where, f"alpha_pattern: {key}", alpha) for key, alpha in _patterns(where, content, "alpha")
        },
        rank_stabilised=_flag(where, content, "use_rslora"),
        dora=_flag(where, content, "use_dora"),
        tied=_flag(where, content, "ensure_weight_tying"),
        token_ids=_token_ids(where, content.get("trainable_token_indices")),
    )


def refuse_unknown(where: str, content: Mapping[str, Any]) -> None:
    """A key that is not known might change the computation, unless it is off."""
    for key, value in content.items():
        if key not in KNOWN and key not in INERT and value not in OFF:
            raise AdapterError(
                f"{where}: {key!r:.60} is {json.dumps(value):.60}, which cannot be merged in the stream; remove the "
                f"key if it changes nothing, or {MERGE_IN_PEFT}"
            )


def refuse_other(where: str, content: Mapping[str, Any]) -> None:
    """Known keys with values that are not computed here."""
    if content.get("fan_in_fan_out"):
        raise AdapterError(
            f"{where}: fan_in_fan_out is for weights of GPT-2's kind, which no Phi-3 has; give its own base"
        )
    initial = content.get("init_lora_weights", True)
    if not isinstance(initial, bool | None) and initial not in INITIAL:
        raise AdapterError(
            f"{where}: init_lora_weights is {initial!r:.40}, which changed the base before the training; save the "
            "adapter with path_initial_model_for_weight_conversion (see PEFT's save_pretrained)"
        )
    if content.get("bias", "none") not in ("none", "all", "lora_only"):
        raise AdapterError(f"{where}: bias is {content['bias']!r:.40}; allowed: 'none', 'all', 'lora_only'")


class Ranks:
    """Rank and scale of each module by a config, whose patterns are tried for a limited time."""

    def __init__(self, config: LoraConfig, where: str) -> None:
        self.config, self.where = config, where
        self.until_s = time.monotonic() + MATCHING_S

    def rank(self, module: str) -> int:
        """As the config says; the tensors must have it too."""
        return self.matching(self.config.rank_pattern, module, self.config.rank)

    def scale(self, module: str) -> float:
        """What B @ A is multiplied with."""
        rank = self.rank(module)
        alpha = self.matching(self.config.alpha_pattern, module, self.config.alpha)
        return alpha / (math.sqrt(rank) if self.config.rank_stabilised else rank)

    def matching(self, patterns: Mapping[str, T], module: str, default: T) -> T:
        """The value of the first pattern that matches a module's name, as PEFT's get_pattern_key finds it."""
        for pattern, value in patterns.items():
            if time.monotonic() > self.until_s:
                raise AdapterError(
                    f"{self.where}: its rank_pattern and alpha_pattern take too long; name modules there"
                )
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default


def _rank(where: str, key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_RANK:
        raise AdapterError(f"{where}: {key:.80} is {value!r:.40}; allowed: a whole number from 1 to {MOST_RANK}")
    return value


def _alpha(where: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_SCALE:
        raise AdapterError(f"{where}: {key:.80} is {value!r:.40}; allowed: a number up to {MOST_SCALE:.0f}")
    return float(value)


def _flag(where: str, content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key) or False
    if not isinstance(value, bool):
        raise AdapterError(f"{where}: {key} is {value!r:.40}; it must be true or false")
    return value


def _patterns(where: str, content: Mapping[str, Any], kind: str) -> list[tuple[str, object]]:
    patterns = content.get(f"{kind}_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
        raise AdapterError(f"{where}: {kind}_pattern must be an object of at most {MOST_PATTERNS} modules")
    for pattern in patterns:
        if not PATTERN.fullmatch(pattern) or len(re.findall(r"[*+]", pattern)) > 2:
            raise AdapterError(
                f"{where}: {kind}_pattern has {pattern!r:.60}, which is not tried; name the modules there"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterError(f"{where}: {kind}_pattern has {pattern!r:.60}, which is no pattern ({error})") from error
    return list(patterns.items())


def _token_ids(where: str, value: object) -> dict[str, tuple[int, ...]]:
    by_module = {"embed_tokens": value} if isinstance(value, list) else value or {}
    if not isinstance(by_module, dict):
        raise AdapterError(
            f"{where}: trainable_token_indices is {value!r:.40}; allowed: a list of ids, or one a module"
        )
    for ids in by_module.values():
        if not isinstance(ids, list) or not all(type(id) is int and id >= 0 for id in ids):
            raise AdapterError(f"{where}: trainable_token_indices has {ids!r:.40}; allowed: lists of token ids")
    return {module: tuple(ids) for module, ids in by_module.items()}
