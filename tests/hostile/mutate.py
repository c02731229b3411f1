"""Break a document: one fault at a time, of the text or of the tree."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
DEEP = 100_000
# Values of other types than a field has, and values that are extreme.
TYPES: tuple[Any, ...] = (None, True, "x", [], {}, [1], {"x": 1}, "", ["a", None])
NUMBERS: tuple[Any, ...] = (-1, 0, 2**31, 2**53 + 1, 2**64, 10**30, 1e308, -1e308, 5e-324, 0.5, -0.0)
# The paths outside the folder are the kernel's: they exist, and even root cannot write there.
TEXTS = (
    "", " ", "\n", "\0", "\x1b[2J\x1b]0;title\x07", "\u202eevil", "../../../proc/version", "/proc/version", "a" * 5_000,
    "%s%n", "{{ 7 * 7 }}", "${HOME}", "'; rm -rf ~ #", "\ud800", "\ue000", "💥", "NaN", "con", "a\\b", "C:\\x",
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """A broken document. `breaks` is False where a reader may as well take it."""

    what: str
    data: bytes
    breaks: bool


@dataclass(frozen=True)
class Grammar:
    """What of a document may be changed without harm: `free(path)`; and how its tree is written."""

    free: Callable[[Path], bool] = lambda path: False
    write: Callable[[Any], bytes] = lambda tree: json.dumps(tree).encode()
    strict_keys: bool = True  # an unknown key is refused
    needs_keys: Callable[[Path], bool] = lambda path: True  # a missing key is refused


def mutate(rng: random.Random, document: Any, grammar: Grammar) -> Mutation:
    """One fault."""
    if rng.random() < 0.35:
        return _text_fault(rng, grammar.write(document))
    tree = copy.deepcopy(document)
    path = _walk(rng, tree)
    holder, key = _holder(tree, path), path[-1]
    free = grammar.free(path)
    shown = ".".join(map(str, path))
    choice = rng.random()
    if choice < 0.2 and isinstance(holder, dict):
        del holder[key]
        return Mutation(f"without {shown}", grammar.write(tree), not free and grammar.needs_keys(path))
    if choice < 0.35 and isinstance(holder, dict):
        name = rng.choice(["unknown", *TEXTS[:12]])
        holder[name] = rng.choice(TYPES)
        return Mutation(f"with {name!r:.40} beside {shown}", grammar.write(tree), False)
    old = holder[key]
    new = _other_value(rng, old)
    holder[key] = new
    breaks = not free and _another_type(old, new)
    return Mutation(f"{shown} = {new!r:.60}", grammar.write(tree), breaks)


def _walk(rng: random.Random, tree: Any) -> Path:
    """A place in a tree, but not its root. A large table is not likelier than a single value."""
    path: Path = ()
    while True:
        if isinstance(tree, dict) and tree:
            key: str | int = rng.choice(list(tree))
        elif isinstance(tree, list) and tree:
            key = rng.randrange(len(tree))
        else:
            return path
        path, tree = (*path, key), tree[key]
        if rng.random() < 0.15:
            return path


def _holder(tree: Any, path: Path) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def _other_value(rng: random.Random, old: Any) -> Any:
    choice = rng.random()
    if choice < 0.5:
        return rng.choice([value for value in TYPES if value != old])
    if isinstance(old, str):
        return rng.choice(TEXTS)
    return rng.choice(NUMBERS)


def _another_type(old: Any, new: Any) -> bool:
    """Types so far apart that no reader may take one for the other. null is a value of many fields."""

    def kind(value: Any) -> str:
        if isinstance(value, bool):
            return "bool"
        return "number" if isinstance(value, int | float) else type(value).__name__

    return old is not None and new is not None and kind(old) != kind(new) and kind(old) not in ("list", "tuple")


def _text_fault(rng: random.Random, data: bytes) -> Mutation:
    place = rng.randrange(1, max(2, len(data) - 3))
    digits = [at for at in range(len(data)) if data[at : at + 1].isdigit() and not data[at - 1 : at].isalnum()]
    number = rng.choice(digits) if digits else place
    end = number
    while data[end : end + 1].isdigit():
        end += 1
    faults: dict[str, bytes] = {
        f"cut at {place}": data[:place],
        "empty": b"",
        "null": b"null",
        "a number": b"7",
        "trailing text": data + b"\n]x",
        "not UTF-8": data[:place] + b"\xff\xfe" + data[place:],
        "a NUL": data[:place] + b"\0" + data[place:],
        "UTF-16": data.decode("utf-8", "replace").encode("utf-16"),
        "deep lists": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP,
    }
    if digits and data.lstrip()[:1] == b"{":
        for name, value in (("NaN", b"NaN"), ("Infinity", b"-Infinity"), ("400 digits", b"9" * 400)):
            faults[f"{name} at {number}"] = data[:number] + value + data[end:]
    what = rng.choice(list(faults))
    # Inside of a string a cut, a NUL, a NaN or a number may be text.
    return Mutation(what, faults[what], not what.startswith(("NaN", "Infinity", "400", "a NUL")))
