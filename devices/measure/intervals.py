"""Bootstrap: how much a quantile would differ, had other repetitions been made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
MOST_DRAWN = 40_000_000  # samples in all resamplings: 320 MB, half a second
SEED = 20261122
Samples = NDArray[np.float64]
Counts = NDArray[np.int64]


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
    ranked, ranks = pooled[order], np.cumsum(owner[order][:, None] == np.arange(len(groups)), axis=0)
    place = quantile * (times @ ranks[-1] - 1)
    low, high = (ranked[_first_beyond(whole(place), times, ranks)] for whole in (np.floor, np.ceil))
    return np.asarray(low + (high - low) * (place - np.floor(place)))


def _first_beyond(place: Samples, times: Counts, ranks: Counts) -> Counts:
    """Of each resampling the first sample in order up to which it has more than `place` samples: by halving."""
    first, last = np.zeros(len(place), dtype=np.int64), np.full(len(place), len(ranks) - 1)
    while (first < last).any():
        middle = (first + last) // 2
        beyond = np.einsum("ij,ij->i", times, ranks[middle]) > place
        first, last = np.where(beyond, first, middle + 1), np.where(beyond, middle, last)
    return first


def interval(estimates: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap estimates."""
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)
