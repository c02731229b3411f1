"""The keys of the agent protocol's `generate` and `score` lines: their types, what is allowed, their defaults.

The ranges of numbers depend on the model, and are check_request's (runtimes/loop/tokens.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args

from runtimes.loop.tokens import GrammarKind

GRAMMARS: tuple[GrammarKind, ...] = get_args(GrammarKind)
REQUIRED = object()  # the default of a key without one
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Field:
    """One key. `fits` says whether a value has its type, `allowed` is that type for people."""

    fits: Callable[[Any], bool]
    allowed: str
    default: Any = None


def is_integer(value: object) -> TypeGuard[int]:
    """An integer, not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A number that a float can be; it may be infinite."""
    # An integer of thousands of digits is JSON too, and no float.
    return isinstance(value, float) or (is_integer(value) and abs(value) < 1 << 64)


def _is_word(value: Any) -> bool:
    return is_integer(value) and -(1 << 63) <= value < 1 << 64


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(is_integer(item) for item in value)


def _is_id_lists(value: Any) -> bool:
    return isinstance(value, list) and all(_is_ids(item) for item in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_grammar(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"kind", "text"}
        and value["kind"] in GRAMMARS
        and isinstance(value["text"], str)
    )


GENERATE_FIELDS: dict[str, Field] = {
    "ids": Field(_is_ids, "a list of integers", REQUIRED),
    "max_new_tokens": Field(_is_word, "an integer of at most 64 bits", REQUIRED),
    "stop_ids": Field(_is_ids, "a list of integers", ()),
    "temperature": Field(is_number, "a number", 0.0),
    "top_k": Field(_is_word, "an integer of at most 64 bits"),
    "top_p": Field(is_number, "a number"),
    "min_p": Field(is_number, "a number"),
    "repetition_penalty": Field(is_number, "a number", 1.0),
    "presence_penalty": Field(is_number, "a number", 0.0),
    "frequency_penalty": Field(is_number, "a number", 0.0),
    "seed": Field(is_integer, "an integer", 0),
    "grammar": Field(_is_grammar, f"an object with kind ({', '.join(GRAMMARS)}) and text"),
    "logprobs": Field(_is_word, "an integer of at most 64 bits"),
    "deadline_s": Field(is_number, "a number of seconds"),
    "adapter": Field(_is_name, "1 to 64 characters of A-Z a-z 0-9 . _ -"),
    "session": Field(_is_name, "1 to 64 characters of A-Z a-z 0-9 . _ -"),
    "speculate": Field(lambda value: isinstance(value, bool), "true or false", False),
    "hold": Field(lambda value: isinstance(value, bool), "true or false", False),
}
SCORE_FIELDS: dict[str, Field] = {
    "ids": Field(_is_ids, "a list of integers", REQUIRED),
    "first": Field(is_integer, "an integer", REQUIRED),
    "wanted": Field(_is_id_lists, "a list of lists of integers", REQUIRED),
}
