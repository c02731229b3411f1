"""From a client's body to a GenerateRequest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from phi_edge.serve.bodies import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    NamedTool,
    PlainFormat,
    SamplingBody,
    SchemaFormat,
    Tool,
)
from phi_edge.serve.errors import ApiError
from runtimes.api import GenerateRequest
from runtimes.text.runtime import TextRuntime

# One session for all: each request reuses the longest beginning that it shares with the one before it.
SESSION = "serve"
# OpenAI's default of the older interface.
COMPLETION_TOKENS = 16
ToolChoice = Literal["none", "auto", "required"]


def chat_request(body: ChatBody, runtime: TextRuntime) -> GenerateRequest:
    """Raises ApiError for what contradicts itself; the rest is refused by the runtime."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens are one field; give one of them", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    choice = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    tools = [_tool(tool) for tool in body.tools or ()]
    return dataclasses.replace(
        sampling(body, runtime),
        messages=[message(each) for each in body.messages],
        max_new_tokens=body.max_tokens or body.max_completion_tokens or runtime.manifest.context_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=schema_of(body.response_format),
        **tool_fields(tools, choice),
    )


def completion_request(body: CompletionBody, runtime: TextRuntime) -> GenerateRequest:
    """The older interface: a text, or ids, that the model continues."""
    prompt = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    texts = [each for each in prompt if isinstance(each, str)]
    ids = [each for each in prompt if isinstance(each, int)]
    return dataclasses.replace(
        sampling(body, runtime),
        prompt=texts[0] if texts else None,
        token_ids=None if texts else ids,
        max_new_tokens=body.max_tokens or COMPLETION_TOKENS,
        logprobs=body.logprobs,
    )


def sampling(body: SamplingBody, runtime: TextRuntime) -> GenerateRequest:
    """What is given, over what the model's makers suggest."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return dataclasses.replace(
        runtime.suggested.request,
        stop=stop,
        seed=None if body.seed is None else body.seed % (1 << 64),
        session=SESSION,
        regex=body.regex,
        lark=body.lark,
        speculate=bool(body.speculate),
        **given,
    )


def tool_fields(tools: Sequence[Mapping[str, Any]], choice: ToolChoice | str | None) -> dict[str, Any]:
    """The fields about tools. With the choice "none" the model does not see them, so it cannot call one."""
    if choice == "none":
        return {}
    return {"tools": tools, "tool_choice": choice or "auto"}


def schema_of(format: PlainFormat | SchemaFormat | None) -> Mapping[str, Any] | None:
    """The JSON schema that a format asks for."""
    if isinstance(format, SchemaFormat):
        return format.json_schema.schema_
    return {"type": "object"} if format is not None and format.type == "json_object" else None


def message(body: ChatMessage) -> dict[str, Any]:
    """As runtimes.text.messages reads it. OpenAI renamed the system's role to the developer's."""
    fields = body.model_dump(include={"role", "content", "tool_calls", "tool_call_id"}, exclude_none=True)
    return fields | {"role": "system"} if body.role == "developer" else fields


def _tool(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_none=True, exclude={"function": {"strict"}})
