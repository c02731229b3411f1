"""Values of a line from an agent, checked: nothing that a device writes is believed. Each raises FieldError."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from export.strict import build
from runtimes.agent.fields import is_integer, is_number

MOST_SECONDS = 1e9
LEAST_LOGPROB, MOST_LOGPROB = -1e30, 1e-3  # rounding may give a little more than 0
MOST_MESSAGE = 2000  # characters of a message that are shown
T = TypeVar("T")


class FieldError(ValueError):
    """A field of a line has a value that it cannot have."""


def pick(kind: type[T], content: object) -> T:
    """A dataclass from the keys that it knows, strictly; other keys are skipped."""
    if not isinstance(content, Mapping):
        raise FieldError(f"{show(content)} is no object")
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return build(kind, {key: value for key, value in content.items() if key in names}, kind.__name__, FieldError)


def pick_counts(kind: type[T], content: object) -> T:
    """As `pick`, of a record whose fields are all counts, or None."""
    record = pick(kind, content)
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        optional(count, getattr(record, field.name))
    return record


def optional(check: Callable[[Any], T], value: Any) -> T | None:
    """None, or a value that `check` accepts."""
    return None if value is None else check(value)


def count(value: Any) -> int:
    """A whole number from 0 on: an id, a number of tokens or bytes."""
    if not is_integer(value) or not 0 <= value < 1 << 63:
        raise FieldError(f"{show(value)} is no count")
    return value


def seconds(value: Any) -> float:
    """A finite time from 0 on."""
    if not is_number(value) or not 0 <= value < MOST_SECONDS:
        raise FieldError(f"{show(value)} is no number of seconds from 0 on")
    return float(value)


def logprob(value: Any) -> float:
    """A log-probability."""
    if not is_number(value) or not LEAST_LOGPROB <= value <= MOST_LOGPROB:
        raise FieldError(f"{show(value)} is no log-probability")
    return float(value)


def one_line(value: object) -> str:
    """A text as one line of limited length."""
    if not isinstance(value, str):
        raise FieldError(f"{show(value)} is no text")
    line = " ".join(value[: 2 * MOST_MESSAGE].split())
    return line if len(line) <= MOST_MESSAGE else line[:MOST_MESSAGE] + "…"


def show(value: object) -> str:
    """The beginning of a value, for a message."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer with more digits than Python turns into text
        return "an enormous number"
