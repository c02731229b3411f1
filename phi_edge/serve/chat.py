"""Events as the objects of /v1/chat/completions and /v1/completions, whole or in pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi_edge.serve.errors import ApiError
from runtimes.api import DoneEvent, Event, TokenEvent, ToolCall, Usage
from runtimes.text.runtime import TextRuntime
from runtimes.text.tools import may_be_call

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "deadline": "length", "cancelled": "length"}


@dataclass(frozen=True)
class Answering:
    """What every object of one answer has, and what its writer must know."""

    runtime: TextRuntime
    model: str
    kind: str  # "chat.completion" or "text_completion"
    tools: bool
    logprobs: bool
    usage: bool = True  # a stream's last object has the token counts
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, choices: Sequence[dict[str, Any]], *, piece: bool, **more: Any) -> dict[str, Any]:
        """One object; `piece` of a stream."""
        kind = f"{self.kind}.chunk" if piece and self.kind == "chat.completion" else self.kind
        return {
            "id": f"chat{self.id}" if self.kind == "chat.completion" else self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.runtime.manifest.digest()[:12]}",
            "choices": list(choices),
        } | more


async def whole_chat(answering: Answering, events: AsyncIterator[Event]) -> dict[str, Any]:
    """The answer in one object. Raises ApiError where the engine failed."""
    text, entries, done = await gathered(answering.runtime, events)
    calls = [_call(call) for call in done.tool_calls]
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": entries, "refusal": None} if answering.logprobs else None,
        "finish_reason": finish_reason(done),
    }
    return answering.object([choice], piece=False, usage=usage(done.usage))


async def chat_pieces(answering: Answering, events: AsyncIterator[Event]) -> AsyncGenerator[dict[str, Any], None]:
    """The answer in pieces. What may turn out to be a call of a tool is held back until that is known."""
    yield _piece(answering, {"role": "assistant", "content": ""})
    held, entries, holding = "", [], answering.tools
    async for event in events:
        held += event.text
        if isinstance(event, TokenEvent):
            entries.append(logprob_entry(answering.runtime, event))
            holding = holding and may_be_call(held)
            if not holding and (held or answering.logprobs):
                yield _piece(answering, {"content": held}, entries)
                held, entries = "", []
            continue
        done = ended(event)
        if done.tool_calls:
            calls = [{"index": place} | _call(call) for place, call in enumerate(done.tool_calls)]
            yield _piece(answering, {"tool_calls": calls}, entries)
        elif held or entries:
            yield _piece(answering, {"content": held}, entries)
        yield _piece(answering, {}, finish=finish_reason(done))
        if answering.usage:
            yield answering.object([], piece=True, usage=usage(done.usage))


async def whole_completion(answering: Answering, events: AsyncIterator[Event]) -> dict[str, Any]:
    """The older interface's answer in one object. Raises ApiError where the engine failed."""
    seen, done = [], None
    async for event in events:
        seen.append(event)
        done = event if isinstance(event, DoneEvent) else None
    done = ended(done)
    choice = _completion_choice(answering, seen, 0) | {"finish_reason": finish_reason(done)}
    return answering.object([choice], piece=False, usage=usage(done.usage))


async def completion_pieces(answering: Answering, events: AsyncIterator[Event]) -> AsyncGenerator[dict[str, Any], None]:
    """The older interface's answer in pieces."""
    offset = 0
    async for event in events:
        done = ended(event) if isinstance(event, DoneEvent) else None
        choice = _completion_choice(answering, [event], offset)
        choice["finish_reason"] = None if done is None else finish_reason(done)
        offset += len(event.text)
        if event.text or done or answering.logprobs:
            yield answering.object([choice], piece=True)
        if done and answering.usage:
            yield answering.object([], piece=True, usage=usage(done.usage))


async def gathered(runtime: TextRuntime, events: AsyncIterator[Event]) -> tuple[str, list[dict[str, Any]], DoneEvent]:
    """All of an answer: its text, an entry of log-probabilities for each token, its end. Raises ApiError."""
    text, entries, done = "", [], None
    async for event in events:
        text += event.text
        if isinstance(event, TokenEvent):
            entries.append(logprob_entry(runtime, event))
        else:
            done = event
    return text, entries, ended(done)


def ended(done: Event | None) -> DoneEvent:
    """The last event. Raises ApiError where it reports a failure."""
    if not isinstance(done, DoneEvent):
        raise ApiError(503, "the request was ended before its answer was complete", code="cancelled")
    if done.finish == "error":
        raise ApiError(500, done.error or "the engine failed without a message", code="model_failed")
    return done


def finish_reason(done: DoneEvent) -> str:
    """In OpenAI's words."""
    return "tool_calls" if done.tool_calls else FINISH[done.finish]


def usage(counts: Usage) -> dict[str, Any]:
    """In OpenAI's words."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.reused},
    }


def logprob_entry(runtime: TextRuntime, event: TokenEvent) -> dict[str, Any]:
    """A token, its log-probability and the alternatives."""

    def entry(id: int, logprob: float | None) -> dict[str, Any]:
        data = runtime.token_bytes(id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    alternatives = [entry(each.id, each.logprob) for each in event.top_logprobs]
    return entry(event.id, event.logprob) | {"top_logprobs": alternatives}


def call_id() -> str:
    """A new name for a call."""
    return f"call_{secrets.token_hex(12)}"


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call_id(), "type": "function", "function": function}


def _piece(
    answering: Answering, delta: dict[str, Any], entries: Sequence[dict[str, Any]] = (), *, finish: str | None = None
) -> dict[str, Any]:
    logprobs = {"content": list(entries), "refusal": None} if answering.logprobs and entries else None
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return answering.object([choice], piece=True)


def _completion_choice(answering: Answering, events: Sequence[Event], offset: int) -> dict[str, Any]:
    """The text of some events, with the older form of log-probabilities."""
    logprobs: dict[str, Any] | None = None
    if answering.logprobs:
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        entries = [logprob_entry(answering.runtime, event) for event in tokens]
        offsets = []
        for event in tokens:
            offsets.append(offset)
            offset += len(event.text)
        logprobs = {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{each["token"]: each["logprob"] for each in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }
    text = "".join(event.text for event in events)
    return {"index": 0, "text": text, "logprobs": logprobs}
