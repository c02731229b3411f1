"""How much energy this machine used during a block, in joules, by what the machine itself can tell (sources.py).

Where that is power it is sampled, so a short block is known badly: then nothing is said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from runtimes.system.energy.sources import find_sum

POWER_INTERVAL_S = 0.25
LEAST_SAMPLES = 4  # of power: a block of a second


class EnergyMeter:
    """`with EnergyMeter() as meter: ...`; then `meter.joules` and `meter.source`, both None where nobody can tell."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """`root` is where /sys is."""
        self.joules: float | None = None
        self.source: str | None = None
        self._root, self._clock = root, clock
        self._stop = threading.Event()
        self._looks = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EnergyMeter:
        self._sum = find_sum(self._root, self._clock)
        if self._sum is not None:
            self._sum.look()
            if self._sum.by_samples:
                self._thread = threading.Thread(target=self._run, name="energy-meter", daemon=True)
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sum is None:
            return
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        joules = self._sum.look()
        if joules and (not self._sum.by_samples or self._looks + 2 >= LEAST_SAMPLES):  # and the first and the last
            self.joules, self.source = joules, self._sum.source

    def _run(self) -> None:
        assert self._sum is not None
        while not self._stop.wait(POWER_INTERVAL_S):
            self._sum.look()
            self._looks += 1
