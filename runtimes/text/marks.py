"""Which characters of a rendered chat template a caller wrote: marks take the places of the caller's texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtimes.api import ToolCall

# Private-use characters around a text's number.
_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_LIKE_CONTROL = re.compile(r"[<>\[\]|]")  # what the name of every control token has


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text. `trusted` where the template wrote it, not a message."""

    text: str
    trusted: bool


class Marks:
    """Gives a template the caller's texts, or marks in their places, and puts the texts back afterwards.

    Of tools and arguments only the strings that could contain a control token are marked: a template may compare the
    others.
    """

    def __init__(self, trim: Callable[[str], str] | None) -> None:
        """`trim` is what the template does to contents; None: mark nothing."""
        self._trim = trim
        self._texts: list[str] = []
        self.names: list[int] = []  # the numbers of the calls' names

    def content(self, text: str) -> str:
        """A message's content. All of them come first, so that their numbers are the messages'."""
        return text if self._trim is None else self._mark(self._trim(text))

    def call(self, call: ToolCall) -> tuple[str, Any]:
        """A call's name and arguments."""
        if self._trim is None:
            return call.name, call.arguments
        self.names.append(len(self._texts))
        return self._mark(call.name), self.value(call.arguments)

    def value(self, value: Any) -> Any:
        """A part of tools or arguments, which templates write as JSON."""
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if self._trim is None or not isinstance(value, str) or not _LIKE_CONTROL.search(value):
            return value
        return self._mark(json.dumps(value, ensure_ascii=False)[1:-1])

    def pieces(self, marked: str) -> list[Piece]:
        """The marked text with the texts in their places."""
        parts = _MARK.split(marked)
        return [
            self._meant(part) if place % 2 else Piece(part, trusted=True) for place, part in enumerate(parts) if part
        ]

    def _meant(self, number: str) -> Piece:
        """What a mark is for. The template may write what looks like one, with a number that no text has."""
        if len(number) < 10 and int(number) < len(self._texts):
            return Piece(self._texts[int(number)], trusted=False)
        return Piece(f"{_OPEN}{number}{_CLOSE}", trusted=True)

    def is_in(self, marked: str, number: int) -> bool:
        """Whether a text, by its number, has a place in the marked text. An empty one needs none."""
        return self._spelt(number) in marked

    def until(self, marked: str, number: int) -> str:
        """The marked text up to the last place of a text."""
        mark = self._spelt(number)
        return marked[: marked.rindex(mark) + len(mark)]

    def _mark(self, text: str) -> str:
        self._texts.append(text)
        return self._spelt(len(self._texts) - 1)

    def _spelt(self, number: int) -> str:
        return f"{_OPEN}{number}{_CLOSE}" if self._texts[number] else ""
