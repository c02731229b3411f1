"""One model serves one request at a time: a thread that takes jobs from a queue with a limit. No HTTP here."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator

from runtimes.api import Event, GenerateRequest
from runtimes.errors import RuntimesError, TransportError
from runtimes.text.runtime import TextRuntime

# How long a request takes, before the first has ended: for Retry-After.
FIRST_GUESS_S = 5.0


class QueueFullError(Exception):
    """So many wait already. `retry_after_s` is about when one of them will be served."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Job:
    """One request in the slot. Its methods are for the event loop that submitted it; the thread uses the rest."""

    def __init__(self, slot: Slot, request: GenerateRequest) -> None:
        self.request = request
        self.submitted_s = time.perf_counter()
        self._slot = slot
        self._loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._lock = threading.Lock()  # guards the two below
        self._running = False
        self._cancelled = False

    async def accepted(self) -> None:
        """Wait until the model begins with it. Raises RequestError where it cannot be served."""
        await self._accepted

    async def events(self) -> AsyncGenerator[Event, None]:
        """Its events, as they come. Raises what the runtime raises."""
        while (item := await self._events.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def cancel(self) -> None:
        """End it within one token, or take it out of the queue. Without effect at its end."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            running = self._running
            if running:
                with contextlib.suppress(RuntimesError):  # the device is lost, which the thread reports
                    self._slot.runtime.cancel()
        if not running:
            self._slot.remove(self)

    def run(self) -> None:
        """Generate, in the slot's thread."""
        try:
            with contextlib.closing(self._slot.runtime.generate(self.request)) as events:
                with self._lock:
                    self._running = True
                    if self._cancelled:
                        return
                self._call(self._accept, None)
                for event in events:
                    if self._cancelled:
                        return
                    self._call(self._events.put_nowait, event)
        except BaseException as error:
            if isinstance(error, TransportError):
                self._slot.broken = str(error)
            self._call(self._accept, error)
            self._call(self._events.put_nowait, error)
        finally:
            with self._lock:
                self._running = False
            self.end()

    def end(self) -> None:
        """Nothing more comes."""
        self._call(self._accept, None)
        self._call(self._events.put_nowait, None)

    def _accept(self, error: BaseException | None) -> None:
        if self._accepted.done():
            return
        if error is None:
            self._accepted.set_result(None)
        else:
            self._accepted.set_exception(error)
            self._accepted.exception()  # nobody may wait for it

    def _call(self, function: object, argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(function, argument)  # type: ignore[arg-type]


class Slot:
    """A runtime and the requests that wait for it."""

    def __init__(self, runtime: TextRuntime, *, queue_limit: int) -> None:
        """At most `queue_limit` requests wait while one runs."""
        self.runtime = runtime
        self.broken: str | None = None  # why no request can be served any more
        self._queue_limit = queue_limit
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._closed = False
        self._mean_s = FIRST_GUESS_S
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether one runs."""
        return self._current is not None

    def submit(self, request: GenerateRequest) -> Job:
        """Put a request at the queue's end. Raises QueueFullError."""
        job = Job(self, request)
        with self._changed:
            if len(self._waiting) >= self._queue_limit + (self._current is None):
                waiting = len(self._waiting)
                raise QueueFullError(waiting, max(1, math.ceil(self._mean_s * max(1, waiting))))
            self._waiting.append(job)
            self._changed.notify()
        return job

    def remove(self, job: Job) -> None:
        """Take a waiting job out of the queue and end it."""
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        job.end()

    def close(self) -> None:
        """End the running request and the waiting ones, and wait for the thread."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._current] if self._current else [])]
            self._changed.notify()
        for job in jobs:
            job.cancel()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._current = self._waiting.popleft()
            began_s = time.perf_counter()
            self._current.run()
            with self._changed:
                self._mean_s += 0.2 * (time.perf_counter() - began_s - self._mean_s)
                self._current = None
