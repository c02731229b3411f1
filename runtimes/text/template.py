"""The artifact's chat template: messages in, text out, with every character's origin known.

The origin keeps a message from forging a special token: only text that the template itself wrote may contain one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes.api import Message
from runtimes.errors import EngineError, RequestError, UnsupportedError

if TYPE_CHECKING:
    import jinja2

ROLES = ("system", "user", "assistant")
# Private-use characters around a message's number stand for its content while the template runs.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text. `trusted` where the template wrote it, not a message."""

    text: str
    trusted: bool


class ChatTemplate:
    """A compiled chat template. It runs in jinja2's sandbox: it comes with the model and may be anyone's."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """`names` are the texts the template may use: bos_token, eos_token, unk_token, pad_token.

        Raises EngineError where the source is not a template.
        """
        import jinja2

        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise EngineError(f"the artifact's chat template cannot be read ({error}); export it again") from error
        self._names = dict(names)

    def render(self, messages: Sequence[Message], *, ready: bool = True) -> list[Piece]:
        """The conversation as the model expects it, with `ready` for the assistant's turn.

        Raises RequestError where the template refuses the messages, and UnsupportedError where it leaves one out.
        """
        _check(messages)
        text = self._text([message.content for message in messages], messages, ready)
        # A template may trim contents, so both forms are tried; whichever gives the same text shows the origins.
        for contents in (
            [message.content for message in messages],
            [message.content.strip() for message in messages],
        ):
            marks = [f"{_OPEN}{index}{_CLOSE}" if content else "" for index, content in enumerate(contents)]
            marked = self._text(marks, messages, ready)
            pieces = _pieces(marked, contents)
            if "".join(piece.text for piece in pieces) == text:
                _check_whole(messages, marks, marked)
                return pieces
        # It rewrites contents: no part of the text is certain to be the template's own.
        raise UnsupportedError(
            "this artifact's chat template rewrites messages, so their text cannot be kept apart from its own; "
            "give `prompt` or `token_ids` instead of messages"
        )

    def _text(self, contents: Sequence[str], messages: Sequence[Message], ready: bool) -> str:
        import jinja2

        turns = [
            {"role": message.role, "content": content} for message, content in zip(messages, contents, strict=True)
        ]
        try:
            return self._template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=ready, **self._names
            )
        except jinja2.TemplateError as error:
            raise RequestError(f"the artifact's chat template refuses these messages: {error}") from error


def load_template(folder: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template beside a tokenizer: chat_template.jinja, else tokenizer_config.json's; None without one."""
    path = folder / "chat_template.jinja"
    source: object = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):
        # The older form: several templates by name.
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if source is None:
        return None
    if not isinstance(source, str):
        raise EngineError(f"{folder}: chat_template is a {type(source).__name__}, expected text; export it again")
    return ChatTemplate(source, names)


def _environment() -> jinja2.Environment:
    """As transformers sets it up, so that the same template gives the same text."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes what HTML would misread.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise RequestError("messages is empty; give at least one message")
    for message in messages:
        if message.role not in ROLES:
            raise RequestError(f"a message has the role {message.role!r}; allowed: {', '.join(ROLES)}")


def _pieces(marked: str, contents: Sequence[str]) -> list[Piece]:
    """Put the contents back in the places of their marks."""
    parts = _PLACEHOLDER.split(marked)
    return [
        Piece(contents[int(part)], trusted=False) if place % 2 else Piece(part, trusted=True)
        for place, part in enumerate(parts)
        if part
    ]


def _check_whole(messages: Sequence[Message], marks: Sequence[str], marked: str) -> None:
    for message, mark in zip(messages, marks, strict=True):
        if mark not in marked:
            raise UnsupportedError(
                f"this artifact's chat template has no place for {message.role} messages and would drop one in "
                "silence; put its text into a user message"
            )
