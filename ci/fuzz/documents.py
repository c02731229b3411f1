"""Mutations that keep a document's form: half of a fuzzer's inputs are still JSON or TOML, so that they reach what is
behind the parser."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from typing import Any, Protocol

from hostile.mutate import Grammar, mutate
from hostile.results import as_toml

Mutate = Callable[[bytes, int], bytes]  # libFuzzer's own: the bytes, and how many they may become


class Form(Protocol):
    """One fault more in the bytes, of at most `most` bytes."""

    def __call__(self, data: bytes, most: int, rng: random.Random, plain: Mutate) -> bytes: ...


def as_bytes(data: bytes, most: int, rng: random.Random, plain: Mutate) -> bytes:
    """Bytes of no form that we know."""
    return plain(data, most)


def as_json_text(data: bytes, most: int, rng: random.Random, plain: Mutate) -> bytes:
    """A JSON text."""
    return _document(data, most, rng, plain, json.loads, Grammar())


def as_json_lines(data: bytes, most: int, rng: random.Random, plain: Mutate) -> bytes:
    """One JSON text a line: one of the lines is changed, doubled, moved or removed."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    choice = rng.random()
    if choice < 0.1:
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif choice < 0.2:
        lines.insert(rng.randrange(len(lines)), lines.pop(place))
    elif choice < 0.25:
        del lines[place]
    else:
        lines[place] = as_json_text(lines[place], most, rng, plain)
    return b"\n".join(lines)[:most]


def as_toml_text(data: bytes, most: int, rng: random.Random, plain: Mutate) -> bytes:
    """A TOML text."""

    def parse(data: bytes) -> Any:
        return tomllib.loads(data.decode())

    return _document(data, most, rng, plain, parse, Grammar(write=as_toml))


def _document(
    data: bytes, most: int, rng: random.Random, plain: Mutate, parse: Callable[[bytes], Any], grammar: Grammar
) -> bytes:
    if rng.random() < 0.5:
        return plain(data, most)
    try:
        document = parse(data)
    except (ValueError, RecursionError):
        return plain(data, most)
    if not isinstance(document, dict | list) or not document:
        return plain(data, most)
    changed = mutate(rng, document, grammar).data
    return changed if len(changed) <= most else plain(data, most)
