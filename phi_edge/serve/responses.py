"""Events as the objects of /v1/responses: one object, or the stream of its parts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi_edge.serve.chat import call_id, ended, gathered, logprob_entry
from phi_edge.serve.responses_body import ResponsesBody, echo
from runtimes.api import DoneEvent, Event, TokenEvent, ToolCall
from runtimes.text.runtime import TextRuntime
from runtimes.text.tools import may_be_call


@dataclass(frozen=True)
class Responding:
    """What an answer must know of its request."""

    runtime: TextRuntime
    body: ResponsesBody
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def logprobs(self) -> bool:
        """Whether the client wants them."""
        return bool(self.body.include)

    def object(self, output: Sequence[dict[str, Any]], done: DoneEvent | None) -> dict[str, Any]:
        """The response; `done` None while it is in progress."""
        cut = done is not None and done.finish not in ("eos", "stop")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if done is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self.body.model,
            "output": list(output),
            "usage": None if done is None else _usage(done),
        } | echo(self.body)


async def whole_response(responding: Responding, events: AsyncIterator[Event]) -> dict[str, Any]:
    """The answer in one object. Raises ApiError where the engine failed."""
    text, entries, done = await gathered(responding.runtime, events)
    if done.tool_calls:
        return responding.object([_call(call) for call in done.tool_calls], done)
    item = _message(_new_id("msg"), "completed", [_part(text, entries if responding.logprobs else [])])
    return responding.object([item], done)


async def response_events(responding: Responding, events: AsyncIterator[Event]) -> AsyncGenerator[dict[str, Any], None]:
    """The stream's events in their order, each with its number."""
    number = 0
    async for event in _parts(responding, events):
        yield event | {"sequence_number": number}
        number += 1


async def _parts(responding: Responding, events: AsyncIterator[Event]) -> AsyncGenerator[dict[str, Any], None]:
    for state in ("created", "in_progress"):
        yield {"type": f"response.{state}", "response": responding.object([], None)}
    text, held, begun, entries = "", "", False, []
    id = _new_id("msg")
    place = {"item_id": id, "output_index": 0, "content_index": 0}
    holding = bool(responding.body.tools)
    done: DoneEvent | None = None
    async for event in events:
        held += event.text
        if isinstance(event, TokenEvent):
            new = [logprob_entry(responding.runtime, event)] if responding.logprobs else []
            entries += new
            holding = holding and may_be_call(held)
        else:
            done = ended(event)
        if done is not None and done.tool_calls:
            break
        if not begun and (done is not None or not holding):
            begun = True
            item = _message(id, "in_progress", [])
            yield {"type": "response.output_item.added", "output_index": 0, "item": item}
            yield {"type": "response.content_part.added", **place, "part": _part("", [])}
        if begun and held:
            yield {
                "type": "response.output_text.delta",
                **place,
                "delta": held,
                "logprobs": new if done is None else [],
            }
            text, held = text + held, ""
    done = ended(done)
    if done.tool_calls:
        output = [_call(call) for call in done.tool_calls]
        for index, item in enumerate(output):
            for part in _call_events(index, item):
                yield part
    else:
        item = _message(id, "completed", [_part(text, entries)])
        output = [item]
        yield {"type": "response.output_text.done", **place, "text": text, "logprobs": entries}
        yield {"type": "response.content_part.done", **place, "part": item["content"][0]}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    response = responding.object(output, done)
    yield {"type": f"response.{response['status']}", "response": response}


def _call_events(index: int, item: dict[str, Any]) -> list[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": index}
    arguments = item["arguments"]
    begun = item | {"arguments": "", "status": "in_progress"}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": begun},
        {"type": "response.function_call_arguments.delta", **place, "delta": arguments},
        {"type": "response.function_call_arguments.done", **place, "arguments": arguments, "name": item["name"]},
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]


def _message(id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": content}


def _part(text: str, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(entries)}


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": _new_id("fc"),
        "call_id": call_id(),
        "name": call.name,
        "arguments": json.dumps(call.arguments, ensure_ascii=False),
        "status": "completed",
    }


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def _usage(done: DoneEvent) -> dict[str, Any]:
    usage = done.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.reused},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
