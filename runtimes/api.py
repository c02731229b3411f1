"""The generate interface: one request, one stream of events, the same on every target.

A runtime that cannot honour a field of the request raises UnsupportedError; it never ignores one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Finish = Literal["stop", "eos", "length", "cancelled", "deadline", "error"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate. Exactly one of prompt, messages, token_ids. Greedy unless temperature is above 0."""

    prompt: str | None = None  # text as it is: special tokens in it stay text
    messages: Sequence[Message] | None = None  # put through the artifact's chat template
    token_ids: Sequence[int] | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()  # texts that end the answer; they are not part of it
    stop_ids: Sequence[int] = ()  # besides the artifact's own
    ignore_stop_ids: bool = False  # generate exactly max_new_tokens: for benchmarks
    deadline_s: float | None = None  # from the acceptance of the request
    session: str | None = None  # reuse the KV cache of the longest common prefix of this session's last request


@dataclass(frozen=True)
class TokenEvent:
    """One token. `text` may be empty while a character or a possible stop string is incomplete."""

    id: int
    text: str
    at_s: float  # since the request was accepted, on the clock of the process that holds the model


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts: prompt = reused (already in the KV cache) + prefilled."""

    prompt: int
    reused: int
    prefilled: int
    completion: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds since the request was accepted; None where the runtime cannot tell."""

    prefill_s: float | None  # the time to the first logits, tokenising left out
    total_s: float | None


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Of the process that holds the model, in bytes; None where the system cannot tell."""

    peak_bytes: int | None  # max(VmHWM, max over samples of VmRSS + VmSwap)
    anonymous_bytes: int | None
    file_bytes: int | None
    swap_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class DoneEvent:
    """The last event of every stream."""

    finish: Finish
    text: str = ""  # text that was held back for a stop string that did not come
    stop_string: str | None = None
    usage: Usage
    timings: Timings
    memory: MemoryUse | None = None
    error: str | None = None


Event = TokenEvent | DoneEvent


class Runtime(Protocol):
    """An opened artifact. Closing the iterator cancels the generation within one token."""

    def generate(self, request: GenerateRequest) -> Iterator[Event]: ...

    def close(self) -> None: ...
