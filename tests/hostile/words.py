"""Hostile words: command lines, and values in the place of a request's fields."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from hostile import artifacts, results
from hostile.mutate import NUMBERS, TEXTS, TYPES
from hostile.trial import Trial
from phi_edge.main import VERBS, main
from runtimes.api import GenerateRequest, Message

# Verbs that would work for minutes, reach a network or start a server; the others get odd words.
LONG = {"demo", "serve"}
ODD = (
    *TEXTS,
    "-",
    "--",
    "0",
    "-1",
    "1e400",
    "nan",
    "inf",
    "9" * 400,
    "1_0",
    "0x10",
    "٣",
    "/dev/null/x",
    "/proc/self/x",
)


def sound(folder: Path) -> Sequence[str]:
    """A command line that works."""
    artifacts.sound(folder)
    results.sound(folder)
    return ["check", "a"]


def command_line(rng: random.Random) -> Trial:
    """A verb with odd values for its arguments and options."""
    verb = rng.choice([verb for verb in VERBS if verb not in LONG])
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    words = [verb, *(_word(rng, each.name or "") for each in command.params if isinstance(each, click.Argument))]
    options = [each for each in command.params if isinstance(each, click.Option) and each.name != "against"]
    for option in rng.sample(options, min(len(options), rng.randrange(1, 4))):
        words += [rng.choice(option.opts)] if option.is_flag else [option.opts[0], _word(rng, option.name or "")]

    def make(folder: Path) -> Sequence[str]:
        sound(folder)
        return words

    # An odd name may be a file's.
    return Trial(" ".join(map(ascii, words))[:200], make, breaks=False, may_write=ODD)


def _word(rng: random.Random, name: str) -> str:
    """A sound value for an argument, or an odd one."""
    known = {"artifact": "a", "checkpoint": "a", "files": "m.json", "out": "new", "prompt": "Hello", "device": "local"}
    if name in known and rng.random() < 0.6:
        return known[name]
    return rng.choice(ODD).encode("utf-8", "replace").decode()


def requests(rng: random.Random) -> Iterator[tuple[str, GenerateRequest]]:
    """Requests with one field that is none."""
    fields = [field.name for field in dataclasses.fields(GenerateRequest)]
    messages: tuple[Any, ...] = (
        [], [None], ["x"], [{}], [{"role": "user"}], [{"role": 5, "content": "x"}], [Message("user", None)],  # type: ignore[arg-type]
        [Message("user", "\ud800")], [Message("devil", "x")], [Message("user", "\ue0001\ue001")], "user: x", 7,  # type: ignore[arg-type]
    )  # fmt: skip
    ids: tuple[Any, ...] = ([], [1.5], [True], [-1], [10**9], b"\x01", "1", [None], [[1]], {1: 2}, [2**64])
    while True:
        name = rng.choice(fields)
        value = rng.choice((*TYPES, *NUMBERS, *TEXTS))
        sound_field = {} if name in ("prompt", "messages", "token_ids") else {"prompt": "Hello"}
        if name == "messages":
            value = rng.choice((*messages, *TYPES))
        elif name in ("token_ids", "stop_ids"):
            value = rng.choice((*ids, *TYPES))
        yield f"{name} = {value!r:.80}", GenerateRequest(**{**sound_field, "max_new_tokens": 3, name: value})
