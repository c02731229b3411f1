"""Peak memory of a process, by one definition: max(VmHWM, max over samples of VmRSS + VmSwap).

The high-water mark misses pages that were swapped out (zram on phones), samples miss short peaks; together they do
not. Linux and Android only: elsewhere everything is None, never 0.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from runtimes.api import MemoryUse

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """What the kernel says of a process at one moment, in bytes."""

    high_water_bytes: int  # VmHWM: highest resident size since the process began
    resident_bytes: int
    anonymous_bytes: int
    file_bytes: int
    swap_bytes: int


def read_memory(status: Path = STATUS) -> MemorySample | None:
    """One sample from /proc/PID/status (25 us); None where there is no such file or it lacks a figure."""
    try:
        text = status.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in text.splitlines() if line.endswith(" kB"))
    try:
        high, resident, anonymous, file, swap = (
            int(values[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "VmSwap")
        )
    except KeyError:
        return None
    return MemorySample(
        high_water_bytes=high, resident_bytes=resident, anonymous_bytes=anonymous, file_bytes=file, swap_bytes=swap
    )


class PeakMemory:
    """The peak over the samples taken so far. The split is that of the sample that held the most."""

    def __init__(self, status: Path = STATUS) -> None:
        self._status = status
        self._high_water_bytes = 0
        self._most: MemorySample | None = None

    def sample(self) -> None:
        """Take one sample."""
        now = read_memory(self._status)
        if now is None:
            return
        self._high_water_bytes = max(self._high_water_bytes, now.high_water_bytes)
        if self._most is None or _held(now) >= _held(self._most):
            self._most = now

    def use(self) -> MemoryUse | None:
        """The peak and its split; None where the system cannot tell."""
        if self._most is None:
            return None
        return MemoryUse(
            peak_bytes=max(self._high_water_bytes, _held(self._most)),
            anonymous_bytes=self._most.anonymous_bytes,
            file_bytes=self._most.file_bytes,
            swap_bytes=self._most.swap_bytes,
        )


class MemorySampler:
    """`with MemorySampler() as sampler: ...; sampler.use()`: samples a process from a thread while the block runs."""

    def __init__(self, interval_s: float = 0.01, status: Path = STATUS) -> None:
        self._interval_s = interval_s
        self._peak = PeakMemory(status)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._peak.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._peak.sample()

    def use(self) -> MemoryUse | None:
        """The peak so far; None where the system cannot tell."""
        return self._peak.use()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._peak.sample()


def _held(sample: MemorySample) -> int:
    return sample.resident_bytes + sample.swap_bytes
