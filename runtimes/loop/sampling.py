"""From logits to the next token's id: greedy, or temperature, top-k, top-p and min-p with a seed.

The draws come from SplitMix64, one per token and addressed by the token's index: a generator of five lines that a C
agent on a phone repeats exactly. numpy does not promise that its own streams stay the same in later versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtimes.errors import EngineError
from runtimes.loop.tokens import Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runtimes.engines.engine import Logits

_MASK = (1 << 64) - 1
# top_p usually ends among the first few candidates: sorting 32,064 logits takes 2 ms, finding the best 256 takes 0.2.
_FIRST_CANDIDATES = 256
_MORE_CANDIDATES = 16  # so many times as many where they are too few


def sample(logits: Logits, sampling: Sampling, index: int) -> int:
    """The id of token number `index` (0 is the first new one). Ties go to the lower id.

    Raises EngineError where the logits are not numbers.
    """
    best = int(logits.argmax())
    if not abs(float(logits[best])) < float("inf"):  # argmax finds a NaN, where there is one
        raise EngineError(f"the model's logits are {float(logits[best])}: the artifact or the engine is broken")
    if sampling.temperature == 0:
        return best
    ids, probabilities = _candidates(logits, sampling)
    cumulative = probabilities.cumsum()
    position = int(cumulative.searchsorted(draw(sampling.seed, index) * float(cumulative[-1]), side="right"))
    return int(ids[min(position, len(ids) - 1)])


def draw(seed: int, index: int) -> float:
    """Number `index` of the seed's stream, uniform in [0, 1): SplitMix64 (Steele, Lea, Flood 2014), upper 53 bits."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


def _candidates(logits: Logits, sampling: Sampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The ids that may be drawn, best first, and their weights (not normalised).

    As in transformers: temperature, then top-k, then top-p over what is left, which keeps the token that crosses it;
    then min-p, which drops what is less likely than its share of the likeliest.
    """
    ids, weights = _nucleus(logits, sampling)
    if sampling.min_p is not None:
        kept = weights >= sampling.min_p * weights.max()
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def _nucleus(logits: Logits, sampling: Sampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The ids that temperature, top-k and top-p leave, and their weights."""
    import numpy as np

    def weigh(some: Logits) -> npt.NDArray[np.float64]:
        with np.errstate(over="ignore"):  # at a tiny temperature all but the best are infinitely far away
            weights: npt.NDArray[np.float64] = np.exp((some.astype(np.float64) - highest) / sampling.temperature)
        return weights

    highest = float(logits.max())
    if sampling.top_k is None and sampling.top_p is None:
        return np.arange(len(logits)), weigh(logits)
    count = len(logits) if sampling.top_k is None else min(sampling.top_k, len(logits))
    few = count if sampling.top_p is None else min(count, _FIRST_CANDIDATES)
    ids = best_ids(logits, few)
    weights = weigh(logits[ids])
    if sampling.top_p is None:
        return ids, weights
    # Without top-k the nucleus is a share of all the weight, which is known before anything is sorted.
    total = float(weigh(logits).sum()) if sampling.top_k is None else None
    while few < count and (total is None or float(weights.sum()) < sampling.top_p * total):
        few = count if total is None else min(count, few * _MORE_CANDIDATES)
        ids = best_ids(logits, few)
        weights = weigh(logits[ids])
    if total is None:
        total = float(weights.sum())
    before = weights.cumsum() - weights
    kept = max(1, int((before < sampling.top_p * total).sum()))
    return ids[:kept], weights[:kept]


def best_ids(scores: Logits, count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` highest scores, highest first, ties by index."""
    import numpy as np

    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        above = np.flatnonzero(scores > threshold)
        chosen = np.concatenate([above, np.flatnonzero(scores == threshold)[: count - len(above)]])
    else:
        chosen = np.arange(len(scores))
    return chosen[np.lexsort((chosen, -scores[chosen]))]
