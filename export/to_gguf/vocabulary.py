"""The tokenizer as llama.cpp has it: tokenizer.json -> tokens with their kinds, and scores or merges.

llama.cpp knows ways of splitting text by name, not by pattern. A tokenizer that splits in a way without a name has no
vocabulary here: llama.cpp would make other tokens of the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.checkpoint.open import Checkpoint

# llama.cpp's kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # how SentencePiece spells it
# Special tokens behind which llama.cpp keeps white space in a Phi-3, while it drops it behind all others. It does not
# load one that lacks any of these, or `</s>`.
KEEPS_SPACE = frozenset(("<unk>", "<s>", "<|endoftext|>"))
PHI3_TOKENS = KEEPS_SPACE | {"</s>"}

# Patterns by which tokenizers split text, as their tokenizer.json has them.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (steps before the bytes, whether a word that is a token stays one) -> llama.cpp's name. None: either.
SPLITTINGS: Mapping[tuple[tuple[str, ...], bool | None], str] = {
    (("bytes by GPT-2's pattern",), None): "gpt-2",
    (("single digits", "bytes by GPT-2's pattern"), None): "smollm",
    ((CL100K, "bytes"), True): "llama-bpe",
    ((CL100K, "bytes"), False): "dbrx",
    ((O200K, "bytes"), None): "gpt-4o",
}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """All that llama.cpp needs to make tokens of text. `scores` are SentencePiece's, `merges` those of bytes."""

    kind: str  # "llama" for SentencePiece, "gpt2" for byte-level BPE
    splitting: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    space_prefix: bool
    begins_with_bos: bool
    unknown: int | None
    drops_space: bool  # whether white space behind a special token is dropped
    can_drop_space: bool  # whether llama.cpp can do that with these tokens


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """The checkpoint's; None where llama.cpp has no such tokenizer."""
    content = json.loads(checkpoint.tokenizer)
    model = content["model"]
    if model.get("type") != "BPE":
        return None
    pieces = model.get("byte_fallback") is True
    prefix = prefix_of(content) if pieces else False
    splitting = "default" if pieces else splitting_of(content)
    if prefix is None or splitting is None:
        return None
    ids = checkpoint.load_tokenizer().encode("a", add_special_tokens=True)
    added = [token for token in content.get("added_tokens") or () if isinstance(token, dict)]
    size = checkpoint.config.vocab_size
    unknown = model.get("unk_token")
    tokens, types = listed(model["vocab"], added, size, unknown=unknown, pieces=pieces)
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model.get("merges") or ()]
    return Vocabulary(
        kind="llama" if pieces else "gpt2",
        splitting=splitting,
        tokens=tokens,
        types=types,
        scores=scores_of(tokens, pairs) if pieces else (),
        merges=() if pieces else [" ".join(pair) for pair in pairs],
        space_prefix=prefix,
        begins_with_bos=bool(ids) and ids[0] == checkpoint.tokens.bos,
        unknown=model["vocab"].get(unknown) if unknown else None,
        drops_space=drops_space(added),
        can_drop_space=PHI3_TOKENS.issubset(tokens),
    )


def listed(
    vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int, *, unknown: str | None, pieces: bool
) -> tuple[list[str], list[int]]:
    """The tokens by their ids, and llama.cpp's kinds for them. An id without a token gets a text of its own."""
    tokens = [f"[PAD{id}]" for id in range(size)]
    types = [UNUSED] * size
    for text, id in vocab.items():
        tokens[id] = text
        types[id] = BYTE if pieces and is_byte(text) else NORMAL
    for token in added:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if pieces and unknown in vocab:
        types[vocab[str(unknown)]] = UNKNOWN
    return tokens, types


def is_byte(text: str) -> bool:
    """Whether it is SentencePiece's name of a byte, such as <0x0A>."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def scores_of(tokens: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[float]:
    """llama.cpp joins the two pieces whose token has the highest score: the token that tokenizer.json merges first."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    last = len(pairs)
    return [-float(ranks.get(token, last)) for token in tokens]


def prefix_of(content: Mapping[str, Any]) -> bool | None:
    """Whether SentencePiece puts a space before the text; None where the text is changed in another way."""
    normalizer, splitter = content.get("normalizer"), content.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    kinds = [(step.get("type"), step.get("prepend"), step.get("pattern"), step.get("content")) for step in steps]
    replace = ("Replace", None, {"String": " "}, SPACE)
    if splitter is None and kinds == [("Prepend", SPACE, None, None), replace]:
        return True
    if splitter is None and kinds == [replace]:
        return False
    if not steps and splitter and splitter.get("type") == "Metaspace" and not splitter.get("split"):
        return {"always": True, "never": False}.get(splitter.get("prepend_scheme"))
    return None


def splitting_of(content: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer splits text; None where it has none."""
    splitter = content.get("pre_tokenizer") or {}
    if content.get("normalizer") is not None:
        return None
    steps = tuple(step_name(step) for step in splitter.get("pretokenizers", [splitter]))
    stays = content["model"].get("ignore_merges") is True
    return SPLITTINGS.get((steps, stays), SPLITTINGS.get((steps, None)))


def step_name(step: Mapping[str, Any]) -> str:
    """A step of a pre-tokenizer in words, or its pattern; empty for one that no splitting with a name has."""
    match step.get("type"):
        case "ByteLevel" if not step.get("add_prefix_space"):
            return "bytes by GPT-2's pattern" if step.get("use_regex", True) else "bytes"
        case "Digits" if step.get("individual_digits"):
            return "single digits"
        case "Split" if step.get("behavior") == "Isolated" and not step.get("invert"):
            return str(step.get("pattern", {}).get("Regex", ""))
    return ""


def drops_space(added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether white space behind the tokens that mark a turn is dropped."""
    marks = [token for token in added if token.get("special") and token["content"] not in KEEPS_SPACE]
    return bool(marks) and all(token.get("rstrip") for token in marks)
