"""The agent protocol as values (docs/agent-protocol.md): the lines of both sides, checked. No pipe is touched here.

To the agent goes a Command, built by `encode`, `encode_generate` and `encode_score`. Back come Ready, Reply, Scored,
Pong, ErrorEvent and Sample, read by `decode_event`. A request's `number` is the key "request" of the line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtimes.agent.fields import GENERATE_FIELDS, REQUIRED, SCORE_FIELDS, is_integer
from runtimes.agent.generating import generate_fields, pick, read_done, read_generate, read_token
from runtimes.agent.scoring import Prediction, ScoreRequest, read_scored, score_fields
from runtimes.errors import TransportError
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone

PROTOCOL = 1
MAX_LINE_BYTES = 4 << 20
HIGHEST_NUMBER = (1 << 53) - 1
# What this version's Python agent supports, of what an agent may lack.
CAPABILITIES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logprobs", "adapter", "session", "deadline_s", "hold", "cancel", "score",
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


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The agent's first line."""

    protocol: int
    agent: str
    pid: int | None = None
    artifact: str | None = None
    format: str | None = None
    context_tokens: int
    vocab_size: int
    threads: int | None = None
    capabilities: Sequence[str] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_line_bytes: int = MAX_LINE_BYTES
    boot_id: str | None = None
    load_s: float | None = None
    open_s: float | None = None
    load_mode: Literal["mmap", "read"] | None = None
    cached_share: float | None = None
    accelerator: str | None = None


@dataclass(frozen=True)
class Reply:
    """A token or done line: one record of the answer to request `number`."""

    number: int | None
    record: NewToken | TokensDone


@dataclass(frozen=True)
class Scored:
    """The answer to a score."""

    number: int | None
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class Pong:
    """The answer to a ping."""

    number: int | None


@dataclass(frozen=True)
class ErrorEvent:
    """An error line. `fatal`: the agent exits after it."""

    number: int | None
    code: str
    message: str
    fatal: bool


@dataclass(frozen=True)
class Sample:
    """The line that `--sample` prints. `conditions` are the fields of runtimes.system.conditions.Conditions."""

    conditions: Mapping[str, Any]


Event = Ready | Reply | Scored | Pong | ErrorEvent | Sample


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
    message = _object(line)
    number = message.get("request")
    if not is_integer(number) or not 0 <= number <= HIGHEST_NUMBER:
        raise LineError("malformed", f"request is {_show(number)}; give an integer from 0 to 2^53 - 1")
    verb = message.get("do")
    if not isinstance(verb, str) or verb not in VERBS:
        raise LineError("malformed", f"do is {_show(verb)}; known: {', '.join(VERBS)}", number)
    known_fields = {"generate": GENERATE_FIELDS, "score": SCORE_FIELDS}.get(verb, {})
    known = ("do", "request", *known_fields)
    if unknown := next((key for key in message if key not in known), None):
        raise LineError("request", f"unknown key {_show(unknown)} in {verb}; known: {', '.join(known)}", number)
    fields: dict[str, Any] = {}
    for name, field in known_fields.items():
        value = message.get(name)
        if value is None and field.default is not REQUIRED:
            value = field.default
        elif not field.fits(value):
            raise LineError("request", f"{name} is {_show(value)}; give {field.allowed}", number)
        fields[name] = value
    if verb == "score":
        return Command(verb, number, ScoreRequest(**fields))
    return Command(verb, number, *read_generate(fields)) if verb == "generate" else Command(verb, number)


def decode_event(line: bytes) -> Event:
    """Read a line from the agent; unknown keys are skipped. Raises TransportError for any other text."""
    try:
        message = _object(line)
        event = message["event"]
        number = message.get("request")
        if event == "ready":
            return _ready(message)
        if event == "token":
            return Reply(number, read_token(message))
        if event == "done":
            return Reply(number, read_done(message))
        if event == "scored":
            return Scored(number, read_scored(message))
        if event == "error":
            fatal = message.get("fatal") is True
            return ErrorEvent(number, str(message["code"]), _one_line(str(message["message"])), fatal)
        if event == "sample":
            return Sample(dict(message["conditions"]))
        if event == "pong":
            return Pong(number)
    except (LineError, KeyError, TypeError, ValueError, OverflowError):
        pass
    raise TransportError(
        f"the agent printed {line[:80]!r}, which is no line of agent protocol {PROTOCOL}; if a start-up file of the "
        "device's shell prints something, make it silent for commands"
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        # Strict UTF-8: json itself would also take UTF-16 and a byte order mark.
        text = line.decode("utf-8")
        message = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:
        raise LineError("malformed", f"not a line of JSON ({type(error).__name__}): {line[:60]!r}") from None
    if not isinstance(message, dict):
        raise LineError("malformed", f"a line is one JSON object; saw {_show(message)}")
    return message


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


def _ready(message: Mapping[str, Any]) -> Ready:
    if message.get("protocol") != PROTOCOL:
        raise TransportError(
            f"the agent {_show(message.get('agent'))} speaks protocol {_show(message.get('protocol'))}; this version "
            f"speaks {PROTOCOL}; install the same version of phi-edge on both sides"
        )
    return pick(Ready, message)


def _show(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer with more digits than Python turns into text
        return "an enormous number"


def _one_line(text: str) -> str:
    return " ".join(text.split())
