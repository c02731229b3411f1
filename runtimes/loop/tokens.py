"""The token-level interface: ids in, ids out. A device's agent serves it; the host handles text (runtimes.text).

Everything here is made of numbers and short strings, so that it can cross a pipe as one line of JSON.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from runtimes.api import Finish, MemoryUse, Usage
from runtimes.errors import ContextFullError, RequestError

MAX_LOGPROBS = 20  # as OpenAI's top_logprobs


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Greedy at temperature 0; otherwise seeded, the same on every target."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0  # 0 <= seed < 2**64


GrammarKind = Literal["json_schema", "regex", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What an answer must match: a JSON schema (as JSON), a regular expression, or a Lark grammar."""

    kind: GrammarKind
    text: str


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """What to generate, in ids alone. `stop_ids` are all of them: the artifact's own and the request's."""

    ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop_ids: Sequence[int] = ()  # empty: generate exactly max_new_tokens
    deadline_s: float | None = None  # from the moment the source accepts this request
    session: str | None = None
    adapter: str | None = None  # a LoRA adapter beside the artifact's weights, by its name
    grammar: Grammar | None = None
    logprobs: int | None = None  # report each token's log-probability, and this many of the likeliest ids with theirs


@dataclass(frozen=True)
class NewToken:
    """One sampled id. A stop id is not one: TokensDone.stop_id reports it."""

    id: int
    # Since the source accepted the request, on the source's monotonic clock, stamped when sampled; None if it cannot.
    at_s: float | None
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()  # the likeliest ids and their log-probabilities, likeliest first


@dataclass(frozen=True, kw_only=True)
class TokensDone:
    """The last record of every stream. `finish` is "stop" for any stop id."""

    finish: Finish
    stop_id: int | None = None
    usage: Usage
    prefill_s: float | None  # how long the prompt took, to its logits
    total_s: float | None  # since the source accepted the request
    memory: MemoryUse | None = None
    error: str | None = None


TokenRecord = NewToken | TokensDone


class TokenSource(Protocol):
    """A loaded model, here or on a device."""

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """New tokens as they are sampled, then one TokensDone. The request counts as accepted now.

        Closing the stream cancels, and nothing more comes. Raises RequestError at once for a request that cannot be
        served, and from the first record while another request runs.
        """
        ...

    def cancel(self) -> None:
        """End the request that runs now, within one token or one prefill chunk; its stream still ends with a
        TokensDone, finish "cancelled". Without effect when none runs. May be called from another thread."""
        ...

    def close(self) -> None:
        """Free the model. The source cannot be used afterwards."""
        ...


def check_request(request: TokenRequest, context_tokens: int, vocab_size: int) -> None:
    """Refuse what no model of this context and vocabulary can serve. Raises RequestError."""
    if not request.ids:
        raise RequestError("the prompt has no tokens; give at least one")
    if len(request.ids) >= context_tokens:
        raise ContextFullError(
            f"the prompt has {len(request.ids)} tokens; a context of {context_tokens} takes at most "
            f"{context_tokens - 1} and one new one; shorten the prompt, or export with a longer --context"
        )
    for name, ids in (("token id", request.ids), ("stop id", request.stop_ids)):
        check_ids(name, ids, vocab_size)
    _check_number("max_new_tokens", request.max_new_tokens, request.max_new_tokens >= 1, "1 or more")
    sampling = request.sampling
    temperature = sampling.temperature
    _check_number("temperature", temperature, math.isfinite(temperature) and temperature >= 0, "0 (greedy) or more")
    if sampling.top_k is not None:
        _check_number("top_k", sampling.top_k, sampling.top_k >= 1, "1 or more, or leave it out")
    if sampling.top_p is not None:
        _check_number("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0, at most 1, or leave it out")
    _check_number("seed", sampling.seed, 0 <= sampling.seed < 1 << 64, "0 to 2**64 - 1")
    _check_penalties(sampling)
    if request.logprobs is not None:
        fits = 0 <= request.logprobs <= MAX_LOGPROBS
        _check_number("logprobs", request.logprobs, fits, f"0 to {MAX_LOGPROBS}, or leave it out")
    if request.deadline_s is not None:
        deadline = request.deadline_s
        _check_number("deadline_s", deadline, math.isfinite(deadline), "a number of seconds, or leave it out")
    if request.grammar is not None and not request.stop_ids:
        raise RequestError(
            f"{request.grammar.kind} ends an answer where its document ends, so stop ids cannot be ignored"
        )


def _check_penalties(sampling: Sampling) -> None:
    if sampling.min_p is not None:
        _check_number("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "0 to 1, or leave it out")
    penalty = sampling.repetition_penalty
    _check_number("repetition_penalty", penalty, 0.01 <= penalty <= 100, "0.01 to 100; 1 changes nothing")
    for name, value in (
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ):
        _check_number(name, value, -2 <= value <= 2, "-2 to 2; 0 changes nothing")


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that no model of this vocabulary has. Raises RequestError."""
    if (wrong := next((id for id in ids if not 0 <= id < vocab_size), None)) is not None:
        raise RequestError(f"{name} {wrong} is not in the model's vocabulary; allowed: 0 to {vocab_size - 1}")


def _check_number(name: str, seen: float, fits: bool, allowed: str) -> None:
    if not fits:
        raise RequestError(f"{name} is {seen}; allowed: {allowed}")
