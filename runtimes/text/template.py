"""The artifact's chat template: messages in, text out, with every character's origin known.

The origin keeps a message from forging a special token: only text that the template itself wrote may contain one.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from export.template.language import CLOCK, clock, writes_date
from export.template.limited import LimitedTemplate
from runtimes.api import Message
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.text.marks import Marks, Piece
from runtimes.text.tools import template_turn

ToolsPlace = Literal["argument", "system message"]


class ChatTemplate:
    """The artifact's chat template, compiled."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """`names` are the texts the template may use: bos_token, eos_token, unk_token, pad_token.

        Raises EngineError where the source is not a template.
        """
        try:
            self._template = LimitedTemplate(source)
            self.writes_date = writes_date(source)
        except Exception as error:  # jinja2's own, and Python's for what jinja2 made of the source
            raise EngineError(
                f"the artifact's chat template cannot be read ({_said(error)}); "
                "give `prompt` or `token_ids`, not messages"
            ) from error
        self._names = dict(names)
        self._now = datetime.datetime.now()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        ready: bool = True,
        continue_last: bool = False,
    ) -> list[Piece]:
        """The conversation as the model expects it, with `ready` for the assistant's turn, or with `continue_last` up
        to the last message's last character.

        Raises RequestError where the template refuses the messages, and UnsupportedError where it leaves one, or the
        tools, out.
        """
        self._now = datetime.datetime.now()  # it is rendered several times, and must give one text
        continue_last = continue_last and messages[-1].content != ""
        ready = ready and not continue_last
        place = self._tools_place(messages, tools, ready)
        text = self._text(Marks(None), messages, tools, place, ready)
        # A template may trim contents, so both forms are tried; whichever gives the same text shows the origins.
        for trim in (str, str.strip):
            marks = Marks(trim)
            marked = self._text(marks, messages, tools, place, ready)
            pieces = marks.pieces(marked)
            if "".join(piece.text for piece in pieces) == text:
                _check_whole(messages, marks, marked)
                return pieces if not continue_last else marks.pieces(marks.until(marked, len(messages) - 1))
        # It rewrites contents: no part of the text is certain to be the template's own.
        raise UnsupportedError(
            "this artifact's chat template rewrites messages, so their text cannot be kept apart from its own; "
            "give `prompt` or `token_ids` instead of messages"
        )

    def _tools_place(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], ready: bool
    ) -> ToolsPlace | None:
        """Where this template reads tools from: where they change its text."""
        if not tools:
            return None
        places: tuple[ToolsPlace, ...] = ("argument", "system message")
        for place in places:
            if self._text(Marks(None), messages, tools, place, ready) != self._text(
                Marks(None), messages, (), place, ready
            ):
                return place
        raise UnsupportedError(
            "this artifact's chat template has no place for tools, so the model would never see them; leave tools out, "
            "or describe them in a message"
        )

    def _text(
        self,
        marks: Marks,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        place: ToolsPlace | None,
        ready: bool,
    ) -> str:
        contents = [marks.content(message.content) for message in messages]
        turns = [
            template_turn(message, content, [marks.call(call) for call in message.tool_calls])
            for message, content in zip(messages, contents, strict=True)
        ]
        shown = marks.value(list(tools)) if tools else None
        if place == "system message":
            # Phi-4-mini's: a system message has the tools as JSON.
            if turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": ""})
            if shown is not None:
                turns[0]["tools"] = json.dumps(shown, ensure_ascii=False)
            shown = None
        try:
            return self._template.render(
                messages=turns,
                tools=shown,
                documents=None,
                add_generation_prompt=ready,
                **self._names,
                **{CLOCK: clock(self._now)},
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise RequestError(f"the artifact's chat template refuses these messages: {_said(error)}") from error


def is_there(folder: Path, name: str, listed: Container[str] | None) -> bool:
    """Whether the folder has this file, and its manifest lists it. `listed` None: there is no manifest."""
    return (listed is None or name in listed) and (folder / name).is_file()


def load_template(
    folder: Path, config: Mapping[str, Any], names: Mapping[str, str], listed: Container[str] | None = None
) -> ChatTemplate | None:
    """The chat template beside a tokenizer: chat_template.jinja, else tokenizer_config.json's; None without one.

    `listed` are the names that may be read; None: all.
    """
    source: object = config.get("chat_template")
    if is_there(folder, "chat_template.jinja", listed):
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(source, list):
        # The older form: several templates by name.
        entries = [entry for entry in source if isinstance(entry, dict)]
        source = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    if source is None:
        return None
    if not isinstance(source, str):
        raise EngineError(f"{folder}: chat_template is a {type(source).__name__}, expected text; export it again")
    return ChatTemplate(source, names)


def _said(error: Exception) -> str:
    """What an error says; its kind where it says nothing."""
    return str(error) or type(error).__name__


def _check_whole(messages: Sequence[Message], marks: Marks, marked: str) -> None:
    """Raises UnsupportedError where the template left out a message or a call."""
    for number, message in enumerate(messages):
        if not marks.is_in(marked, number):
            raise UnsupportedError(
                f"this artifact's chat template has no place for {message.role} messages and would drop one in "
                "silence; put its text into a user message"
            )
    if not all(marks.is_in(marked, number) for number in marks.names):
        raise UnsupportedError(
            "this artifact's chat template has no place for tool calls and would drop one in silence; put what was "
            "called, and what it gave, into messages"
        )
