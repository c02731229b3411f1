"""Messages as callers write them, objects or mappings, as Message objects. Unknown keys are refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.strict import parse_json
from runtimes.api import AnyMessage, Message, ToolCall
from runtimes.errors import RequestError

ROLES = ("system", "user", "assistant", "tool")
_KEYS = ("role", "content", "tool_calls", "tool_call_id")
_CALL_KEYS = ("id", "type", "function", "name", "arguments")


def as_messages(messages: Sequence[AnyMessage]) -> list[Message]:
    """The messages, whatever form each has. Raises RequestError, which names the message and what is wrong."""
    if not messages:
        raise RequestError("messages is empty; give at least one message")
    return [_message(message, f"message {place}") for place, message in enumerate(messages, start=1)]


def _message(message: AnyMessage, where: str) -> Message:
    if not isinstance(message, Message):
        message = _read(message, where)
    if not isinstance(message.content, str):
        raise RequestError(f"{where}: content is {message.content!r:.60}; give a text")
    if message.role not in ROLES:
        raise RequestError(f"{where} has the role {message.role!r:.60}; allowed: {', '.join(ROLES)}")
    if message.tool_calls and message.role != "assistant":
        raise RequestError(f"{where} has tool_calls and the role {message.role}; only the assistant calls tools")
    return message


def _read(message: Mapping[str, Any], where: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is a {type(message).__name__}; give a Message, or an object with role and content")
    _refuse_unknown(message, _KEYS, where)
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(f"{where}: tool_calls is {calls!r:.60}; give a list of calls")
    call_id = message.get("tool_call_id")
    if call_id is not None and not isinstance(call_id, str):
        raise RequestError(f"{where}: tool_call_id is {call_id!r:.60}; give a text")
    role: Any = message.get("role")
    return Message(role, _content(message.get("content"), where), [_call(call, where) for call in calls], call_id)


def _content(content: Any, where: str) -> str:
    """A text, nothing, or a list of OpenAI's text parts, which are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in content]
        for kind, text in zip(kinds, texts, strict=True):
            if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
                raise RequestError(f"{where} has a part of type {kind!r:.40}; allowed: text")
        return "".join(text for text in texts if text is not None)
    raise RequestError(f"{where}: content is {content!r:.60}; give a text, or a list of text parts")


def _call(call: Any, where: str) -> ToolCall:
    """A call with name and arguments, or OpenAI's, whose function has them, the arguments as JSON."""
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise RequestError(f"{where}: a tool call is {call!r:.60}; give an object with a function")
    _refuse_unknown(call, _CALL_KEYS, f"{where}: a tool call")
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments.encode("utf-8", "surrogatepass"))
        except ValueError as error:
            raise RequestError(f"{where}: a tool call's arguments are not JSON ({error})") from error
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise RequestError(f"{where}: a tool call is {call!r:.60}; it needs a name and arguments, an object")
    id = call.get("id")
    return ToolCall(name, dict(arguments), None if id is None else str(id))


def _refuse_unknown(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := next((key for key in content if key not in known), None):
        raise RequestError(f"{where} has the unknown key {unknown!r:.60}; known: {', '.join(known)}")
