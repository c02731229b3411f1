"""From ids to the text that is shown, piece by piece: whole characters, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from runtimes.text.token_bytes import TokenBytes


class TextJoiner:
    """Joins the tokens' bytes into characters. What is incomplete waits for the next token; bytes that can never
    become a character turn into U+FFFD."""

    def __init__(self, table: TokenBytes, prompt: Sequence[int], *, whole: bool = False) -> None:
        """`prompt` decides about a first space: llama-style tokenizers put one of their own at the start of a text,
        and after a control token; it is not part of the answer. After plain text the space is real. With `whole` it is
        part of the answer in any case."""
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = not whole and table.leading_space and (not prompt or table.is_control(prompt[-1]))

    def add(self, id: int) -> str:
        """The characters that this token completes; often one token's text, sometimes none."""
        data = self._table[id]
        if data and self._drop_space:
            self._drop_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)


@dataclass(frozen=True)
class Scanned:
    """Text that may be shown now, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopScanner:
    """Holds back text that may be the beginning of a stop string.

    The result depends on the characters alone, not on how they were cut into tokens: the stop string that is complete
    first wins, among those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""

    def add(self, text: str) -> Scanned:
        """Text that cannot be part of a stop string any more. After a stop nothing may be added."""
        if not self._stops:
            return Scanned(text)
        text = self._held + text
        ends = [(start + len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, stop = min(ends, key=lambda found: found[0])
            self._held = ""
            return Scanned(text[: end - len(stop)], stop)
        keep = self._possible(text)
        self._held = text[len(text) - keep :]
        return Scanned(text[: len(text) - keep])

    def rest(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """The length of the longest end of the text that is the beginning of a stop string."""
        longest = min(len(text), len(self._stops[0]) - 1)
        for length in range(longest, 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
