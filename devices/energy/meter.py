"""Energy during a block, from the lines that a program prints meanwhile, on the device or on this machine.

A line's time is that of its arrival here: how long it was on its way is small beside a request of a second and more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import numpy as np

from devices.errors import DeviceError
from devices.transports.host import LineProcess
from runtimes.errors import TransportError
from runtimes.system.energy.meter import LEAST_SAMPLES

FIRST_S = 30.0  # for a meter's first line: a slow board's Python starts
NEXT_S = 5.0  # for the line behind the end of the block


class Meter(Protocol):
    """`with meter: ...`; then its two figures, both None where nobody can tell."""

    joules: float | None
    source: str | None

    def __enter__(self) -> Meter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lines(Protocol):
    """What the lines of one kind of program mean."""

    source: str | None  # what tells it, and of what; None while it is not known
    optional: bool  # whether a program that prints none is no error: the figure is absent

    def joules(self, line: bytes, at_s: float) -> float | None:
        """The sum since the first line; None for a line without one. Raises DeviceError for one that ends the
        measurement."""
        ...


class LineMeter:
    """See Meter."""

    def __init__(
        self, start: Callable[[], LineProcess], lines: Lines, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`start` starts the program, which prints lines until it is closed."""
        self.joules: float | None = None
        self.source: str | None = None
        self._start, self._lines, self._clock = start, lines, clock
        self._samples: list[tuple[float, float]] = []
        self._error: DeviceError | None = None
        self._ended = False
        self._changed = threading.Condition()

    def __enter__(self) -> LineMeter:
        """Until the first sample is there."""
        self._process = self._start()
        threading.Thread(target=self._read, name="energy-meter", daemon=True).start()
        self._wait(lambda: bool(self._samples), FIRST_S)
        if not self._samples and not self._lines.optional:
            self._process.close()
            raise self._error or DeviceError(
                f"{self._lines.source}: it printed no line in {FIRST_S:g} s or ended; correct `meter` in lab.toml"
            )
        self._began_s = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended_s = self._clock()
        try:
            if error is None:
                self._wait(lambda: bool(self._samples) and self._samples[-1][0] >= ended_s, NEXT_S)
        finally:
            self._process.close()
        if error is None and self._error is not None:
            raise self._error
        self.joules = _between(self._samples, self._began_s, ended_s)
        self.source = None if self.joules is None else self._lines.source

    def _read(self) -> None:
        try:
            for line in self._process.lines():
                at_s = self._clock()
                joules = self._lines.joules(line, at_s)
                with self._changed:
                    if joules is not None:
                        self._samples.append((at_s, joules))
                    self._changed.notify_all()
        except DeviceError as error:
            self._error = error
        except TransportError:
            pass  # what the device itself can tell is worth no failure: the figure is absent
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or condition(), limit_s)


def _between(samples: list[tuple[float, float]], began_s: float, ended_s: float) -> float | None:
    """The sum's growth; None where the samples do not reach from end to end, or are too few between."""
    inside = [at_s for at_s, _ in samples if began_s <= at_s <= ended_s]
    if len(inside) + 2 < LEAST_SAMPLES or samples[0][0] > began_s or samples[-1][0] < ended_s:
        return None
    times, sums = zip(*samples, strict=True)
    first, last = np.interp([began_s, ended_s], times, sums)
    return float(last - first) if last > first else None
