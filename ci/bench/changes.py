"""How often change points are wrong, simulated: ours beside Apache Otava's, on the same nights.

python -m ci.bench.changes [--trials N]      prints the table of docs/lab.md

Otava's requirements conflict with ours, so its package alone is installed, into a folder that is removed at the end;
its analysis runs with our numpy and scipy.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.history.changes import LEAST_CHANGE, change_points

OTAVA = "apache-otava==0.8.0"
NIGHTS, CHANGED = 90, 60
NEAR = 2  # nights: a change that is found this far away is found
CHANGES = (0.0, 0.03, 0.05, 0.10)
Find = Callable[[NDArray[np.float64]], Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Nights:
    """What makes nights differ: standard deviations, as shares."""

    noise: float
    outliers: float = 0.0  # how many nights; each takes a third longer
    memory: float = 0.0  # how much of a night's noise the next one has, too
    heavy: bool = False  # noise by Student's t with three degrees of freedom


KINDS: Mapping[str, Nights] = {
    "calm, 1 %": Nights(noise=0.01),
    "noisy, 4 %": Nights(noise=0.04),
    "outliers": Nights(noise=0.015, outliers=0.05),
    "nights alike": Nights(noise=0.02, memory=0.3),
    "heavy tails": Nights(noise=0.02, heavy=True),
}


def simulate(kind: Nights, change: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Times of NIGHTS nights; from CHANGED on they are longer by `change`."""
    log = kind.noise * (random.standard_t(3, NIGHTS) if kind.heavy else random.normal(size=NIGHTS))
    log += (random.random(NIGHTS) < kind.outliers) * np.log(4 / 3)
    for night in range(1, NIGHTS):
        log[night] += kind.memory * log[night - 1]
    log[CHANGED:] += np.log1p(change)
    return np.exp(log)


def ours(times: NDArray[np.float64]) -> list[int]:
    """The places of our change points."""
    return [each.index for each in change_points(times.tolist())]


def otava(folder: str) -> Find:
    """Apache Otava's, with its defaults and our least change."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, OTAVA], check=True
    )
    sys.path.append(folder)
    analysis: Any = importlib.import_module("otava.analysis")

    def find(times: NDArray[np.float64]) -> list[int]:
        found, _ = analysis.compute_change_points(times.tolist(), min_magnitude=LEAST_CHANGE)
        return [int(each.index) for each in found]

    return find


def rates(kind: Nights, change: float, find: Find, trials: int) -> tuple[float, float]:
    """How many trials found the change, and how many found another."""
    random, right, wrong = np.random.default_rng(1), 0, 0
    for _ in range(trials):
        places = find(simulate(kind, change, random))
        near = [change > 0 and abs(place - CHANGED) <= NEAR for place in places]
        right += any(near)
        wrong += not all(near)
    return right / trials, wrong / trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How often change points are wrong, simulated.")
    parser.add_argument("--trials", type=int, default=500)
    trials = parser.parse_args().trials
    print("| nights | change | ours: found | another | Otava: found | another |")
    print("|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        theirs = otava(folder)
        for name, kind in KINDS.items():
            for change in CHANGES:
                shares = [share for find in (ours, theirs) for share in rates(kind, change, find, trials)]
                cells = [f"{share:.0%}" for share in shares]
                if change == 0:
                    cells[0] = cells[2] = ""
                label = f"{change:.0%}" if change else "none"
                print(f"| {name if change == 0 else ''} | {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
