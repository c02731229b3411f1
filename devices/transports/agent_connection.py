"""The connection to one agent: lines out, events in, pings in between. Every wait has a limit and gives a reason.

Two threads serve it: one reads, so that the agent's output can block nothing else; one writes and pings, so that a full
pipe blocks nothing else. devices.transports.remote_tokens knows what the lines mean.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable

from devices.transports.host import LineProcess
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from runtimes.agent.events import Event, Pong, decode_event
from runtimes.agent.wire import HIGHEST_NUMBER, encode
from runtimes.errors import TransportError

MOST_UNREAD = 1 << 18  # events: a held answer of the longest context has fewer
EXIT_S = 1.0  # for the exit code of a process whose output has ended


class AgentConnection:
    """Call `start` once, `close` at the end. After a failure every call raises the same TransportError."""

    def __init__(
        self,
        process: LineProcess,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        until_s: float = math.inf,
        diagnose: Callable[[str | None], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`until_s`: when everything must be over, on `clock`. `diagnose` gets the boot id that the agent reported and
        says why it was lost; None: unknown."""
        self.clock = clock
        self.boot_id: str | None = None
        self._process = process
        self._timeouts = timeouts
        self._until_s = until_s
        self._diagnose = diagnose
        self._number = 0
        self._number_lock = threading.Lock()
        self._lost: TransportError | None = None
        self._closed = threading.Event()
        self._last_line_s = clock()
        self._events: queue.SimpleQueue[Event | TransportError | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"agent{work.__name__}", daemon=True)
            for work in (self._read, self._write)
        ]

    @property
    def open(self) -> bool:
        """Neither closed nor lost."""
        return self._lost is None and not self._closed.is_set()

    def start(self) -> None:
        """Begin to read and to ping."""
        for thread in self._threads:
            thread.start()

    def next_number(self) -> int:
        """A number for a request, not used before."""
        with self._number_lock:
            self._number = (self._number + 1) % HIGHEST_NUMBER
            return self._number

    def send(self, line: bytes) -> None:
        """Write one line, without waiting for it."""
        self._outbox.put(line)

    def next_event(self, doing: str, limit_s: float) -> Event:
        """The next event that is not a pong. Raises TransportError, for good, when the agent exits, is silent or takes
        more than `limit_s` seconds. `doing` is for the message: "loading the artifact"."""
        began_s = self.clock()
        until_s = min(began_s + limit_s, self._until_s)
        while True:
            if self._lost is not None:
                raise self._lost
            silent_until_s = self._last_line_s + self._timeouts.silence_s
            try:
                event = self._events.get(timeout=max(0.0, min(until_s, silent_until_s) - self.clock()))
            except queue.Empty:
                now_s = self.clock()
                if now_s >= until_s:
                    raise self.fail(
                        f"the agent was stopped after {now_s - began_s:.0f} s of {doing} without a result; "
                        "allow it a longer deadline"
                    ) from None
                if now_s >= self._last_line_s + self._timeouts.silence_s:
                    silent_s = now_s - self._last_line_s
                    raise self.fail(f"the agent wrote nothing for {silent_s:.0f} s of {doing}") from None
                continue  # a pong came meanwhile
            if event is None:
                raise self.fail(f"the agent ended while {doing}", exit_s=EXIT_S)
            if isinstance(event, TransportError):
                raise self.fail(event.message)
            return event

    def fail(self, message: str, *, exit_s: float = 0.0) -> TransportError:
        """Stop the process and return the error that every later call raises. `exit_s`: how long to wait for the exit
        code of a process that is ending by itself."""
        code = self._process.wait(exit_s)
        lines = self._process.last_lines()
        self._closed.set()
        self._outbox.put(None)
        self._stop()
        reason = None if self._diagnose is None else self._diagnose(self.boot_id)
        full = message if reason is None else f"{message}: {reason}"
        self._lost = TransportError(full, exit_code=code, last_lines=lines)
        return self._lost

    def finish(self) -> None:
        """Let the agent exit by itself. Raises TransportError if it does not, or exits with an error."""
        self._outbox.put(None)
        code = self._process.wait(max(0.0, min(self._timeouts.end_s, self._until_s - self.clock())))
        if code != 0:
            running = "was still running after its input had ended; it was stopped"
            seen = running if code is None else "failed at its end"
            lines = self._process.last_lines()
            self._closed.set()
            self._stop()
            raise TransportError(f"the agent {seen}", exit_code=code, last_lines=lines)

    def close(self) -> None:
        """Let the agent exit, and stop it if it does not. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._outbox.put(None)
        if self._lost is None:
            self._lost = TransportError("the runtime is closed; open it again")
            self._process.wait(self._timeouts.end_s)
        self._stop()

    def _stop(self) -> None:
        self._process.close()
        for thread in self._threads:
            thread.join(self._timeouts.end_s)

    def _write(self) -> None:
        """Lines as they come, and a ping when none came for a while."""
        while True:
            try:
                line = self._outbox.get(timeout=self._timeouts.ping_s)
            except queue.Empty:
                line = encode({"do": "ping", "request": self.next_number()})
            if line is None or self._lost is not None:
                break
            try:
                self._process.write_line(line)
            except TransportError:
                break  # the reader finds the end too, and reports it with the log's last lines
        self._process.close_stdin()

    def _read(self) -> None:
        """Whatever happens here, who waits for an event learns of it."""
        end: TransportError | None = None
        try:
            for line in self._process.lines():
                self._last_line_s = self.clock()
                self._take(line)
                if self._events.qsize() > MOST_UNREAD:
                    end = TransportError(f"the agent wrote {MOST_UNREAD} lines that nobody had asked for")
                    break
        except TransportError as error:
            end = error
        except Exception as bug:
            end = TransportError(f"reading the agent failed: {type(bug).__name__}: {bug}")
        finally:
            self._events.put(end)

    def _take(self, line: bytes) -> None:
        try:
            event = decode_event(line)
        except TransportError as error:
            self._events.put(error)
            return
        if not isinstance(event, Pong):
            self._events.put(event)
