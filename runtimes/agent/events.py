"""The lines that an agent writes, as values, checked (docs/agent-protocol.md): no line of an agent is trusted.

Ready, Reply, Scored, Pong, ErrorEvent and Sample are read by `decode_event`. The lines to an agent are in wire.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtimes.agent.checks import FieldError, count, one_line, optional, pick, seconds, show
from runtimes.agent.generating import read_done, read_token
from runtimes.agent.scoring import Prediction, read_scored
from runtimes.agent.wire import MAX_LINE_BYTES, PROTOCOL, LineError, read_object
from runtimes.errors import TransportError
from runtimes.loop.tokens import NewToken, TokensDone


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


def decode_event(line: bytes) -> Event:
    """Read a line from the agent; unknown keys are skipped. Raises TransportError for any other text.

    Types and signs are checked here; what a request decides (which ids, how many) by whoever sent the request.
    """
    try:
        message = read_object(line)
        event, number = message["event"], optional(count, message.get("request"))
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
            return ErrorEvent(number, one_line(message["code"]), one_line(message["message"]), fatal)
        if event == "sample":
            return Sample(dict(message["conditions"]))
        if event == "pong":
            return Pong(number)
    except (LineError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        wrong = f" ({error})" if isinstance(error, FieldError) else ""
        raise TransportError(
            f"the agent printed {line[:80]!r}, which is no line of agent protocol {PROTOCOL}{wrong}; if a start-up "
            "file of the device's shell prints something, make it silent for commands"
        ) from None
    raise TransportError(f"the agent printed the event {show(event)}, which agent protocol {PROTOCOL} does not have")


def _ready(message: Mapping[str, Any]) -> Ready:
    if message.get("protocol") != PROTOCOL:
        raise TransportError(
            f"the agent {show(message.get('agent'))} speaks protocol {show(message.get('protocol'))}; this version "
            f"speaks {PROTOCOL}; install the same version of phi-edge on both sides"
        )
    ready = pick(Ready, message)
    for name in ("load_s", "open_s", "cached_share"):
        optional(seconds, getattr(ready, name))
    for name in ("context_tokens", "vocab_size", "max_line_bytes"):
        if getattr(ready, name) < 1:
            raise FieldError(f"{name} is {getattr(ready, name)}")
    return dataclasses.replace(ready, agent=one_line(ready.agent))
