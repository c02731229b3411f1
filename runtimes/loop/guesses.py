"""Prompt lookup: guesses at what comes next, from what was there before. Speculation without a second model.

A guess costs little beside a token, because the weights are read once for all that one forward checks. The tokens are
those of plain decoding: each is chosen from its own logits, and at the first that was guessed otherwise the rest of the
guesses are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits

SHORTEST = 2  # so many ids must be the same before something is guessed
LONGEST = 16  # more of them make a guess no better
PLACES = 16  # so many earlier places are compared, the latest first
FEWEST = 2  # guesses that are worth a forward
# In twenty answers of a model of 135 M parameters the next id was the one after the earlier run in half of the cases
# where two ids were the same, and in 96 of 100 where eight were. So a longer run is followed further.
GUESSES_PER_ID = 2  # for each id of the run beyond the first

# What guessing may lose, in forwards of one token. The cost of a guess is a constant and not measured while it runs, so
# that the same request always gives the same tokens, on an engine too that rounds several tokens differently from one.
# On two cores of a server it is 0.2 for Phi-3-mini and 0.3 for a model of 135 M parameters.
COST = 0.3
FIRST_CREDIT, MOST_CREDIT = 2.0, 8.0
CREDIT_PER_TOKEN = 0.005


class Guesses:
    """One answer's guesses: what to guess, whether it pays, and the logits that came with those that were right."""

    def __init__(self, ids: list[int]) -> None:
        """`ids`: the prompt. The caller appends the answer to this list as it grows."""
        self.proposed = self.accepted = 0
        self._ids = ids
        self._places: dict[tuple[int, ...], list[int]] = {}  # a run of SHORTEST ids -> where it has ended
        self._indexed = SHORTEST  # runs that end before this are in _places
        self._credit = Credit()
        self._begin = len(ids)  # how many ids there were when `_guessed` was guessed
        self._guessed: Sequence[int] = ()
        self._rows: Logits | None = None

    def propose(self, most: int) -> list[int]:
        """What may follow, at most `most` ids; none where nothing is known, or where guessing does not pay."""
        most = min(most, self._credit.most())
        return self._look_up(most) if most >= FEWEST else []

    def check(self, guessed: Sequence[int], rows: Logits) -> None:
        """The engine has computed these guesses: `rows` are the logits before the first and after each of them."""
        self._begin, self._guessed, self._rows = len(self._ids), guessed, rows
        self.proposed += len(guessed)

    def next_logits(self) -> Logits | None:
        """The logits after the last id, where right guesses led to it. None: they are not computed yet."""
        if self._rows is None or self.agreed < len(self._ids):
            return None
        row: Logits = self._rows[self.agreed - self._begin]
        return row

    def cut(self) -> None:
        """Drop what was guessed for after the last id. What follows is computed together with ids that a grammar
        forces, as without guesses: to the bit."""
        self._guessed = self._guessed[: len(self._ids) - self._begin]

    @property
    def agreed(self) -> int:
        """How many ids, from the first on, are what the engine computed: all of them, or those before a wrong guess."""
        if self._rows is None:
            return len(self._ids)
        right = 0
        for guess, id in zip(self._guessed, self._ids[self._begin :], strict=False):
            if guess != id:
                break
            right += 1
        return self._begin + right

    def end_check(self) -> int:
        """Count which guesses were right, forget them, and return `agreed`: the engine has to forget the rest."""
        agreed = self.agreed
        if self._rows is not None:
            right = agreed - self._begin
            self.accepted += right
            self._credit.count(len(self._guessed), right)
        self._credit.earn(len(self._ids) - self._begin)
        self._begin, self._guessed, self._rows = len(self._ids), (), None
        return agreed

    def _look_up(self, most: int) -> list[int]:
        """What followed the longest earlier run of the same ids, the more the longer it is; of equals, the latest."""
        ids, end = self._ids, len(self._ids)
        for place in range(self._indexed, end):  # nothing follows the run that ends at `end`
            self._places.setdefault(tuple(ids[place - SHORTEST : place]), []).append(place)
        self._indexed = max(self._indexed, end)
        best, found = 0, end
        for place in reversed(self._places.get(tuple(ids[-SHORTEST:]), [])[-PLACES:]):
            same = SHORTEST
            while same < min(LONGEST, place) and ids[place - same - 1] == ids[end - same - 1]:
                same += 1
            if same > best:
                best, found = same, place
        return ids[found : found + min(most, GUESSES_PER_ID * (best - 1))]


class Credit:
    """Whether guessing pays. Right guesses earn credit, each guess costs some, and without credit none is made."""

    def __init__(self) -> None:
        self._credit = FIRST_CREDIT
        self._next = FEWEST

    def most(self) -> int:
        """How many guesses to make now."""
        return min(self._next, int(self._credit / COST))

    def count(self, guessed: int, right: int) -> None:
        """Twice as many where all were right; else one more than were right."""
        self._credit += right - COST * guessed
        self._next = max(FEWEST, self._next, 2 * guessed) if right == guessed else max(FEWEST, right + 1)

    def earn(self, tokens: int) -> None:
        """Each token allows a small loss."""
        self._credit = min(MOST_CREDIT, self._credit + CREDIT_PER_TOKEN * tokens)
