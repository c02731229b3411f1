"""Which bytes of text each id stands for. Bytes, because one character may be spread over several tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from runtimes.errors import EngineError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MOST_IDS = 1 << 22  # 4 million; the largest vocabulary of a published model has 262,144
_FAULT = "the artifact's tokenizer.json is broken at "
_FIX = f"ids go from 0 to {MOST_IDS - 1}; export the artifact again"
_BYTE_NAMES = {f"<0x{value:02X}>": bytes([value]) for value in range(256)}


def control_names(content: Mapping[str, Any]) -> list[str]:
    """The control tokens of a tokenizer.json: the special ones, and those marked as plain but written as markup
    (Phi-3's `</s>`, Phi-4-mini's `<|tool_call|>`)."""
    return [
        token["content"]
        for token in content.get("added_tokens", ())
        if token["special"] or re.fullmatch(r"<\S+>|\[[A-Z_/]+\]", token["content"])
    ]


def hidden_names(content: Mapping[str, Any], config: Mapping[str, Any]) -> set[str]:
    """The tokens that have no text when they are written, as in transformers: the special ones, by tokenizer.json or by
    tokenizer_config.json, whose content is `config`. Others, such as Phi-4-mini's `<|tool_call|>`, are shown."""
    names = {token["content"] for token in content.get("added_tokens") or () if token.get("special")}
    table = config.get("added_tokens_decoder")
    entries = [entry for entry in (table.values() if isinstance(table, dict) else ()) if isinstance(entry, dict)]
    names |= {str(entry.get("content")) for entry in entries if entry.get("special")}
    extra = config.get("extra_special_tokens")  # by names; a mere list changes nothing there
    tokens = [*(config.get(key) for key in NAMED), *(extra.values() if isinstance(extra, dict) else ())]
    named = _texts(token.get("content") if isinstance(token, dict) else token for token in tokens)
    # transformers adds the tokens that are named to those of the table, where there is one, only if they are in it.
    known = _texts(entry.get("content") for entry in entries) if entries else named
    return names | (named & known)


def _texts(values: Iterable[object]) -> set[str]:
    return {value for value in values if isinstance(value, str)}


def check_content(content: Mapping[str, Any]) -> None:
    """Whether tokenizer.json's content has the parts that we read. Raises EngineError: what is wrong, and where."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = content.get("added_tokens", [])
    if isinstance(vocab, dict):
        sound = all(is_id(id) for id in vocab.values())
    else:
        sound = isinstance(vocab, list) and all(_is_scored(entry) for entry in vocab)
    if not sound:
        raise EngineError(f"{_FAULT}model.vocab: expected ids by names, or names with scores; {_FIX}")
    if not isinstance(added, list) or not all(_is_added(token) for token in added):
        raise EngineError(f"{_FAULT}added_tokens: expected a list of tokens with id, content and special; {_FIX}")


def is_id(value: object) -> bool:
    """Whether this can be a token's id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_IDS


def _is_scored(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _is_added(token: object) -> bool:
    return (
        isinstance(token, dict)
        and is_id(token.get("id"))
        and isinstance(token.get("content"), str)
        and isinstance(token.get("special"), bool)
    )


class TokenBytes:
    """A table from id to bytes for the two families of tokenizers that Phi models have.

    Byte-level BPE (Phi-3-small, Phi-4-mini, ours): each character of a token is a byte. Llama-style (Phi-3-mini,
    medium, 3.5): "▁" is a space and `<0xE2>` a byte. Hidden tokens have no text.
    """

    def __init__(self, content: Mapping[str, Any], control: Collection[str], hidden: Collection[str]) -> None:
        """`content` is tokenizer.json; see control_names and hidden_names. Raises EngineError for a decoder that we do
        not know."""
        to_bytes, self.leading_space = _decoder(content.get("decoder"))
        vocab, added = content["model"]["vocab"], content.get("added_tokens", ())
        names = dict(vocab) if isinstance(vocab, dict) else {entry[0]: id for id, entry in enumerate(vocab)}
        self._table: list[bytes] = [b""] * (1 + max([-1, *names.values(), *(t["id"] for t in added)]))
        for name, id in names.items():
            self._table[id] = b"" if name in hidden else to_bytes(name)
        self._control = set()
        for token in added:
            self._table[token["id"]] = b"" if token["content"] in hidden else token["content"].encode()
            if token["content"] in control:
                self._control.add(token["id"])

    def __getitem__(self, id: int) -> bytes:
        # A model's vocabulary may be padded beyond the tokenizer's: such ids have no text.
        return self._table[id] if id < len(self._table) else b""

    def is_control(self, id: int) -> bool:
        """Whether the id is a control token, one that only a template or the model itself can write."""
        return id in self._control


def _decoder(decoder: Any) -> tuple[Callable[[str], bytes], bool]:
    """How a token's name becomes bytes, and whether a text's first space is the tokenizer's own, not the text's."""
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "ByteLevel":
        return _byte_level, False
    if kind == "Metaspace":
        return _metaspace, decoder.get("prepend_scheme", "always") != "never"
    if kind == "Sequence":
        decoders = decoder.get("decoders")
        steps = (
            [str(step.get("type")) for step in decoders if isinstance(step, dict)] if isinstance(decoders, list) else []
        )
        if steps == ["ByteLevel"]:
            return _byte_level, False
        if steps[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[3:] in ([], ["Strip"]):
            return _metaspace, steps[3:] == ["Strip"]
        kind = f"Sequence of {', '.join(steps)}"
    raise EngineError(
        f"the artifact's tokenizer.json has the decoder {kind}; known: ByteLevel, Metaspace, and the Sequence of "
        "Replace, ByteFallback, Fuse and Strip"
    )


def _byte_level(name: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in name)
    except KeyError:
        return name.encode()


def _metaspace(name: str) -> bytes:
    return _BYTE_NAMES.get(name) or name.replace("▁", " ").encode()


def _byte_characters() -> list[str]:
    """GPT-2's table: printable bytes are their own Latin-1 character, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(value if value in printable else next(others)) for value in range(256)]


BYTE_CHARACTERS = _byte_characters()  # a byte's character in the tokens of byte-level BPE
_BYTE_OF_CHARACTER = {character: value for value, character in enumerate(BYTE_CHARACTERS)}
