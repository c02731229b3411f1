"""The body of /v1/responses, as far as a server without a memory serves it, and its GenerateRequest."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from phi_edge.serve.bodies import Always, Body, Count, Never, PlainFormat
from phi_edge.serve.errors import ApiError
from phi_edge.serve.requests import SESSION, schema_of, tool_fields
from runtimes.api import GenerateRequest
from runtimes.loop.tokens import MAX_LOGPROBS
from runtimes.text.runtime import TextRuntime

LOGPROBS = "message.output_text.logprobs"


class InputText(Body):
    """A part of a message. What OpenAI's answers also have may come back, as long as it is empty."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]
    id: str | None = None
    status: str | None = None


class InputCall(Body):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str  # JSON
    id: str | None = None
    status: str | None = None


class InputResult(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = None
    status: str | None = None


def _item_tag(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return {"function_call": "Call", "function_call_output": "Result"}.get(str(kind), "Message")


Item = Annotated[
    Annotated[InputMessage, Tag("Message")] | Annotated[InputCall, Tag("Call")] | Annotated[InputResult, Tag("Result")],
    Discriminator(_item_tag),
]


class FlatTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None


class FlatNamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    name: str


class FlatSchemaFormat(Body):
    """The answer follows a JSON schema."""

    type: Literal["json_schema"]
    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextSettings(Body):
    """The form of the answer."""

    format: PlainFormat | FlatSchemaFormat | None = None


class ResponsesBody(Body):
    """/v1/responses"""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextSettings | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: Always | None = None
    stream: bool | None = None
    store: Never | None = None  # nothing is ever stored
    metadata: dict[str, str] | None = None  # comes back
    user: str | None = None  # who asks; the answer does not depend on it


def responses_request(body: ResponsesBody, runtime: TextRuntime) -> GenerateRequest:
    """Raises ApiError for what contradicts itself; the rest is refused by the runtime."""
    wants_logprobs = bool(body.include)
    if body.top_logprobs is not None and not wants_logprobs:
        raise ApiError(400, f"top_logprobs needs include: [{LOGPROBS!r}]", param="top_logprobs")
    given = {name: value for name in ("temperature", "top_p") if (value := getattr(body, name)) is not None}
    choice = body.tool_choice.name if isinstance(body.tool_choice, FlatNamedTool) else body.tool_choice
    format = None if body.text is None else body.text.format
    schema = format.schema_ if isinstance(format, FlatSchemaFormat) else schema_of(format)
    return dataclasses.replace(
        runtime.suggested.request,
        messages=_messages(body),
        max_new_tokens=body.max_output_tokens or runtime.manifest.context_tokens,
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        json_schema=schema,
        session=SESSION,
        **tool_fields([_tool(tool) for tool in body.tools or ()], choice),
        **given,
    )


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """The turns; calls that follow each other are one turn of the assistant."""
    turns: list[dict[str, Any]] = [] if body.instructions is None else [_turn("system", body.instructions)]
    if isinstance(body.input, str):
        return [*turns, _turn("user", body.input)]
    for item in body.input:
        if isinstance(item, InputMessage):
            text = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
            turns.append(_turn("system" if item.role == "developer" else item.role, text))
        elif isinstance(item, InputResult):
            turns.append(_turn("tool", item.output) | {"tool_call_id": item.call_id})
        else:
            if not turns or turns[-1]["role"] != "assistant":
                turns.append(_turn("assistant", ""))
            function = {"name": item.name, "arguments": item.arguments}
            turns[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})
    return turns


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tool(tool: FlatTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type", "strict"})}


def echo(body: ResponsesBody) -> dict[str, Any]:
    """What an answer repeats of its request."""
    dumped = json.loads(body.model_dump_json(by_alias=True))
    names = ("instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "metadata", "user")
    return {name: dumped[name] for name in names} | {
        "metadata": dumped["metadata"] or {},
        "tools": dumped["tools"] or [],
        "tool_choice": dumped["tool_choice"] or "auto",
        "text": dumped["text"] or {"format": {"type": "text"}},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
    }
