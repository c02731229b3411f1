"""Phi-3-small's tokenizer: the published rank file (cl100k_base.tiktoken) -> tokenizer.json.

The checkpoint has byte strings by rank and, in code, the names of its control tokens; every runtime of ours, and stock
onnxruntime-genai and ExecuTorch, read tokenizer.json. Ids and splits are the same.

transformers' TikTokenConverter makes an equivalent file, but not the same bytes (it adds a post-processor), it needs
tiktoken at run time, and tiktoken keeps what it read in a temporary folder by the file's path: a rank file that was
replaced would be read as it was before.
Source: tokenization_phi3_small.py of microsoft/Phi-3-small-8k-instruct, for the table below.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from export.checkpoint.files import read_object
from export.errors import CheckpointError

RANKS = "cl100k_base.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
ENDOFTEXT = "<|endoftext|>"
_NAMED = {
    ENDOFTEXT: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|system|>": 100261,
    "<|user|>": 100262,
    "<|assistant|>": 100263,
    "<|end|>": 100266,
    "<|endofprompt|>": 100276,
}
# The places between them, and those up to the padded vocabulary's end, are dummies, numbered in this order.
_DUMMIES = (100264, 100265, 100256, *range(100267, 100276), *range(100277, 100352))
CONTROL = {id: name for name, id in _NAMED.items()} | {
    id: f"<|dummy_id_{number}|>" for number, id in enumerate(_DUMMIES)
}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Each token's bytes -> its id. Raises CheckpointError where the file is not such a table."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"{path}: line {number} is not a token and its rank; download it again") from error
    missing = sum(bytes([value]) not in ranks for value in range(256))
    if missing or sorted(ranks.values()) != list(range(min(CONTROL))):
        raise CheckpointError(
            f"{path}: has {len(ranks)} tokens; it must have ids 0 to {min(CONTROL) - 1}, every byte among them"
        )
    return ranks


def tokenizer_json(path: Path) -> str:
    """The rank file's tokenizer.json: byte-level BPE whose merges are every pair that makes a known token."""
    ranks = read_ranks(path)
    names = _byte_names()
    spelt = {token: "".join(names[byte] for byte in token) for token in ranks}
    merges: list[list[str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[spelt[left], spelt[right]] for left, right in known]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_control(id, name) for id, name in sorted(CONTROL.items())],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # As tiktoken: a word that is a token is that token, whichever way its bytes would be merged.
            "ignore_merges": True,
            "vocab": {spelt[token]: id for token, id in ranks.items()},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False)


def tokenizer_config(published: Path) -> str:
    """tokenizer_config.json beside it: the published one, chat template and all, but for the class, remote code."""
    content: dict[str, Any] = {"bos_token": ENDOFTEXT, "eos_token": ENDOFTEXT}
    if published.is_file():
        content |= read_object(published)
    content.pop("auto_map", None)
    return json.dumps(content | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2, ensure_ascii=False) + "\n"


def _control(id: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": name, **flags}


def _byte_names() -> list[str]:
    """Each byte's character in a byte-level tokenizer.json: printable Latin-1 itself, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
