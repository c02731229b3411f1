"""The token-level interface: ids in, ids out. A device's agent serves it; the host handles text (runtimes.text).

Everything here is made of numbers and short strings, so that it can cross a pipe as one line of JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal, Protocol, TypeGuard, runtime_checkable

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
    speculate: bool = False  # guess what may come next, and check several guesses in one forward


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


@runtime_checkable
class SessionStore(Protocol):
    """A TokenSource that can keep a session's KV cache in a file."""

    def save_session(self, session: str, path: Path, artifact: str) -> int:
        """Write what this session has cached, and return how many tokens that is. `artifact` is the digest of the
        artifact. Raises RequestError where it has nothing, UnsupportedError where the engine cannot."""
        ...

    def load_session(self, session: str, path: Path, artifact: str) -> int:
        """The inverse: the session goes on where it was saved. Raises RequestError for a file of another artifact."""
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
    count, sampling, deadline_s = request.max_new_tokens, request.sampling, request.deadline_s
    _check("max_new_tokens", count, is_whole(count) and count >= 1, "1 or more")
    temperature, top_k, top_p, seed = sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed
    _check("temperature", temperature, is_real(temperature) and temperature >= 0, "0 (greedy) or more")
    _check("top_k", top_k, top_k is None or (is_whole(top_k) and top_k >= 1), "1 or more, or leave it out")
    _check("top_p", top_p, top_p is None or (is_real(top_p) and 0 < top_p <= 1), "above 0, at most 1, or leave it out")
    _check("seed", seed, is_whole(seed) and 0 <= seed < 1 << 64, "0 to 2**64 - 1")
    _check_penalties(sampling)
    logprobs, fits = request.logprobs, is_whole(request.logprobs) and 0 <= request.logprobs <= MAX_LOGPROBS
    _check("logprobs", logprobs, logprobs is None or fits, f"0 to {MAX_LOGPROBS}, or leave it out")
    _check("deadline_s", deadline_s, deadline_s is None or is_real(deadline_s), "a number of seconds, or leave it out")
    if request.grammar is not None and not request.stop_ids:
        raise RequestError(
            f"{request.grammar.kind} ends an answer where its document ends, so stop ids cannot be ignored"
        )


def _check_penalties(sampling: Sampling) -> None:
    min_p, penalty = sampling.min_p, sampling.repetition_penalty
    _check("min_p", min_p, min_p is None or (is_real(min_p) and 0 <= min_p <= 1), "0 to 1, or leave it out")
    fits = is_real(penalty) and 0.01 <= penalty <= 100
    _check("repetition_penalty", penalty, fits, "0.01 to 100; 1 changes nothing")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        _check(name, value, is_real(value) and -2 <= value <= 2, "-2 to 2; 0 changes nothing")


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that no model of this vocabulary has. Raises RequestError."""
    for id in ids:
        if not is_whole(id) or not 0 <= id < vocab_size:
            raise RequestError(f"{name} {id!r:.60} is not in the model's vocabulary; allowed: 0 to {vocab_size - 1}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, numpy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether it is a number that a float can be, and finite."""
    limit = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit


def _check(name: str, seen: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise RequestError(f"{name} is {seen!r:.60}; allowed: {allowed}")
