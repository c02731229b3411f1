"""The agent protocol as values (docs/agent-protocol.md): the lines to an agent, checked. No pipe is touched here.

A Command is built by `encode`, `encode_generate` and `encode_score`, and read by `decode_command`. What comes back is
in events.py. A request's `number` is the key "request" of the line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from export.strict import parse_json
from runtimes.agent.checks import show
from runtimes.agent.fields import GENERATE_FIELDS, REQUIRED, SCORE_FIELDS, is_integer
from runtimes.agent.generating import generate_fields, read_generate
from runtimes.agent.scoring import ScoreRequest, score_fields
from runtimes.loop.tokens import TokenRequest

PROTOCOL = 1
MAX_LINE_BYTES = 4 << 20
HIGHEST_NUMBER = (1 << 53) - 1
# What this version's Python agent supports, of what an agent may lack.
CAPABILITIES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logprobs", "adapter", "session", "deadline_s", "speculate", "hold", "cancel", "score",
)  # fmt: skip
VERBS = ("generate", "score", "cancel", "ping")
Code = Literal["malformed", "request", "unsupported", "busy", "artifact", "engine", "internal"]


class LineError(Exception):
    """A line to the agent that is answered with an error. `number` is None if the line has no valid one."""

    def __init__(self, code: Code, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.number = number


@dataclass(frozen=True)
class Command:
    """One line to the agent. `request` is None unless the verb is "generate" or "score"."""

    verb: str
    number: int
    request: TokenRequest | ScoreRequest | None = None
    hold: bool = False


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, without its end. ASCII, so that no locale on the way can break it."""
    return json.dumps(message, allow_nan=False).encode("ascii")


def encode_generate(number: int, request: TokenRequest, *, hold: bool) -> bytes:
    """The line for a generate."""
    return encode({"do": "generate", "request": number} | generate_fields(request, hold=hold))


def encode_score(number: int, request: ScoreRequest) -> bytes:
    """The line for a score."""
    return encode({"do": "score", "request": number} | score_fields(request))


def decode_command(line: bytes) -> Command:
    """Read a line to the agent. Raises LineError; ranges that depend on the model are check_request's."""
    message = read_object(line)
    number = message.get("request")
    if not is_integer(number) or not 0 <= number <= HIGHEST_NUMBER:
        raise LineError("malformed", f"request is {show(number)}; give an integer from 0 to 2^53 - 1")
    verb = message.get("do")
    if not isinstance(verb, str) or verb not in VERBS:
        raise LineError("malformed", f"do is {show(verb)}; known: {', '.join(VERBS)}", number)
    known_fields = {"generate": GENERATE_FIELDS, "score": SCORE_FIELDS}.get(verb, {})
    known = ("do", "request", *known_fields)
    if unknown := next((key for key in message if key not in known), None):
        raise LineError("request", f"unknown key {show(unknown)} in {verb}; known: {', '.join(known)}", number)
    fields: dict[str, Any] = {}
    for name, field in known_fields.items():
        value = message.get(name)
        if value is None and field.default is not REQUIRED:
            value = field.default
        elif not field.fits(value):
            raise LineError("request", f"{name} is {show(value)}; give {field.allowed}", number)
        fields[name] = value
    if verb == "score":
        return Command(verb, number, ScoreRequest(**fields))
    return Command(verb, number, *read_generate(fields)) if verb == "generate" else Command(verb, number)


def read_object(line: bytes) -> dict[str, Any]:
    """The object of a line, of either side. Raises LineError."""
    try:
        message = parse_json(line, finite=False)
    except ValueError as error:
        raise LineError("malformed", f"not a line of JSON ({error}): {line[:60]!r}") from None
    if not isinstance(message, dict):
        raise LineError("malformed", f"a line is one JSON object; saw {show(message)}")
    return message
