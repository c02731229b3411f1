"""Peak memory of a process, by one definition: max(VmHWM, max over samples of VmRSS + VmSwap).

The high-water mark misses pages that were swapped out (zram on phones), samples miss short peaks; together they do
not. Windows has counters of its own, which psutil reads. Elsewhere everything is None, never 0.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from runtimes.api import MemoryUse
from runtimes.system.pages import mirrored_bytes

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """What the system reports about a process at one moment, in bytes; None for what it does not report."""

    high_water_bytes: int  # VmHWM or PeakWorkingSetSize: highest resident size since the process began
    resident_bytes: int
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    swap_bytes: int | None = None
    committed_bytes: int | None = None  # Windows: the highest since the process began, see MemoryUse
    gpu_bytes: int | None = None
    gpu_shared_bytes: int | None = None


Reader = Callable[[], MemorySample | None]


def open_reader(status: Path = STATUS) -> Reader:
    """The function that samples this process, to be called often: from /proc, or from Windows' counters."""
    if sys.platform == "win32":
        return _windows_reader()
    return lambda: read_status(status)


def read_memory() -> MemorySample | None:
    """One sample of this process; None where the system does not report it."""
    return open_reader()()


def read_status(status: Path) -> MemorySample | None:
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
    if status == STATUS and (mirrored := mirrored_bytes()) is not None:
        # The kernel counts such pages at each of their places, in the high-water mark too.
        high = resident = anonymous + file + mirrored
    return MemorySample(
        high_water_bytes=high, resident_bytes=resident, anonymous_bytes=anonymous, file_bytes=file, swap_bytes=swap
    )


def _windows_reader() -> Reader:
    import psutil

    from runtimes.system.windows.dxgi import GpuMeter

    process, adapters = psutil.Process(), GpuMeter()

    def read() -> MemorySample:
        host, gpu = process.memory_info(), adapters.usage()
        return MemorySample(
            high_water_bytes=host.peak_wset,
            resident_bytes=host.wset,
            committed_bytes=host.peak_pagefile,
            gpu_bytes=None if gpu is None else gpu[0],
            gpu_shared_bytes=None if gpu is None else gpu[1],
        )

    return read


class PeakMemory:
    """The peak over the samples taken so far. The split (anonymous, file, swap) is that of the largest sample; a GPU's
    peak may come from another one."""

    def __init__(self, status: Path = STATUS) -> None:
        self._read = open_reader(status)
        self._high_water_bytes = 0
        self._most: MemorySample | None = None
        self._committed_bytes: int | None = None
        self._gpu_bytes: int | None = None
        self._gpu_shared_bytes: int | None = None

    def sample(self) -> None:
        """Take one sample."""
        now = self._read()
        if now is None:
            return
        self._high_water_bytes = max(self._high_water_bytes, now.high_water_bytes)
        self._committed_bytes = _higher(self._committed_bytes, now.committed_bytes)
        self._gpu_bytes = _higher(self._gpu_bytes, now.gpu_bytes)
        self._gpu_shared_bytes = _higher(self._gpu_shared_bytes, now.gpu_shared_bytes)
        if self._most is None or _used_bytes(now) >= _used_bytes(self._most):
            self._most = now

    def use(self) -> MemoryUse | None:
        """The peak and its split; None where the system does not report it."""
        if self._most is None:
            return None
        return MemoryUse(
            peak_bytes=max(self._high_water_bytes, _used_bytes(self._most)),
            anonymous_bytes=self._most.anonymous_bytes,
            file_bytes=self._most.file_bytes,
            swap_bytes=self._most.swap_bytes,
            committed_bytes=self._committed_bytes,
            gpu_bytes=self._gpu_bytes,
            gpu_shared_bytes=self._gpu_shared_bytes,
        )


class Sampling:
    """Calls `sample` at a block's beginning and end, and from a thread while it runs."""

    def __init__(self, sample: Callable[[], None], interval_s: float) -> None:
        self._sample, self._interval_s = sample, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()


class MemorySampler(Sampling):
    """`with MemorySampler() as sampler: ...; sampler.use()`: samples a process while the block runs."""

    def __init__(self, interval_s: float = 0.01, status: Path = STATUS) -> None:
        self._peak = PeakMemory(status)
        super().__init__(self._peak.sample, interval_s)

    def use(self) -> MemoryUse | None:
        """The peak so far; None where the system does not report it."""
        return self._peak.use()


def _used_bytes(sample: MemorySample) -> int:
    return sample.resident_bytes + (sample.swap_bytes or 0)


def _higher(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
