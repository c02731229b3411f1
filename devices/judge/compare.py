"""Two measurements of the same workload: which metrics changed. Pure: no clock, no files.

Where both have sessions, these are the unit (sessions.py). Otherwise the interval covers what differs between the
repetitions of one session, and two sessions differ by more (temperature, memory layout, a restart). A change is only
reported if its whole interval is beyond the noise floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from devices.errors import MeasurementError
from devices.judge.sessions import Ratio, are_paired, ratio_of, sessions_of
from devices.measure.intervals import SEED, bootstrap, interval
from devices.measure.measurement import Measurement
from devices.measure.metrics import LEAST_REPETITIONS, METRICS, Metric, summarize
from devices.measure.validity import problems

NO_FLOORS: Mapping[str, float] = {}
Verdict = Literal["regression", "improvement", "no-change", "inconclusive", "invalid"]

# From worst to best: the verdict of a comparison is the worst of its metrics'.
WORST_FIRST: Sequence[Verdict] = ("invalid", "regression", "inconclusive", "improvement", "no-change")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric, candidate divided by baseline. `low` and `high` bound the ratio's interval (sessions.py)."""

    metric: str
    baseline: float | None
    candidate: float | None
    ratio: float | None
    low: float | None
    high: float | None
    floor: float  # a change by less than this share is noise
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All metrics of two measurements."""

    noise_floor: float
    problems: Sequence[str]
    changes: Sequence[Change]

    @property
    def is_good(self) -> bool:
        """No regression, and nothing invalid."""
        return self.verdict not in ("regression", "invalid")

    @property
    def verdict(self) -> Verdict:
        """The worst of the changes' verdicts; invalid when a measurement is."""
        found = {change.verdict for change in self.changes} | ({"invalid"} if self.problems else set())
        return next(verdict for verdict in WORST_FIRST if verdict in found)


def compare(
    candidate: Measurement, baseline: Measurement, noise_floor: float, floors: Mapping[str, float] = NO_FLOORS
) -> Comparison:
    """Compare every metric that either has. `floors` are the device's own, by metric: the higher one counts.

    Raises MeasurementError when they measured different things.
    """
    _refuse_different(candidate, baseline)
    found = [f"candidate: {problem}" for problem in problems(candidate)]
    found += [f"baseline: {problem}" for problem in problems(baseline)]
    found += [
        f"candidate: {name} was not measured, and the baseline has it"
        for name, metric in METRICS.items()
        if not metric.by_chance and _value(metric, baseline) is not None and _value(metric, candidate) is None
    ]
    changes = [
        _change(metric, candidate, baseline, max(noise_floor, floors.get(metric.name, 0.0)), valid=not found)
        for metric in METRICS.values()
    ]
    return Comparison(
        noise_floor=noise_floor,
        problems=found,
        changes=[change for change in changes if change.baseline is not None or change.candidate is not None],
    )


def must_be_alike(measurement: Measurement, *, prompt: bool = True) -> dict[str, object]:
    """What two measurements that are compared have in common: workload, device, processor. `prompt`: its ids, too."""
    facts = dataclasses.asdict(measurement.workload)
    del facts["repetitions"]  # more of them only narrow the interval
    if not prompt:
        del facts["prompt_sha256"]
    return facts | {"device": measurement.device.name, "cpu": measurement.before.cpu_model}


def _refuse_different(candidate: Measurement, baseline: Measurement) -> None:
    # Another tool's file of the same model may name other ids as special, and its runner may take words alone.
    ours = candidate.artifact.stock is None and baseline.artifact.stock is None
    new, old = must_be_alike(candidate, prompt=ours), must_be_alike(baseline, prompt=ours)
    differing = [name for name in new if new[name] != old[name]]
    if differing:
        spelled = ", ".join(f"{name} {new[name]!r} against the baseline's {old[name]!r}" for name in differing)
        raise MeasurementError(f"the two measurements cannot be compared: {spelled}; measure both alike")


def _change(metric: Metric, candidate: Measurement, baseline: Measurement, floor: float, *, valid: bool) -> Change:
    new, old = _value(metric, candidate), _value(metric, baseline)
    ratio = new / old if new is not None and old is not None and old > 0 else None
    low, high = None, None
    if ratio is not None and metric.exact:
        low, high = ratio, ratio
    elif ratio is not None and (found := _by_sessions(metric, candidate, baseline)) is not None:
        ratio, low, high = found.value, found.low, found.high
    elif ratio is not None:
        low, high = _by_repetitions(metric, candidate, baseline)
    return Change(
        metric=metric.name,
        baseline=old,
        candidate=new,
        ratio=ratio,
        low=low,
        high=high,
        floor=floor,
        verdict=decide(low, high, metric.better, floor) if valid else "invalid",
    )


def _value(metric: Metric, measurement: Measurement) -> float | None:
    found = summarize(metric, measurement, bounds=False)
    return None if found is None else found.value


def decide(low: float | None, high: float | None, better: Literal["lower", "higher"], noise_floor: float) -> Verdict:
    """The verdict on a ratio's interval: beyond the noise floor, within it, or across its edge."""
    if low is None or high is None:
        return "inconclusive"
    if low > 1 + noise_floor:
        return "regression" if better == "lower" else "improvement"
    if high < 1 / (1 + noise_floor):
        return "improvement" if better == "lower" else "regression"
    return "no-change" if high <= 1 + noise_floor and low >= 1 / (1 + noise_floor) else "inconclusive"


def _by_sessions(metric: Metric, candidate: Measurement, baseline: Measurement) -> Ratio | None:
    new, old = sessions_of(metric, candidate), sessions_of(metric, baseline)
    return ratio_of(new, old, metric.quantile, paired=are_paired(candidate, baseline))


def _by_repetitions(
    metric: Metric, candidate: Measurement, baseline: Measurement
) -> tuple[float, float] | tuple[None, None]:
    new, old = (
        [np.asarray(group, dtype=np.float64) for group in metric.samples(measurement) if len(group)]
        for measurement in (candidate, baseline)
    )
    if min(len(new), len(old)) < LEAST_REPETITIONS:
        return None, None
    above = bootstrap(new, metric.quantile, SEED)
    below = bootstrap(old, metric.quantile, SEED + 1)
    return interval(above / below) if below.all() else (None, None)
