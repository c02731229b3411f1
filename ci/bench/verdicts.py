"""How often a verdict is wrong, simulated: ours beside plain thresholds, Welch's t and Mann-Whitney.

python -m ci.bench.verdicts [--trials N]      prints the tables of docs/lab.md

A device is simulated by what makes its repetitions differ: noise of each repetition, of each session (temperature,
memory layout, a restart), drift over the whole night, heat that builds up and goes, outliers, and processes that
get one of two placements in memory. Times are log-normal around a true one. All methods see the same repetitions.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, ttest_ind

from devices.judge.compare import decide
from devices.judge.sessions import log_ratios, precision_of
from devices.measure.interleave import Rounds
from phi_edge.verbs.bench import MOST_TIMES

Times = NDArray[np.float64]  # trial, session, repetition
Called = NDArray[np.bool_]  # a change, in each trial
HEATING = 5  # repetitions until it has cooled down again
FLOOR = 0.01
AT_ONCE = 500  # comparisons; each has some thousand resamplings in memory
SLOWER = (0.0, 0.03, 0.05, 0.10)  # of the new artifact's true time; 0 is A/A


@dataclass(frozen=True, kw_only=True)
class Device:
    """What makes its repetitions differ, as shares of the true time."""

    repetition: float = 0.02  # standard deviations
    session: float = 0.0
    drift: float = 0.0  # from the first repetition of the night to the last
    heat: float = 0.0  # that builds up over HEATING repetitions, more or less by chance
    outliers: float = 0.0  # how many; each takes a third longer
    placements: float = 0.0  # the difference between the two


DEVICES: Mapping[str, Device] = {
    "calm": Device(),
    "noisy": Device(repetition=0.05),
    "sessions differ by 4 %": Device(session=0.04),
    "drift of 10 %": Device(drift=0.10),
    "throttles by 8 %": Device(heat=0.08, session=0.01),
    "outliers": Device(outliers=0.05),
    "two placements, 6 %": Device(placements=0.06),
    "all of it": Device(repetition=0.03, session=0.03, drift=0.05, heat=0.04, outliers=0.03, placements=0.03),
}


@dataclass(frozen=True)
class Design:
    """Sessions in this order, 0 the old artifact and 1 the new one, of so many repetitions each."""

    order: Sequence[int]
    repetitions: int
    in_turns: bool = True
    drifts: float = 1.0  # how many times the device's drift passes meanwhile


A_B_B_A = [0, 1, 1, 0]
SESSIONS_OF_FIVE = Design(A_B_B_A * 4, 5)
ROUNDS, MOST_ROUNDS = 16, 16 * MOST_TIMES  # of bench --against, and of its --precision
PRECISION = 0.02
OF_ONE = Design(A_B_B_A * MOST_ROUNDS, 1, drifts=MOST_TIMES)  # once in the first ROUNDS
APART = Design([0] * 8 + [1] * 8, 5, in_turns=False)  # as most do it: first all of the old one, then all of the new one


def simulate(
    device: Device, slower: float, design: Design, trials: int, random: np.random.Generator
) -> tuple[Times, Times]:
    """The times of new and old."""
    shape = (trials, len(design.order), design.repetitions)
    per_session = (trials, len(design.order), 1)
    which, place = np.array(design.order), np.arange(shape[1] * shape[2])
    log = random.normal(0, device.repetition, shape) + random.normal(0, device.session, per_session)
    log += np.linspace(0, device.drift * design.drifts, len(place)).reshape(shape[1:])
    built_up = random.uniform(0.5, 1.5, (trials, len(place) // HEATING + 1))[:, place // HEATING]
    log += (device.heat * built_up * (place % HEATING) / (HEATING - 1)).reshape(shape)
    log += (random.random(shape) < device.outliers) * np.log(4 / 3)
    log += (random.random(shape) < 0.5) * device.placements
    times = np.exp(log) * np.where(which == 1, 1 + slower, 1.0)[:, None]
    return times[:, which == 1], times[:, which == 0]


def by_threshold(new: Times, old: Times) -> Called:
    """Do the medians differ by more than 5 %?"""
    ratio = np.median(new, axis=(1, 2)) / np.median(old, axis=(1, 2))
    return (ratio > 1.05) | (ratio < 1 / 1.05)


def by_welch(new: Times, old: Times) -> Called:
    """Welch's t on all repetitions, p < 0.05."""
    found = ttest_ind(_flat(new), _flat(old), axis=1, equal_var=False)
    return np.asarray(found.pvalue < 0.05)


def by_rank(new: Times, old: Times) -> Called:
    """Mann-Whitney's U on all repetitions, p < 0.05."""
    return np.asarray(mannwhitneyu(_flat(new), _flat(old), axis=1).pvalue < 0.05)


def by_sessions(new: Times, old: Times, *, paired: bool = True) -> Called:
    """Ours: the session is the unit, in pairs where they took turns; the whole interval beyond a noise floor of 1 %."""
    called, _ = _judge(new, old, paired=paired)
    return called


def _judge(new: Times, old: Times, *, paired: bool = True) -> tuple[Called, Times]:
    """Whether ours calls a change, and how precisely each ratio is known."""
    above, below = (np.log(np.median(times, axis=2)) for times in (new, old))
    ends = []
    for first in range(0, len(new), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        ends.append(np.exp(log_ratios(above[rows], below[rows], paired=paired)[1:]))
    low, high = np.concatenate(ends, axis=1)
    called = [decide(*each, "lower", FLOOR) in ("regression", "improvement") for each in zip(low, high, strict=True)]
    return np.array(called), precision_of(low, high)


METHODS = ("threshold 5 %", "Welch's t", "Mann-Whitney", "sessions (ours)")


def rates(device: Device, slower: float, design: Design, trials: int, seed: int) -> dict[str, float]:
    """How often each method calls a change."""
    new, old = simulate(device, slower, design, trials, np.random.default_rng(seed))
    ours = by_sessions(new, old, paired=design.in_turns)
    called = (by_threshold(new, old), by_welch(new, old), by_rank(new, old), ours)
    return {name: float(each.mean()) for name, each in zip(METHODS, called, strict=True)}


@dataclass(frozen=True)
class OfOne:
    """Sessions of one repetition, as bench --against has them by default: the shares that ours calls a change."""

    plain: float
    precise: float  # with --precision
    rounds: float  # that --precision took, in the mean


def rates_of_one(device: Device, slower: float, trials: int, seed: int) -> OfOne:
    """Looked at as bench does."""
    new, old = simulate(device, slower, OF_ONE, trials, np.random.default_rng(seed))
    called, rounds = np.zeros(trials, bool), np.full(trials, MOST_ROUNDS)
    plain, going = 0.0, np.arange(trials)
    for done in Rounds(least=ROUNDS, most=MOST_ROUNDS, enough=lambda new, old: False).looks:
        sessions = slice(0, 2 * done)
        called[going], precision = _judge(new[going, sessions], old[going, sessions])
        plain = plain if done > ROUNDS else float(called.mean())
        rounds[going] = done
        going = going[precision > PRECISION]
        if not len(going):
            break
    return OfOne(plain, float(called.mean()), float(rounds.mean()))


def _flat(times: Times) -> Times:
    return times.reshape(len(times), -1)


def table(design: Design, slowdowns: Sequence[float], trials: int) -> str:
    """Markdown: false alarms of A/A, and misses of each true difference."""
    lines: list[str] = []
    for number, (name, slower) in enumerate(itertools.product(DEVICES, slowdowns)):
        found = rates(DEVICES[name], slower, design, trials, seed=number)
        took = {}
        if design.in_turns:
            of_one = rates_of_one(DEVICES[name], slower, trials, seed=number)
            found |= {f"ours, {ROUNDS} rounds of one": of_one.plain, f"ours, --precision {PRECISION}": of_one.precise}
            took = {"its rounds": f"{of_one.rounds:.0f}"}
        if not lines:
            lines = [f"| device |  | {' | '.join([*found, *took])} |", "|---|---|" + "---:|" * len(found | took)]
        wrong = [f"{share if slower == 0 else 1 - share:.1%}" for share in found.values()]
        kind = "false alarms, A/A" if slower == 0 else f"missed, {slower:.0%} slower"
        lines.append(f"| {name if slower == 0 else ''} | {kind} | {' | '.join([*wrong, *took.values()])} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="How often a verdict is wrong, simulated.")
    parser.add_argument("--trials", type=int, default=10_000)
    trials = parser.parse_args().trials
    print(f"In turns (A B B A), {trials} trials:\n\n{table(SESSIONS_OF_FIVE, SLOWER, trials)}\n", flush=True)
    print(f"Apart (all of A, then all of B), {trials} trials:\n\n{table(APART, SLOWER[:1], trials)}")


if __name__ == "__main__":
    main()
