"""The checkpoint's chat template: what ends a turn, and dialogues as text.

runtimes/text/template.py renders an artifact's, and keeps users' text apart from the template's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoint.files import read_text
from export.errors import CheckpointError
from export.template.limited import LimitedTemplate

TEMPLATE = "chat_template.jinja"
# Tokens that transformers hands to a template by these names.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ANSWER = "an answer"


class TemplateRefusal(Exception):
    """The template has no text for these messages."""


@dataclass(frozen=True)
class Chat:
    """A chat template and the texts it may name. `source` None: the checkpoint has none."""

    source: str | None
    names: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, str]], *, ready: bool = False) -> str:
        """The conversation's text, with `ready` for the assistant's turn. Raises TemplateRefusal, and CheckpointError
        for a template that takes too much time or memory."""
        turns = [dict(message) for message in messages]
        try:
            return self._template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=ready, **self.names
            )
        except (TimeoutError, OverflowError) as error:
            raise CheckpointError(f"the chat template cannot be used: {error}") from error
        except Exception as error:  # the template is a program of somebody else's
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error

    @functools.cached_property
    def _template(self) -> LimitedTemplate:
        assert self.source is not None
        return LimitedTemplate(self.source)

    def after_answer(self) -> str | None:
        """What the template writes behind an assistant's turn; None where it refuses such a conversation."""
        try:
            text = self.render([{"role": "user", "content": "a question"}, {"role": "assistant", "content": _ANSWER}])
        except TemplateRefusal:
            return None
        return text.rpartition(_ANSWER)[2] if _ANSWER in text else None


def read_chat(folder: Path, settings: Mapping[str, Any], made: Mapping[str, str]) -> Chat:
    """The template in chat_template.jinja, else in tokenizer_config.json, whose content is `settings`. It is compiled
    and tried. Raises CheckpointError."""
    names = {name: text for name in NAMED if (text := token_text(settings.get(name))) is not None}
    where, source = folder / "tokenizer_config.json", settings.get("chat_template")
    if TEMPLATE not in made and (folder / TEMPLATE).is_file():
        where = folder / TEMPLATE
        source = read_text(where)
    if isinstance(source, list):  # several by name
        source = next(
            (each.get("template") for each in source if isinstance(each, dict) and each.get("name") == "default"), None
        )
    if source is not None and not isinstance(source, str):
        raise CheckpointError(f"{where}: chat_template is a {type(source).__name__}; it must be text, or be left out")
    chat = Chat(source, names)
    if source is not None:
        try:
            chat.render([{"role": "user", "content": "a question"}], ready=True)
        except TemplateRefusal as refusal:
            raise CheckpointError(
                f"{where}: the chat template cannot be read, or refuses one message of a user ({refusal}); fix it, or "
                "remove it"
            ) from refusal
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}; fix it, or remove it") from error
    return chat


def token_text(value: object) -> str | None:
    """A token of tokenizer_config.json, which may be its text or an object with it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
