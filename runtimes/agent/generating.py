"""The agent protocol's `generate`: its line, and the token and done lines that answer it (docs/agent-protocol.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtimes.agent.checks import FieldError, count, logprob, one_line, optional, pick_counts, seconds, show
from runtimes.api import Finish, MemoryUse, Usage
from runtimes.loop.tokens import Grammar, NewToken, Sampling, TokenRequest, TokensDone

FINISHES = ("stop", "length", "cancelled", "deadline", "error")
_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


def generate_fields(request: TokenRequest, *, hold: bool) -> dict[str, Any]:
    """The keys of a generate line. Those at their default are left out, so that an older agent takes the line."""
    sampling = {
        field.name: value
        for field in dataclasses.fields(Sampling)
        if (value := getattr(request.sampling, field.name)) != field.default
    }
    if request.sampling.temperature == 0:
        for name in ("top_k", "top_p", "min_p", "seed"):  # a greedy choice does not read them
            sampling.pop(name, None)
    optional: dict[str, Any] = {
        "stop_ids": list(request.stop_ids) or None,
        "grammar": None if request.grammar is None else dataclasses.asdict(request.grammar),
        "logprobs": request.logprobs,
        "deadline_s": request.deadline_s,
        "session": request.session,
        "adapter": request.adapter,
        "speculate": request.speculate or None,
        "hold": hold or None,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    return {"ids": list(request.ids), "max_new_tokens": request.max_new_tokens} | sampling | given


def read_generate(fields: Mapping[str, Any]) -> tuple[TokenRequest, bool]:
    """The request of a generate line, and its `hold`. `fields` has every key of GENERATE_FIELDS, its type checked."""
    others = {name: value for name, value in fields.items() if name not in (*_SAMPLING, "grammar", "hold")}
    sampling = Sampling(**{name: fields[name] for name in _SAMPLING})
    grammar = None if fields["grammar"] is None else Grammar(**fields["grammar"])
    return TokenRequest(**others, sampling=sampling, grammar=grammar), fields["hold"]


def token_fields(token: NewToken, waited_s: float) -> dict[str, Any]:
    """The keys of a token line. `waited_s` is how long the request waited before the loop accepted it."""
    assert token.at_s is not None  # a loop stamps every token
    fields: dict[str, Any] = {"id": token.id, "at_s": token.at_s + waited_s}
    if token.logprob is not None:
        fields |= {"logprob": token.logprob, "top": [list(pair) for pair in token.top]}
    return fields


def read_token(message: Mapping[str, Any]) -> NewToken:
    """The inverse, of a line from a device. Raises KeyError, TypeError or ValueError."""
    return NewToken(
        count(message["id"]),
        seconds(message["at_s"]),
        optional(logprob, message.get("logprob")),
        tuple((count(id), logprob(value)) for id, value in message.get("top") or ()),
    )


def done_fields(done: TokensDone, waited_s: float, memory: MemoryUse | None) -> dict[str, Any]:
    """The keys of a done line; `memory` is of the process since it began, because loading is often the peak."""
    return {
        "finish": done.finish,
        "stop_id": done.stop_id,
        "usage": dataclasses.asdict(done.usage),
        "prefill_s": done.prefill_s,
        "total_s": None if done.total_s is None else done.total_s + waited_s,
        "memory": None if memory is None else dataclasses.asdict(memory),
        "error": done.error,
    }


def read_done(message: Mapping[str, Any]) -> TokensDone:
    """The inverse, of a line from a device. Raises KeyError, TypeError or ValueError."""
    finish: Finish = message["finish"]
    if finish not in FINISHES:
        raise FieldError(f"finish is {show(finish)}")
    memory = message.get("memory")
    return TokensDone(
        finish=finish,
        stop_id=optional(count, message.get("stop_id")),
        usage=pick_counts(Usage, message["usage"]),
        prefill_s=optional(seconds, message.get("prefill_s")),
        total_s=optional(seconds, message.get("total_s")),
        memory=None if memory is None else pick_counts(MemoryUse, memory),
        error=optional(one_line, message.get("error")),
    )
