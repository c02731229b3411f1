"""Bootstrap: how much a quantile would differ, had other repetitions been made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
MOST_DRAWN = 40_000_000  # samples in all resamplings: 320 MB, half a second
SEED = 20261122


def bootstrap(groups: Sequence[NDArray[np.float64]], quantile: float, seed: int = SEED) -> NDArray[np.float64]:
    """The quantile of RESAMPLES resamplings of the groups. Of very long groups evenly spaced samples are enough."""
    most = max(1, MOST_DRAWN // (RESAMPLES * len(groups)))
    groups = [group[:: -(-group.size // most)] for group in groups]
    picks = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    places = picks + len(groups) * np.arange(RESAMPLES)[:, None]
    times = np.bincount(places.ravel(), minlength=picks.size).reshape(picks.shape)  # that each group was drawn
    # All samples are sorted once. How many of a resampling are at most as long as each follows from their groups.
    pooled, owner = np.concatenate(groups), np.repeat(np.arange(len(groups)), [group.size for group in groups])
    order = np.argsort(pooled, kind="stable")
    ranked, below = pooled[order], np.cumsum(times[:, owner[order]], axis=1, dtype=np.int32)
    place = quantile * (below[:, -1] - 1)
    first = np.floor(place).astype(np.int32)
    low = ranked[(below <= first[:, None]).sum(axis=1)]
    high = ranked[(below <= np.ceil(place).astype(np.int32)[:, None]).sum(axis=1)]
    return np.asarray(low + (high - low) * (place - first))


def interval(estimates: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap estimates."""
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)
