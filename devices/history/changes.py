"""Change points: from which night on a metric has another level. Single outliers are none.

Candidates are those of ruptures' exact search (KernelCPD: least squares with a penalty for each change). As in Apache
Otava ("Hunter: Using Change Point Detection to Hunt for Performance Regressions", ICPE 2023), the weakest is then
removed until Student's t says of each that the levels around it differ. `python -m ci.bench.changes` counts errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_NIGHTS = 3  # of a level: two strange nights are not yet one
LEAST_CHANGE = 0.01
MOST_P = 0.001  # in a hundred nights there are a hundred places to look at
PENALTY = 6.0
LEAST_NOISE = 0.001  # a size in bytes has none; a level that is known exactly would make every difference a change
OUTLIER = 3.0  # standard deviations
Logs = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A new level, between the change before and the one after it."""

    index: int  # of the first value at the new level
    before: float  # median of the old level
    after: float
    p: float

    @property
    def ratio(self) -> float:
        """The new level by the old one."""
        return self.after / self.before


def change_points(values: Sequence[float]) -> list[Change]:
    """The changes in values that follow one another in time. A series with a value that is not positive has none."""
    if len(values) < 2 * LEAST_NIGHTS or min(values) <= 0:
        return []
    logs = np.log(np.asarray(values, dtype=np.float64))
    noise = max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(np.diff(logs)))) / np.sqrt(2))
    calm = _without_outliers(logs, noise)
    found = _candidates(calm, noise)
    while found:
        edges = [0, *found, len(logs)]
        pieces = [calm[start:end] for start, end in itertools.pairwise(edges)]
        tests = [_p(old, new) for old, new in itertools.pairwise(pieces)]
        changes = [
            Change(index=index, before=_level(logs[start:index]), after=_level(logs[index:end]), p=p)
            for start, index, end, p in zip(edges, found, edges[2:], tests, strict=False)
        ]
        weakest = max(changes, key=lambda each: (each.p, -abs(np.log(each.ratio))))
        if weakest.p <= MOST_P:
            weakest = min(changes, key=lambda each: abs(np.log(each.ratio)))
            if abs(np.log(weakest.ratio)) >= LEAST_CHANGE:
                return changes
        found.remove(weakest.index)
    return []


def _without_outliers(logs: Logs, noise: float) -> Logs:
    from scipy.ndimage import median_filter

    usual = median_filter(logs, size=2 * LEAST_NIGHTS + 1, mode="mirror")
    return np.asarray(np.clip(logs, usual - OUTLIER * noise, usual + OUTLIER * noise))


def _candidates(logs: Logs, noise: float) -> list[int]:
    import ruptures

    search = ruptures.KernelCPD(kernel="linear", min_size=LEAST_NIGHTS).fit(logs[:, None])
    ends = search.predict(pen=PENALTY * float(np.log(len(logs))) * noise**2)
    return [int(end) for end in ends[:-1]]


def _p(old: Logs, new: Logs) -> float:
    from scipy.stats import ttest_ind_from_stats

    old_noise, new_noise = (max(LEAST_NOISE, float(piece.std(ddof=1))) for piece in (old, new))
    tested = ttest_ind_from_stats(old.mean(), old_noise, old.size, new.mean(), new_noise, new.size)
    return float(tested.pvalue)


def _level(logs: Logs) -> float:
    return float(np.exp(np.median(logs)))
