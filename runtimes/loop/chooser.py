"""How one request chooses its tokens: penalties, grammar, the draw; and what the model itself thought of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtimes.loop.penalties import Penalties
from runtimes.loop.sampling import best_ids, sample
from runtimes.loop.tokens import TokenRequest

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits
    from runtimes.loop.grammar import Matcher

DECIMALS = 6  # of a log-probability


@dataclass(frozen=True)
class Choice:
    """An id, its log-probability, and the likeliest ids with theirs, as far as the request wants to know."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses a request's tokens one after the other. A chosen id counts as part of the answer."""

    def __init__(self, request: TokenRequest, matcher: Matcher | None = None) -> None:
        """`matcher` is that of the request's grammar."""
        self._matcher = matcher
        self._sampling = request.sampling
        self._logprobs = request.logprobs
        self._penalties = Penalties(request.sampling, request.ids)
        self._count = 0

    def choose(self, logits: Logits) -> Choice:
        """The next id, from the engine's logits, float32 [vocab], which stay as they are. Raises EngineError."""
        allowed = self._penalties.apply(logits)
        if self._matcher is not None:
            allowed = self._matcher.mask(allowed)
        id = sample(allowed, self._sampling, self._count)
        if self._matcher is not None:
            self._matcher.take(id)
        self._add(id)
        return Choice(id) if self._logprobs is None else _judged(id, logits, self._logprobs)

    def forced(self) -> Sequence[Choice]:
        """What must follow whatever the model says, by the grammar. Nothing where log-probabilities are asked for,
        because these ids get no logits."""
        if self._matcher is None or self._logprobs is not None or self._matcher.complete:
            return ()
        ids = self._matcher.forced()
        for id in ids:
            self._add(id)
        return [Choice(id) for id in ids]

    @property
    def complete(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._matcher is not None and self._matcher.complete

    def _add(self, id: int) -> None:
        self._penalties.add(id)
        self._count += 1


def _judged(id: int, logits: Logits, count: int) -> Choice:
    """With log-probabilities of the model's own distribution, before penalties, temperature and cuts."""
    import numpy as np

    wide = logits.astype(np.float64)
    highest = wide.max()
    total = highest + np.log(np.exp(wide - highest).sum())

    def logprob(some: int) -> float:
        return round(float(wide[some] - total), DECIMALS)

    return Choice(id, logprob(id), tuple((int(one), logprob(one)) for one in best_ids(logits, count)) if count else ())
