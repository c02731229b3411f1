"""The agent protocol's `score`: how probable given ids are at every position of a text (docs/agent-protocol.md).

So that a whole vocabulary never crosses the wire, the host names the ids whose log-probabilities it wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtimes.agent.checks import count, logprob
from runtimes.errors import EngineError, RequestError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import check_ids

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits

DECIMALS = 6  # of a log-probability on the wire


@dataclass(frozen=True)
class ScoreRequest:
    """Read ids[:first], then the others one by one; wanted[n] are the ids to report after ids[:first + n]."""

    ids: Sequence[int]
    first: int
    wanted: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Prediction:
    """What an agent reports of one position."""

    log_probabilities: Sequence[float]  # of the wanted ids, in their order
    top: int  # the id with the highest logit


def open_rows(loop: TokenLoop, request: ScoreRequest) -> Iterator[Logits]:
    """The logits at each position, not yet computed. A `cancel` counts from here on. Raises RequestError."""
    positions = len(request.ids) - request.first + 1
    if len(request.wanted) != positions:
        raise RequestError(
            f"wanted has {len(request.wanted)} lists; after the first {request.first} of {len(request.ids)} ids there "
            f"are {positions} positions; give one list for each"
        )
    for ids in request.wanted:
        check_ids("wanted id", ids, loop.vocab_size)
    return loop.logits_along(request.ids, request.first)


def predict(rows: Iterator[Logits], request: ScoreRequest) -> list[Prediction]:
    """A prediction for each position of `open_rows`. Raises RequestError: it was cancelled, or the engine failed."""
    import numpy as np

    found: list[Prediction] = []
    try:
        for logits, ids in zip(rows, request.wanted, strict=False):
            wide = logits.astype(np.float64)
            peak = wide.max()
            logs = wide[list(ids)] - (peak + np.log(np.exp(wide - peak).sum()))
            if not np.isfinite(peak) or not np.isfinite(logs).all():
                raise RequestError(f"the logits after {request.first + len(found)} ids are not finite; export it again")
            found.append(Prediction([round(float(log), DECIMALS) for log in logs], int(wide.argmax())))
    except EngineError as error:
        raise RequestError(str(error)) from error
    if len(found) < len(request.wanted):
        raise RequestError(f"the score was cancelled after {len(found)} of {len(request.wanted)} positions")
    return found


def score_fields(request: ScoreRequest) -> dict[str, Any]:
    """The keys of a score line."""
    return {"ids": list(request.ids), "first": request.first, "wanted": [list(ids) for ids in request.wanted]}


def scored_fields(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The keys of a scored line."""
    return {
        "log_probabilities": [list(each.log_probabilities) for each in predictions],
        "top": [each.top for each in predictions],
    }


def read_scored(message: dict[str, Any]) -> list[Prediction]:
    """The inverse, of a line from a device. Raises KeyError, TypeError or ValueError."""
    return [
        Prediction([logprob(log) for log in logs], count(top))
        for logs, top in zip(message["log_probabilities"], message["top"], strict=True)
    ]
