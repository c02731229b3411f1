"""The ratio of two measurements that have sessions: the session is the unit, repetitions are within it.

Two repetitions of one session share its temperature, its memory layout and its neighbours, so ten of them say less than
ten should. Each session gives one value.

Where two artifacts took turns, session by session (devices.measure.interleave), pairs are compared: what drifts hits
both of a pair. The ratio is Hodges and Lehmann's and the interval that of Wilcoxon's signed ranks. It is exact whatever
the noise is, if either of a pair may be hit by it, and a few sessions in which the machine did something else hardly
move it. It is a 99 % interval, because a comparison has about ten metrics, each of which may be wrong.

Otherwise, and with fewer than LEAST_PAIRS pairs, a bootstrap draws sessions, each with all its repetitions, for 95 %:
to draw among these as well would count their noise twice (Davison and Hinkley, "Bootstrap Methods", 3.8). A percentile
interval from few sessions is too narrow. It is widened as Hesterberg does ("What Teachers Should Know About the
Bootstrap", 2015, 4.3): to the quantiles that Student's t asks for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from devices.measure.intervals import RESAMPLES, SEED
from devices.measure.measurement import Measurement
from devices.measure.metrics import METRICS, Metric

Number = TypeVar("Number", float, NDArray[np.float64])
Group = NDArray[np.float64]  # the samples of one repetition
Session = Sequence[Group]
LEAST_SESSIONS = 3  # of two, nobody can say how much sessions differ
LEAST_PAIRS = 8  # of seven, even the rarest order of signs comes by chance in one of 64 comparisons
# Student's t, 97.5 %, by degrees of freedom from 1 on; beyond, the normal distribution is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def sessions_of(metric: Metric, measurement: Measurement) -> dict[int, Session]:
    """The metric's samples: session's number -> repetition -> samples; only those that have any."""
    found: dict[int, Session] = {}
    for number in sorted({repetition.session for repetition in measurement.repetitions}):
        own = [repetition for repetition in measurement.repetitions if repetition.session == number]
        groups = metric.samples(dataclasses.replace(measurement, repetitions=own))
        if session := [np.asarray(group, dtype=np.float64) for group in groups if len(group)]:
            found[number] = session
    return found


def are_paired(candidate: Measurement, baseline: Measurement) -> bool:
    """Whether the two were measured in turns, session by session."""
    return candidate.pair is not None and candidate.pair == baseline.pair


@dataclass(frozen=True)
class Ratio:
    """New by old, and its interval."""

    value: float
    low: float
    high: float


def precision_of(low: Number, high: Number) -> Number:
    """How far the truth may be off, as a share, if a ratio is in the middle of its interval."""
    either_way: Number = np.sqrt(high / low) - 1
    return either_way


def gap_precision(new: Measurement, old: Measurement) -> float | None:
    """How precisely the ratio of the median gap between tokens is known, of two that took turns; None where no gap was
    measured. It is the interval's width alone: who looks at its place, and stops when that pleases, finds changes that
    are none."""
    metric = METRICS["itl_p50_s"]
    ratio = ratio_of(sessions_of(metric, new), sessions_of(metric, old), metric.quantile, paired=True)
    return None if ratio is None else precision_of(ratio.low, ratio.high)


def ratio_of(
    new: Mapping[int, Session], old: Mapping[int, Session], quantile: float, *, paired: bool, seed: int = SEED
) -> Ratio | None:
    """The ratio of the sessions' quantiles, in the geometric mean; of pairs, those that are there on both sides count.

    None with fewer than LEAST_SESSIONS of either, or where one is 0.
    """
    if paired:
        common = sorted(new.keys() & old.keys())
        new, old = ({number: sessions[number] for number in common} for sessions in (new, old))
    values = [
        np.array([np.quantile(np.concatenate(session), quantile) for session in sessions.values()])
        for sessions in (new, old)
    ]
    if min(map(len, values)) < LEAST_SESSIONS or any(each.min() <= 0 for each in values):
        return None
    above, below = np.log(values[0]), np.log(values[1])
    value, low, high = (float(np.exp(row[0])) for row in log_ratios(above[None], below[None], paired=paired, seed=seed))
    return Ratio(value, low, high)


def log_ratios(above: Group, below: Group, *, paired: bool, seed: int = SEED) -> tuple[Group, Group, Group]:
    """The middle and the ends of the interval of above - below. A row is a comparison, a column a session."""
    if paired and above.shape[1] >= LEAST_PAIRS:
        return _by_signed_ranks(above - below)
    random = np.random.default_rng(seed)
    weights = _drawn(above.shape[1], random)
    others = weights if paired else _drawn(below.shape[1], random)
    drawn = above @ weights.T - below @ others.T
    tail = _tail(min(above.shape[1], below.shape[1]))
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=1)
    return above.mean(axis=1) - below.mean(axis=1), low, high


def _by_signed_ranks(differences: Group) -> tuple[Group, Group, Group]:
    """The median of the means of every two (and of each with itself), and as many of them from either end as Wilcoxon's
    test would not reject."""
    first, second = np.triu_indices(differences.shape[1])
    means = np.sort((differences[:, first] + differences[:, second]) / 2, axis=1)
    cut = _rejected(differences.shape[1])
    return np.median(means, axis=1), means[:, cut], means[:, -1 - cut]


@functools.lru_cache
def _rejected(pairs: int) -> int:
    """The largest sum of signed ranks that, with all below it, comes by chance at most once in 200 comparisons."""
    chance = np.zeros(pairs * (pairs + 1) // 2 + 1)
    chance[0] = 1.0
    for rank in range(1, pairs + 1):
        chance[rank:] += chance[:-rank].copy()
        chance /= 2
    return int(np.searchsorted(np.cumsum(chance), 0.005, side="right")) - 1


def _drawn(sessions: int, random: np.random.Generator) -> NDArray[np.float64]:
    """A row for each resampling: the weight of each session in its mean."""
    picks = random.integers(sessions, size=(RESAMPLES, sessions))
    places = picks + sessions * np.arange(RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=picks.size).reshape(picks.shape) / sessions


def _tail(sessions: int) -> float:
    """The share to cut off at either end."""
    freedom = sessions - 1
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return 0.5 * math.erfc(math.sqrt(sessions / freedom) * t / math.sqrt(2))
