"""The agent protocol as values (docs/agent-protocol.md): the lines of both sides, checked. No pipe is touched here.

To the agent goes a Command, built by `encode`, `encode_generate` and `encode_score`. Back come Ready, Reply, Scored,
Pong, ErrorEvent and Sample, read by `decode_event`. A request's `number` is the key "request" of the line.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

from runtimes.agent.scoring import Prediction, ScoreRequest, read_scored, score_fields
from runtimes.api import Finish, MemoryUse, Usage
from runtimes.errors import TransportError
from runtimes.loop.tokens import NewToken, Sampling, TokenRequest, TokensDone

PROTOCOL = 1
MAX_LINE_BYTES = 4 << 20
HIGHEST_NUMBER = (1 << 53) - 1
CAPABILITIES = ("temperature", "top_k", "top_p", "session", "deadline_s", "hold", "cancel", "score")
FINISHES = ("stop", "length", "cancelled", "deadline", "error")
VERBS = ("generate", "score", "cancel", "ping")
Code = Literal["malformed", "request", "unsupported", "busy", "artifact", "engine", "internal"]
T = TypeVar("T")
_SESSION = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
    """The line for a request. Fields at their default are left out."""
    sampling = request.sampling
    optional: dict[str, Any] = {
        "stop_ids": list(request.stop_ids) or None,
        "temperature": sampling.temperature or None,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed if sampling.temperature else None,
        "deadline_s": request.deadline_s,
        "session": request.session,
        "hold": hold or None,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    required = {
        "do": "generate",
        "request": number,
        "ids": list(request.ids),
        "max_new_tokens": request.max_new_tokens,
    }
    return encode(required | given)


def encode_score(number: int, request: ScoreRequest) -> bytes:
    """The line for a score."""
    return encode({"do": "score", "request": number} | score_fields(request))


def decode_command(line: bytes) -> Command:
    """Read a line to the agent. Raises LineError; ranges that depend on the model are check_request's."""
    message = _object(line)
    number = message.get("request")
    if not _is_integer(number) or not 0 <= number <= HIGHEST_NUMBER:
        raise LineError("malformed", f"request is {_show(number)}; give an integer from 0 to 2^53 - 1")
    verb = message.get("do")
    if not isinstance(verb, str) or verb not in VERBS:
        raise LineError("malformed", f"do is {_show(verb)}; known: {', '.join(VERBS)}", number)
    known_fields = {"generate": _FIELDS, "score": _SCORE_FIELDS}.get(verb, {})
    known = ("do", "request", *known_fields)
    if unknown := next((key for key in message if key not in known), None):
        raise LineError("request", f"unknown key {_show(unknown)} in {verb}; known: {', '.join(known)}", number)
    fields: dict[str, Any] = {}
    for name, (fits, allowed, default) in known_fields.items():
        value = message.get(name)
        if value is None and default is not _REQUIRED:
            value = default
        elif not fits(value):
            raise LineError("request", f"{name} is {_show(value)}; give {allowed}", number)
        fields[name] = value
    if verb == "score":
        return Command(verb, number, ScoreRequest(**fields))
    if verb != "generate":
        return Command(verb, number)
    hold = fields.pop("hold")
    sampling = Sampling(**{name: fields.pop(name) for name in ("temperature", "top_k", "top_p", "seed")})
    return Command(verb, number, TokenRequest(**fields, sampling=sampling), hold)


def decode_event(line: bytes) -> Event:
    """Read a line from the agent; unknown keys are skipped. Raises TransportError for any other text."""
    try:
        message = _object(line)
        event = message["event"]
        number = message.get("request")
        if event == "ready":
            return _ready(message)
        if event == "token":
            return Reply(number, NewToken(int(message["id"]), float(message["at_s"])))
        if event == "done":
            return Reply(number, _done(message))
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
    return _pick(Ready, message)


def _done(message: Mapping[str, Any]) -> TokensDone:
    finish: Finish = message["finish"]
    if finish not in FINISHES:
        raise ValueError(finish)
    memory = message.get("memory")
    return TokensDone(
        finish=finish,
        stop_id=message.get("stop_id"),
        usage=_pick(Usage, message["usage"]),
        prefill_s=message.get("prefill_s"),
        total_s=message.get("total_s"),
        memory=None if memory is None else _pick(MemoryUse, memory),
        error=None if message.get("error") is None else str(message["error"]),
    )


def _pick(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass from the keys that it knows. Raises TypeError for a missing one."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in content.items() if name in names})


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # An integer of thousands of digits is JSON too, and no float.
    return isinstance(value, float) or (_is_integer(value) and abs(value) < 1 << 64)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(_is_integer(item) for item in value)


def _is_id_lists(value: Any) -> bool:
    return isinstance(value, list) and all(_is_ids(item) for item in value)


def _is_session(value: Any) -> bool:
    return isinstance(value, str) and _SESSION.fullmatch(value) is not None


def _show(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer with more digits than Python turns into text
        return "an enormous number"


def _one_line(text: str) -> str:
    return " ".join(text.split())


_REQUIRED = object()
# name -> (is the value's type right, what is allowed, default). check_request checks the ranges of numbers.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str, Any]] = {
    "ids": (_is_ids, "a list of integers", _REQUIRED),
    "max_new_tokens": (_is_integer, "an integer", _REQUIRED),
    "stop_ids": (_is_ids, "a list of integers", ()),
    "temperature": (_is_number, "a number", 0.0),
    "top_k": (_is_integer, "an integer", None),
    "top_p": (_is_number, "a number", None),
    "seed": (_is_integer, "an integer", 0),
    "deadline_s": (_is_number, "a number of seconds", None),
    "session": (_is_session, "1 to 64 characters of A-Z a-z 0-9 . _ -", None),
    "hold": (lambda value: isinstance(value, bool), "true or false", False),
}
_SCORE_FIELDS: dict[str, tuple[Callable[[Any], bool], str, Any]] = {
    "ids": (_is_ids, "a list of integers", _REQUIRED),
    "first": (_is_integer, "an integer", _REQUIRED),
    "wanted": (_is_id_lists, "a list of lists of integers", _REQUIRED),
}
