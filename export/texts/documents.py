"""Documents to score or to calibrate on: a plain text file, or JSON lines.

A line is {"kind": KIND, "text": TEXT}, or {"kind": "chat", "messages": [{"role": ROLE, "content": TEXT}, ...]}, which
goes through a model's own chat template. `kind` may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from export.errors import OptionError
from export.strict import parse_json
from export.texts.lines import parse_lines, read_text

Role = Literal["system", "user", "assistant"]
ROLES: Sequence[Role] = get_args(Role)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """Exactly one of `text` and `turns` is there."""

    kind: str
    text: str | None = None
    turns: Sequence[Turn] | None = None


def read_documents(path: Path) -> list[Document]:
    """All documents of a file: JSON lines where its name ends in .jsonl or it begins with one, else one document.

    Raises OptionError.
    """
    text = read_text(path)
    if path.suffix.lower() != ".jsonl" and not _begins_with_document(text):
        return [Document(kind="text", text=text)]
    documents = [_document(content, where) for where, content in parse_lines(text, path)]
    if not documents:
        raise OptionError(f'{path}: has no documents; give a line such as {{"text": "..."}}')
    return documents


def _begins_with_document(text: str) -> bool:
    """Whether the first line is one of JSON lines, such as a pipe has them, or a file of another name."""
    first = text.lstrip().partition("\n")[0]
    try:
        content = parse_json(first.encode()) if first.startswith("{") else None
    except ValueError:
        return False
    return isinstance(content, dict) and ("text" in content or "messages" in content)


def _document(content: dict[str, Any], where: str) -> Document:
    kind = content.get("kind", "chat" if "messages" in content else "text")
    if not isinstance(kind, str):
        raise OptionError(f"{where}: kind is {kind!r:.60}; give a text, or leave it out")
    if ("text" in content) == ("messages" in content):
        raise OptionError(f"{where}: has the keys {', '.join(content) or 'none'}; give one of text and messages")
    if "messages" in content:
        return Document(kind=kind, turns=_turns(content["messages"], where))
    if not isinstance(content["text"], str):
        raise OptionError(f"{where}: text is {content['text']!r:.60}; give a text")
    return Document(kind=kind, text=content["text"])


def _turns(messages: object, where: str) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise OptionError(f"{where}: messages is {messages!r:.60}; give a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise OptionError(f"{where}: messages contains {message!r:.60}; each needs a role and a content")
        if message.get("role") not in ROLES:
            raise OptionError(f"{where}: messages has the role {message.get('role')!r}; allowed: {', '.join(ROLES)}")
    return [Turn(message["role"], message["content"]) for message in messages]
