"""A lease: one job has a device, says every few seconds that it is alive, and gives the device back at its end.

A job that crashes says nothing any more, and the next one takes the device over. A job that was suspended so long that
another took over learns it from `Lease.check` before it goes on. A store (sqlite.py, labgrid.py) keeps who has what.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from devices.errors import LeaseError, LeaseLostError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """How often a job says that it is alive, and when it is taken for dead. All by clocks that no one sets."""

    beat_s: float = 5.0
    dead_s: float = 30.0  # a holder that was silent for so long has crashed
    poll_s: float = 0.5  # how often a waiting job looks


TIMES = LeaseTimes()


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The job that has a device, for people."""

    job: str  # "bench phi3 on pi5"
    host: str
    pid: int | None
    since: str | None  # UTC, ISO 8601

    def __str__(self) -> str:
        process = f"process {self.pid} on {self.host}" if self.pid is not None else f"on {self.host}"
        return f"{self.job} ({process}{f', since {self.since}' if self.since else ''})"


@dataclass(frozen=True, kw_only=True)
class Held:
    """A device that is in use."""

    device: str  # its key: Device.key, or the name of its place
    holder: Holder
    silent_s: float  # since its holder was last heard


class Store(Protocol):
    """Where leases are kept. Each call is atomic, and may come from any thread. Raises LeaseError."""

    def take(self, device: str, token: str, job: str) -> Held | None:
        """Take the device: None, or who has it. A holder that is dead is replaced."""
        ...

    def beat(self, device: str, token: str) -> bool:
        """Say that the job is alive; False where the lease is not this token's any more."""
        ...

    def release(self, device: str, token: str) -> None:
        """Give it back; nothing happens where it is not this token's any more."""
        ...

    def held(self) -> Sequence[Held]:
        """Every device that is in use."""
        ...

    def close(self) -> None:
        """Drop the connection. Leases stay. Safe to call twice."""
        ...


class Lease:
    """A lease that is kept alive by a thread of its own."""

    def __init__(self, store: Store, device: str, token: str, times: LeaseTimes) -> None:
        self._store, self._device, self._token, self._times = store, device, token, times
        self._heard_s = _awake_or_not_s()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {device}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLostError where the device may be another job's by now."""
        silent_s = _awake_or_not_s() - self._heard_s
        if self._lost is None and silent_s > self._times.dead_s:
            self._lost = f"nothing could be noted of it for {silent_s:.0f} s"
        if self._lost is not None:
            raise LeaseLostError(
                f"the lease of {self._device} is lost: {self._lost}; the last repetition does not count"
            )

    def end(self) -> None:
        """Give the device back. Safe to call twice."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(LeaseError):  # then it is taken over when it is found silent
            self._store.release(self._device, self._token)

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(self._times.beat_s):
            try:
                now_s = _awake_or_not_s()
                if self._store.beat(self._device, self._token):
                    self._heard_s = now_s
                else:
                    self._lost = "another job has taken it over, because this one was silent for too long"
            except LeaseError:
                continue  # `check` judges how long this has lasted


def _awake_or_not_s() -> float:
    """Seconds since the machine was started, with those in which it slept, where the system counts them (Linux)."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@contextlib.contextmanager
def leased(
    store: Store,
    device: str,
    name: str,
    job: str,
    *,
    wait_s: float = 0.0,
    say: Say = lambda _: None,
    times: LeaseTimes = TIMES,
) -> Iterator[Lease]:
    """Have the device for the time of a `with`. Waits up to `wait_s` for the job that has it; `say` gets who that is.

    `device` is its key, `name` its name in the lab. Raises LeaseError.
    """
    token = uuid.uuid4().hex
    until_s = time.monotonic() + wait_s
    said = None
    while (held := store.take(device, token, job)) is not None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            waited = f" after {wait_s:g} s" if wait_s else ""
            raise LeaseError(f"device {name} is in use{waited}: {held.holder}; try again later, or give --wait-s")
        if said != held.holder:
            said = held.holder
            say(f"waiting for {name}, which is in use: {held.holder}")
        time.sleep(min(times.poll_s, max(left_s, 0.0)))
    lease = Lease(store, device, token, times)
    try:
        yield lease
    finally:
        lease.end()
