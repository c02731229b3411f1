"""The checkpoint's chat template, as transformers reads and renders it: what ends a turn, and dialogues as text.

The runtimes render with an environment of their own (runtimes/text/template.py), which keeps users' text apart.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoint.files import read_text
from export.errors import CheckpointError

TEMPLATE = "chat_template.jinja"
# Tokens that transformers hands to a template by these names.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
RENDER_LIMIT_S = 20.0  # a template is a program; rendering takes some milliseconds
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
        for a template that does not end."""
        import transformers.utils.chat_template_utils  # noqa: F401 - here, so that the limit is the template's own

        assert self.source is not None
        found: list[str | Exception] = []
        # A thread that is still busy at the limit is left to its loop, which ends with this process.
        worker = threading.Thread(target=self._render, args=([dict(message) for message in messages], ready, found))
        worker.daemon = True
        worker.start()
        worker.join(RENDER_LIMIT_S)
        if not found:
            raise CheckpointError(f"the chat template is still busy after {RENDER_LIMIT_S:.0f} s: it may have no end")
        if isinstance(found[0], Exception):
            raise TemplateRefusal(f"{type(found[0]).__name__}: {found[0]}") from found[0]
        return found[0]

    def _render(self, messages: list[dict[str, str]], ready: bool, found: list[str | Exception]) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                [messages], chat_template=self.source, add_generation_prompt=ready, **self.names
            )
            found.append(str(texts[0]))
        except Exception as error:  # the template is a program of somebody else's
            found.append(error)

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
