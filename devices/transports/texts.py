"""Texts and token ids on the host, for a runner on a device that takes text: by the artifact's tokenizer, limited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from export.tokenizer.limited import TokenizerError, read_tokenizer
from runtimes.errors import EngineError, UnsupportedError


class Texts:
    """Raises UnsupportedError where the tokenizer cannot do it."""

    def __init__(self, tokenizer: Path) -> None:
        """`tokenizer` is a tokenizer.json. Raises EngineError where it cannot be loaded."""
        try:
            self._tokenizer = read_tokenizer(tokenizer)
        except TokenizerError as error:
            raise EngineError(str(error)) from error

    def encode(self, text: str) -> list[int]:
        """The text's ids, and no others around them."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except TokenizerError as error:
            raise UnsupportedError(
                f"the artifact's tokenizer cannot split this text ({error}); use the agent, which takes ids"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with the control tokens' names."""
        try:
            return self._tokenizer.decode(ids)
        except TokenizerError as error:
            raise UnsupportedError(
                f"the artifact's tokenizer cannot write these ids ({error}); use the agent, which takes ids"
            ) from error

    def vocabulary(self) -> Mapping[str, int]:
        """See LimitedTokenizer.vocabulary."""
        return self._tokenizer.vocabulary()
