"""The types of a request's fields, as a caller gives them: a wrong one is a RequestError, never a TypeError later.

What the fields say together is checked in request.py, the ranges of numbers in runtimes.loop.tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from runtimes.api import GenerateRequest
from runtimes.errors import RequestError
from runtimes.loop.tokens import is_real, is_whole

_TEXTS = ("prompt", "session", "regex", "lark")
_SWITCHES = ("ignore_stop_ids", "continue_last", "speculate")


def typed(request: GenerateRequest) -> GenerateRequest:
    """The same request, its sequences as lists, its ids as plain ints. Raises RequestError."""
    if not isinstance(request, GenerateRequest):
        raise RequestError(f"the request is {_show(request)}; give a GenerateRequest")
    for name in _TEXTS:
        if not isinstance(getattr(request, name), str | None):
            raise RequestError(f"{name} is {_show(getattr(request, name))}; give a text, or leave it out")
    for name in _SWITCHES:
        if not isinstance(getattr(request, name), bool):
            raise RequestError(f"{name} is {_show(getattr(request, name))}; give True or False")
    if request.deadline_s is not None and not is_real(request.deadline_s):
        raise RequestError(f"deadline_s is {_show(request.deadline_s)}; give a number of seconds, or leave it out")
    return dataclasses.replace(
        request,
        messages=None if request.messages is None else _list("messages", request.messages),
        token_ids=None if request.token_ids is None else _ids("token_ids", request.token_ids),
        tools=_list("tools", request.tools),
        stop=_texts("stop", request.stop),
        stop_ids=_ids("stop_ids", request.stop_ids),
    )


def _ids(name: str, value: object) -> list[int]:
    ids = _list(name, value)
    for id in ids:
        if not is_whole(id):
            raise RequestError(f"{name} contains {_show(id)}; give whole numbers")
    return [int(id) for id in ids]


def _texts(name: str, value: object) -> list[str]:
    texts = _list(name, value)
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} is {_show(value)}; give a list of texts")
    return texts


def _list(name: str, value: object) -> list[Any]:
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise RequestError(f"{name} is {_show(value)}; give a list")
    return list(value)


def _show(value: object) -> str:
    return f"{value!r:.60}"
