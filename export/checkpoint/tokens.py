"""The ids that mean something to a runtime: where a text begins, and everything that ends an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.artifact import Tokens
from export.checkpoint.chat import Chat
from export.errors import CheckpointError

# Texts that end an answer in Phi-3's chat format, whatever config.json's eos says.
STOP_TEXTS = ("<|end|>", "<|endoftext|>", "<|assistant|>")


def read_tokens(
    folder: Path,
    tokenizer: Mapping[str, Any],
    chat: Chat,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    vocab_size: int,
) -> tuple[Tokens, list[str]]:
    """-> the tokens, and notes. The contents are those of tokenizer.json, config.json and generation_config.json.

    Raises CheckpointError.
    """
    ids, largest_id = token_ids(tokenizer, folder)
    ends, notes = turn_end(chat, ids)
    stop: list[int] = []
    for eos in (
        config.get("eos_token_id"),
        generation.get("eos_token_id"),
        *(ids.get(text) for text in STOP_TEXTS),
        ids.get(chat.names.get("eos_token", "")),
        ends,
    ):
        stop += [i for i in (eos if isinstance(eos, list) else [eos]) if i is not None and i not in stop]
    bos, pad = config.get("bos_token_id"), config.get("pad_token_id")
    named: dict[str, list[Any]] = {"eos_token_id": stop, "bos_token_id": [bos], "pad_token_id": [pad]}
    for key, values in named.items():
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise CheckpointError(f"{folder}: {key} is {value!r}; it must be a token id, a whole number from 0 on")
    if not stop:
        raise CheckpointError(f"{folder}: no token ends an answer; give config.json an eos_token_id")
    largest = max([largest_id, *stop, *(id for id in (bos, pad) if id is not None)])
    if largest >= vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has id {largest}, but config.json's vocab_size is {vocab_size}")
    return Tokens(bos=bos, pad=pad, stop=stop), notes


def turn_end(chat: Chat, ids: Mapping[str, int]) -> tuple[int | None, list[str]]:
    """The id that the chat template writes behind an answer, or a note that there is none."""
    if chat.source is None:
        return None, []
    rest = chat.after_answer()
    if rest is None:
        return None, [
            "the chat template has no text for an answer, so that what ends one is known from the config alone"
        ]
    # Of names that begin at one place the longest is the token.
    names = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True) if name)
    if names and (match := re.search(names, rest)):
        return ids[match.group()], []
    return None, ["the chat template writes no token behind an answer: what ends one is known from the config alone"]


def looks_ahead(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json splits text by a pattern with a look-ahead or look-behind, which RE2 does not have."""
    splitter = tokenizer.get("pre_tokenizer")
    steps = splitter.get("pretokenizers", [splitter]) if isinstance(splitter, dict) else []
    patterns = [step.get("pattern") for step in steps if isinstance(step, dict)]
    return any(
        mark in str(pattern.get("Regex", ""))
        for pattern in patterns
        if isinstance(pattern, dict)
        for mark in ("(?=", "(?!", "(?<")
    )


def token_ids(tokenizer: Mapping[str, Any], folder: Path) -> tuple[dict[str, int], int]:
    """The added tokens' ids by their text, and the largest id of all."""
    try:
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
        vocab = tokenizer["model"]["vocab"]
        ids = [*added.values(), *(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
        if any(isinstance(id, bool) or not isinstance(id, int) or id < 0 for id in ids):
            raise ValueError("an id that is no whole number from 0 on")
        if not all(isinstance(name, str) for name in added):
            raise ValueError("an added token whose content is no text")
        return added, max(ids)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: tokenizer.json has no vocabulary of ids as the tokenizers library writes it "
            f"({type(error).__name__}: {error}); save the tokenizer again in its fast form"
        ) from error
