"""How one request chooses its tokens: penalties, then the draw; and what the model itself thought of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtimes.loop.penalties import Penalties
from runtimes.loop.sampling import best_ids, sample
from runtimes.loop.tokens import TokenRequest

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits

DECIMALS = 6  # of a log-probability


@dataclass(frozen=True)
class Choice:
    """An id, its log-probability, and the likeliest ids with theirs, as far as the request wants to know."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses a request's tokens one after the other. A chosen id counts as part of the answer."""

    def __init__(self, request: TokenRequest) -> None:
        self._sampling = request.sampling
        self._logprobs = request.logprobs
        self._penalties = Penalties(request.sampling, request.ids)
        self._count = 0

    def choose(self, logits: Logits) -> Choice:
        """The next id, from the engine's logits, float32 [vocab], which stay as they are. Raises EngineError."""
        id = sample(self._penalties.apply(logits), self._sampling, self._count)
        self._penalties.add(id)
        self._count += 1
        return Choice(id) if self._logprobs is None else _judged(id, logits, self._logprobs)


def _judged(id: int, logits: Logits, count: int) -> Choice:
    """With log-probabilities of the model's own distribution, before penalties, temperature and cuts."""
    import numpy as np

    wide = logits.astype(np.float64)
    highest = wide.max()
    total = highest + np.log(np.exp(wide - highest).sum())

    def logprob(some: int) -> float:
        return round(float(wide[some] - total), DECIMALS)

    return Choice(id, logprob(id), tuple((int(one), logprob(one)) for one in best_ids(logits, count)) if count else ())
