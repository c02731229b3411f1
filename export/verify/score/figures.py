"""Figures with their 95 % intervals. Pure numpy: it knows no model and no text.

Tokens of one block depend on one another, so the intervals of perplexity, KL and top-1 are bootstrapped over whole
blocks. They are drawn within each kind of text, since the mixture of kinds is part of the text and not of chance; a
kind of few blocks, which say little about how much its blocks differ, is drawn together with the next larger one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
LEAST_BLOCKS = 5  # fewer say too little about how much blocks differ
SEED = 20261126
DEVIATIONS = 1.959964  # of a normal distribution, in the middle 95 %


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; `low` and `high` are None where there are too few blocks for one."""

    value: float
    low: float | None
    high: float | None


def block_mean(
    blocks: Sequence[Floats], kinds: Sequence[str], shown: Callable[[Floats], Floats] = lambda mean: mean
) -> Figure:
    """The mean over all tokens, `blocks` being one array of tokens' values for each block.

    `shown` maps the mean to the figure, such as np.exp for a perplexity; it must not decrease.
    """
    sums = np.array([block.sum() for block in blocks])
    counts = np.array([block.size for block in blocks], dtype=np.float64)
    value = float(shown(np.asarray(sums.sum() / counts.sum())))
    if len(blocks) < LEAST_BLOCKS:
        return Figure(value, None, None)
    generator = np.random.default_rng(SEED)
    summed, counted = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for members in strata(kinds):
        drawn = members[generator.integers(members.size, size=(RESAMPLES, members.size))]
        summed += sums[drawn].sum(axis=1)
        counted += counts[drawn].sum(axis=1)
    low, high = shown(np.quantile(summed / counted, [0.025, 0.975]))
    # A draw of identical blocks gives identical means; rounding must not put the value outside.
    return Figure(value, min(float(low), value), max(float(high), value))


def strata(kinds: Sequence[str]) -> list[NDArray[np.int64]]:
    """The places of the blocks that are drawn together: at least LEAST_BLOCKS, where there are so many at all."""
    places = [[place for place, kind in enumerate(kinds) if kind == each] for each in dict.fromkeys(kinds)]
    found: list[list[int]] = []
    for members in sorted(places, key=len):
        if found and len(found[-1]) < LEAST_BLOCKS:
            found[-1] += members
        else:
            found.append(members)
    if len(found) > 1 and len(found[-1]) < LEAST_BLOCKS:
        found[-2:] = [found[-2] + found[-1]]
    return [np.array(members) for members in found]


def wilson(right: int, asked: int) -> Figure:
    """A share and Wilson's interval, which is good for few questions and for shares near 0 and 1, too."""
    share, squared = right / asked, DEVIATIONS**2
    middle = (share + squared / (2 * asked)) / (1 + squared / asked)
    reach = DEVIATIONS / (1 + squared / asked) * math.sqrt(share * (1 - share) / asked + squared / (4 * asked**2))
    return Figure(share, max(0.0, middle - reach), min(1.0, middle + reach))
