"""The family in small: checkpoints with random weights and the published factors, windows and head layouts.

variants.json has the published config.json of each model, except for two whose factor lists are Phi-3-mini-128k's, read
at 64 points instead of 48: Phi-3-medium-128k, and Phi-3-small-128k, whose attention factors are made up too. Widths,
layers, heads and the vocabulary are reduced; head_dim, the ratio of heads to key-value heads, the rotary part, every
rope number and every length stay.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export.checkpoint.find import TINY
from export.checkpoint.open import CONFIG_READERS

VARIANTS: Mapping[str, Mapping[str, Any]] = json.loads(Path(__file__).with_name("variants.json").read_text())
KV_HEADS = 2
LAYERS = 2
INNER = 256


def shrink(published: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json like the published one, for a model of a few hundred thousand weights."""
    tiny = json.loads((TINY / "config.json").read_text())
    heads, kv_heads = published["num_attention_heads"], published["num_key_value_heads"]
    heads, kv_heads, head_dim = heads // kv_heads * KV_HEADS, KV_HEADS, published["hidden_size"] // heads
    inner = "ff_intermediate_size" if "ff_intermediate_size" in published else "intermediate_size"
    return dict(published) | {
        "hidden_size": heads * head_dim,
        inner: INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **{key: tiny[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    }


def make_checkpoint(variant: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of this variant. Its weights make logits of the size that a trained model's have."""
    config = shrink(VARIANTS[variant]) | changes
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in CONFIG_READERS[config["model_type"]](config).tensor_shapes().items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            tensors[name] = values * (1.5 / math.sqrt(shape[1]))
        else:
            tensors[name] = values / 4 + (1.0 if name.endswith("norm.weight") else 0.0)
    save_file(tensors, folder / "model.safetensors")
    return folder
