"""Hostile devices: lab files, and agents that speak the protocol wrongly. Nothing is reached but this machine."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes.agent import fake_agent
from fakes.talk import Talk
from hostile import artifacts
from hostile.mutate import TEXTS, Grammar, mutate
from hostile.results import as_toml
from hostile.trial import Trial

LAB: dict[str, Any] = {
    "device": {
        "pi5": {"transport": "ssh", "host": "pi5", "port": 22, "threads": 4, "description": "on my desk"},
        "phone": {"transport": "adb", "serial": "x", "program": "agent", "libraries": ["a.so"], "prefix": ["taskset"]},
        "here": {"transport": "local", "agent": ["agent"]},
    }
}
UNKNOWN = ["doctor", "no-such-device", "--lab", "lab.toml"]  # opens nothing: the lab is read, and the name is not in it


def lab(rng: random.Random) -> Trial:
    """A lab file with one fault."""
    grammar = Grammar(write=as_toml, needs_keys=lambda path: path[-1] in ("host",))
    mutation = mutate(rng, LAB, grammar)
    breaks = mutation.breaks and not mutation.what.startswith(("cut", "empty"))
    return Trial(
        f"lab {mutation.what}",
        lambda folder: with_lab(folder, mutation.data),
        breaks,
        not_about="unknown device 'no-such-device'",
    )


def sound_lab() -> bytes:
    """A lab file that is read."""
    return as_toml(LAB)


def with_lab(folder: Path, data: bytes) -> Sequence[str]:
    """A lab file of these bytes."""
    (folder / "lab.toml").write_bytes(data)
    return UNKNOWN


# The agent says its first line, waits for the request, and says the rest. It ends when its input does.
SCRIPT = "head -n 1 {0}; IFS= read -r line; tail -n +2 {0}; cat >/dev/null"
RUN = [
    "run",
    "a",
    "Hello",
    "--raw",
    "--max-new-tokens",
    "3",
    "--device",
    "evil",
    "--lab",
    "lab.toml",
    "--deadline",
    "5",
]


@functools.cache
def conversation() -> list[dict[str, Any]]:
    """What the fake agent really says to one request: ready, three tokens, done."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts.sound(Path(folder))
        talk = Talk([*fake_agent(), str(Path(folder) / "a")])
        lines = talk.until("ready", None)
        talk.send("generate", 1, ids=[1, 2, 3, 4, 5], max_new_tokens=3, stop_ids=[])
        lines += talk.answer(1)
        talk.end()
    return lines


def _lines(lines: Sequence[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(line).encode() + b"\n" for line in lines]


def sound_lines() -> bytes:
    """All that a sound agent says in that conversation."""
    return b"".join(_lines(conversation()))


def _lay_out(folder: Path, said: bytes) -> Sequence[str]:
    artifacts.sound(folder)
    (folder / "said").write_bytes(said)
    agent = ["sh", "-c", SCRIPT.format(folder / "said"), "agent"]
    (folder / "lab.toml").write_bytes(as_toml({"device": {"evil": {"transport": "local", "agent": agent}}}))
    return RUN


def sound_agent(folder: Path) -> Sequence[str]:
    """An agent that answers as it should."""
    return _lay_out(folder, sound_lines())


def agent(rng: random.Random) -> Trial:
    """An agent one of whose lines is wrong, missing, doubled or out of order."""
    lines = conversation()
    optional = {
        "pid",
        "artifact",
        "format",
        "threads",
        "capabilities",
        "versions",
        "memory",
        "load_s",
        "open_s",
        "error",
    }
    typed = {"protocol", "context_tokens", "vocab_size", "id", "at_s", "finish", "usage"}
    grammar = Grammar(
        free=lambda path: path[0] not in typed or path[0] in optional,
        needs_keys=lambda path: path[0] in ("protocol", "context_tokens", "vocab_size", "id", "finish", "usage"),
    )
    place = rng.randrange(len(lines))
    mutation = mutate(rng, lines[place], grammar)
    said = _lines(lines)
    what, breaks = f"line {place} {mutation.what}", mutation.breaks
    said[place] = mutation.data.replace(b"\n", b" ") + b"\n"
    choice = rng.random()
    if choice < 0.1:
        what, breaks = "a line twice", False
        said = [*_lines(lines)[: place + 1], *_lines(lines)[place:]]
    elif choice < 0.15:
        what, breaks = "no end", True
        said = [*_lines(lines)[:-1], *_lines(lines)[1:-1] * 50]
    elif choice < 0.2:
        what, breaks = "noise before", True
        said = [rng.randbytes(300).replace(b"\n", b""), b"\n", *_lines(lines)]
    elif choice < 0.25:
        event = {"event": "error", "request": 1, "code": "engine", "message": rng.choice(TEXTS), "fatal": True}
        what, breaks = "an error", True
        said = [*_lines(lines)[:2], *_lines([event])]

    def make(folder: Path) -> Sequence[str]:
        return _lay_out(folder, b"".join(said))

    return Trial(f"agent: {what}", make, breaks)


def request_lines(rng: random.Random, count: int) -> list[bytes]:
    """Lines to the Python agent, none of which is a request that can be served."""
    base = {"do": "generate", "request": 7, "ids": [1, 2, 3], "max_new_tokens": 2, "temperature": 0.5, "seed": 3}
    lines: list[bytes] = []
    while len(lines) < count:
        mutation = mutate(rng, base, Grammar(needs_keys=lambda path: path[0] in ("do", "request", "ids")))
        if mutation.breaks and b"\n" not in mutation.data and mutation.data.strip():
            lines.append(mutation.data)
    return lines


def answers_to(lines: Sequence[bytes], folder: Path) -> list[dict[str, Any]]:
    """The error lines of one agent for these, before it answers a ping: it must survive them all."""
    artifacts.sound(folder)
    talk = Talk([*fake_agent(), str(folder / "a")])
    talk.until("ready", None)
    for line in lines:
        talk.raw(line)
    talk.send("ping", 99)
    answers = talk.until("pong", 99)[:-1]
    assert talk.end() == 0
    return answers
