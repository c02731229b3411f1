"""Text to ids and ids to bytes, by the tokenizer.json in the artifact.

A control token (`<|end|>`, `<s>`, ...) is read as one only where the chat template wrote it. In a prompt or a message
the same characters are plain text, so nobody can forge the end of a turn.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.strict import read_json
from export.tokenizer.limited import LimitedTokenizer, TokenizerError
from runtimes.api import Message
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.text.marks import Piece
from runtimes.text.template import is_there, load_template
from runtimes.text.token_bytes import TokenBytes, check_content, control_names, hidden_names

_CONFIG = "tokenizer_config.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """The artifact's tokenizer and chat template.

    The names of control tokens are replaced, in the tokenizer itself, by random ones that are drawn anew each time it
    is loaded; then the template's own text is the only one that can be given them. All else, ids included, is as in
    tokenizer.json, so ordinary text gives exactly the ids that transformers gives.
    """

    def __init__(self, folder: Path, listed: Container[str] | None = None) -> None:
        """Read tokenizer.json, tokenizer_config.json and the chat template. `listed` are the names that may be read: an
        artifact's files. None, for a checkpoint: whatever is there. Raises EngineError."""
        if listed is not None and "tokenizer.json" not in listed:
            raise EngineError(f"{folder}: its manifest lists no tokenizer.json; export the artifact again")
        content = _read(folder / "tokenizer.json")
        check_content(content)
        config = _read(folder / _CONFIG) if is_there(folder, _CONFIG, listed) else {}
        self._private = _private_names(content)
        names = {name: text for name in _NAMED if (text := _text(config.get(name))) is not None}
        self._template, self._fault = None, None
        try:
            self._template = load_template(folder, config, names, listed)
        except EngineError as error:  # no reason to refuse prompts and token ids
            self._fault = error
        self.bytes = TokenBytes(content, set(self._private), hidden_names(content, config))
        control = "|".join(re.escape(name) for name in sorted(self._private, key=len, reverse=True))
        self._control = re.compile(control) if control else None
        _rename(content, self._private)
        try:
            self._tokenizer = LimitedTokenizer(json.dumps(content))
        except TokenizerError as error:
            raise EngineError(f"{folder / 'tokenizer.json'}: cannot be loaded ({error}); export it again") from error
        # As in transformers, the config's setting takes precedence over the tokenizer's own post-processor.
        self._explicit = "add_bos_token" in config or "add_eos_token" in config
        bos = self._id(names.get("bos_token")) if config.get("add_bos_token") else None
        self._bos = [] if bos is None else [bos]

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a plain text, with the begin token where the artifact's config asks for one."""
        _check_text("prompt", text)
        return self._bos + self._encode(text, special=not self._explicit)

    @property
    def has_template(self) -> bool:
        """Whether the artifact has a chat template, even one that cannot be read."""
        return self._template is not None or self._fault is not None

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        ready: bool = True,
        continue_last: bool = False,
    ) -> list[int]:
        """The ids of a conversation put through the chat template, with `ready` for the assistant's turn, or with
        `continue_last` in the middle of the last message.

        Raises UnsupportedError where the artifact has no template, EngineError where it cannot be read, RequestError
        where it refuses the messages.
        """
        if self._fault is not None:
            raise self._fault
        if self._template is None:
            raise UnsupportedError("this artifact has no chat template; give `prompt` or `token_ids`, not messages")
        for message in messages:
            _check_text("a message", message.content)
        pieces = self._template.render(messages, tools=tools, ready=ready, continue_last=continue_last)
        text = "".join(self._open(piece) for piece in pieces)
        return self._encode(text, special=False)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except TokenizerError as error:
            raise RequestError(
                f"the artifact's tokenizer cannot split this text ({error}); give another one, or `token_ids`"
            ) from error

    def _open(self, piece: Piece) -> str:
        """The piece's text, with the control tokens in it spelt by their private names if the template wrote it."""
        if not piece.trusted or self._control is None:
            return piece.text
        return self._control.sub(lambda match: self._private[match.group()], piece.text)

    def _id(self, name: str | None) -> int | None:
        if name is None:
            return None
        return self._tokenizer.token_to_id(self._private.get(name, name))


def _private_names(content: Mapping[str, Any]) -> dict[str, str]:
    """Control tokens and their private names."""
    secret = secrets.token_hex(8)
    return {name: f"\ue000{secret}:{index}\ue001" for index, name in enumerate(control_names(content))}


def _rename(content: dict[str, Any], private: Mapping[str, str]) -> None:
    """Give control tokens their private names, everywhere a name could make text match, and keep every id."""
    for token in content.get("added_tokens", ()):
        token["content"] = private.get(token["content"], token["content"])
    model = content["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {private.get(name, name): id for name, id in vocab.items()}
    else:
        model["vocab"] = [[private.get(name, name), score] for name, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = private.get(model["unk_token"], model["unk_token"])


def _check_text(where: str, text: str) -> None:
    # A lone surrogate has no UTF-8 form and would fail deep in the tokenizer.
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise RequestError(f"{where} contains half of a surrogate pair, which is not text; send valid Unicode")


def _text(token: object) -> str | None:
    """A token as tokenizer_config.json writes it: text, or an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, EngineError, "export the artifact again")
    if not isinstance(content, dict):
        raise EngineError(f"{path}: expected an object, saw {type(content).__name__}; export the artifact again")
    return content
