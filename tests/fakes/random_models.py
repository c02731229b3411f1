"""What small random models of tests have in common: their sizes, and the tiny model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TINY = Path(__file__).parents[2] / "export" / "tiny"
SIZES: dict[str, Any] = {
    "vocab_size": json.loads((TINY / "config.json").read_text())["vocab_size"],
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def copy_tokenizer(folder: Path) -> None:
    """The tokenizer of the tiny model, whose vocabulary they have."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
