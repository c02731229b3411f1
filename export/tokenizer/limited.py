"""A loaded tokenizer.json. It comes with the model and may be anyone's: what it makes of a text stays in proportion to
the text, and whatever the library does about it is one kind of error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from export.strict import read_json

MOST_GROWTH = 64  # characters of one character, before they are split or when they are joined; Phi's make 4 at most
_BYTES = 4  # of a character, each a character of byte-level BPE
T = TypeVar("T")


class TokenizerError(Exception):
    """It cannot be loaded, or cannot split this text."""


class LimitedTokenizer:
    """Neither cuts nor pads, whatever tokenizer.json says: as in transformers, that is for callers to ask."""

    def __init__(self, source: str) -> None:
        """`source` is the text of tokenizer.json. Raises TokenizerError."""
        import tokenizers

        self._tokenizer = _guarded(lambda: tokenizers.Tokenizer.from_str(source))
        split = growth(self._tokenizer.normalizer) * growth(self._tokenizer.pre_tokenizer)
        if (most := max(split, growth(self._tokenizer.decoder))) > MOST_GROWTH:
            raise TokenizerError(f"it makes up to {most} characters of one, and at most {MOST_GROWTH} are taken")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's ids. Raises TokenizerError."""
        ids: list[int] = _guarded(lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens)).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens as well. Raises TokenizerError."""
        text: str = _guarded(lambda: self._tokenizer.decode(list(ids), skip_special_tokens=False))
        return text

    def vocabulary(self) -> Mapping[str, int]:
        """The ids of the model's own tokens, without the added ones."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        return ids

    def token_to_id(self, name: str) -> int | None:
        """A token's id, where there is such a token."""
        id: int | None = self._tokenizer.token_to_id(name)
        return id


def read_tokenizer(path: Path) -> LimitedTokenizer:
    """A tokenizer.json as it is. Raises TokenizerError, which names the file."""
    content = read_json(path, TokenizerError, "export the artifact again")
    try:
        return LimitedTokenizer(json.dumps(content))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: cannot be loaded ({error}); export it again") from error


def growth(part: Any) -> int:
    """How many characters a normalizer, a pre-tokenizer or a decoder makes of one, at most, by what tokenizer.json says
    of it."""
    return 1 if part is None else _growth(json.loads(part.__getstate__()))


def _growth(step: dict[str, Any]) -> int:
    most = 1
    for each in next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), ()):
        most *= _growth(each)
    if step["type"] == "ByteLevel":
        most *= _BYTES
    if step["type"] == "Replace":
        most *= max(1, len(step["content"]))
    if step["type"] == "Prepend":
        most *= 1 + len(step["prepend"])
    return most


def _guarded(work: Callable[[], T]) -> T:
    """What the work gives. Raises TokenizerError: the library has no narrower errors than Exception, and where its Rust
    gives up (a pattern that takes too many tries), not even that."""
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(str(error)) from error
