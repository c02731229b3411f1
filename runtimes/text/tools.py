"""Tools: what a chat template is given about them, and the calls in an answer.

Each model has a markup of its own around a call (`<tool_call>`, `<|tool_call|>`). It is made of control tokens, which
have no text. What is left is JSON: objects, or lists of them, with a name and arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtimes.api import Message, ToolCall
from runtimes.errors import RequestError

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}


def check_tools(tools: Sequence[Mapping[str, Any]], choice: str) -> None:
    """Raises RequestError for what is no tool, for two of one name, and for a choice that is none of them."""
    names = []
    for place, tool in enumerate(tools, start=1):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise RequestError(
                f"tool {place} is {tool!r:.60}; give an object with type function, and function with name, description "
                "and parameters"
            )
        assert isinstance(function, Mapping)
        if not isinstance(function.get("parameters", {}), Mapping):
            raise RequestError(f"the parameters of the tool {name!r} are no JSON schema; give an object")
        names.append(name)
    if len(set(names)) < len(names):
        raise RequestError(f"two tools have one name: {', '.join(names)}")
    if choice not in ("auto", *names) and not (choice == "required" and names):
        raise RequestError(f"tool_choice is {choice!r:.60}; allowed: {', '.join(['auto', 'required', *names])}")


def call_schema(tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any] | None:
    """The JSON schema of an answer that must be a call; None where the model may decide."""
    if choice == "auto":
        return None
    functions = [tool["function"] for tool in tools if choice in ("required", tool["function"]["name"])]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or _ANY_ARGUMENTS,
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def may_be_call(text: str) -> bool:
    """Whether an answer that begins so may turn out to be a call."""
    text = text.lstrip()
    return not text or text[0] in "{["


def parse_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    """The calls that an answer consists of; none where any of it is something else."""
    names = {tool["function"]["name"] for tool in tools}
    calls = []
    try:
        for value in _values(text):
            for call in value if isinstance(value, list) else [value]:
                name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
                if isinstance(arguments, str):
                    arguments = json.loads(arguments)
                if name not in names or not isinstance(arguments, dict):
                    return ()
                calls.append(ToolCall(name, arguments))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(calls)


def template_turn(message: Message, content: str, calls: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A message as chat templates read it, with this content and these names and arguments of its calls."""
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return turn


def _values(text: str) -> Iterator[Any]:
    """The JSON values of a text, between which are blanks, commas or semicolons. Raises ValueError."""
    decoder, place = json.JSONDecoder(), 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,;":
            place += 1
        if place == len(text):
            return
        value, place = decoder.raw_decode(text, place)
        yield value
