"""A TokenSource over an agent on any Host: it writes orders, reads events, and never waits without an end.

Two threads serve it: one reads (so that nothing the agent says can block it), one writes and pings (so that a full
pipe can block nobody else).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Generator

from devices.transports.host import LineProcess
from runtimes.agent.wire import (
    HIGHEST_REQUEST,
    Answer,
    FromAgent,
    Ready,
    Reported,
    Sample,
    decode_event,
    encode,
    encode_generate,
)
from runtimes.errors import (
    DeviceBusyError,
    EngineError,
    RequestError,
    RuntimesError,
    TransportError,
    UnsupportedError,
)
from runtimes.loop.tokens import NewToken, TokenRecord, TokenRequest, TokensDone, check_request

PING_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long is waited before the device is taken for lost, in seconds."""

    load_s: float = 600.0  # for the ready line
    silence_s: float = 120.0  # without any line, pongs included
    progress_s: float = 600.0  # without a token of the answer that is being read
    end_s: float = 10.0  # for the process to end by itself when it is closed
    until_s: float = math.inf  # when everything must be over, on time.monotonic's clock


class RemoteTokens:
    """An agent's process as a TokenSource. Waits for its ready line; see `ready`.

    Raises TransportError and what the agent said (EngineError, RequestError, DeviceBusyError). After a
    TransportError in the middle of an answer it is dead: every further call raises the same; open a new one.
    """

    def __init__(
        self,
        process: LineProcess,
        *,
        digest: str | None = None,
        hold: bool = False,
        patience: Patience = Patience(),
        diagnose: Callable[[str | None], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`digest` is the artifact's that must be served. `hold`: tokens come with the done line, for benchmarks.
        `diagnose` is told the boot id that the agent started under, and asked why it was lost."""
        self._process = process
        self._hold = hold
        self._patience = patience
        self._diagnose = diagnose
        self._clock = clock
        self._numbers = itertools.count(1)
        self._running = threading.Lock()
        self._current: int | None = None  # the request that is being generated
        self._lost: TransportError | None = None
        self._boot_id: str | None = None
        self._closed = threading.Event()
        self._heard_s = clock()
        self._heard: queue.SimpleQueue[FromAgent | TransportError | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"agent{work.__name__}", daemon=True)
            for work in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.ready = self._wait_until_ready(digest)
        except BaseException:
            self.close()
            raise

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream."""
        called_s = self._clock()
        check_request(request, self.ready.context_tokens, self.ready.vocab_size)
        self._check_capabilities(request)
        if request.session is not None:
            # Any text may name a session; on the wire it is short and plain.
            request = dataclasses.replace(
                request, session=hashlib.sha256(request.session.encode(errors="surrogatepass")).hexdigest()
            )
        return self._stream(request, called_s)

    def cancel(self) -> None:
        """See TokenSource.cancel."""
        number = self._current
        if number is not None and "cancel" in self.ready.capabilities:
            self._send(encode({"do": "cancel", "request": number}))

    def forget(self) -> None:
        """Drop what the sessions have cached on the device."""
        with self._exclusively():
            number = self._next_number()
            self._send(encode({"do": "forget", "request": number}))
            self._answer(number, "forgetting the sessions")

    def sample(self) -> Sample:
        """Memory of the agent's process and conditions of its machine, now."""
        with self._exclusively():
            number = self._next_number()
            self._send(encode({"do": "sample", "request": number}))
            event = self._answer(number, "sampling")
        assert isinstance(event, Sample)
        return event

    def finish(self) -> None:
        """Let the agent end by itself; raises TransportError if it fails at its end."""
        self._outbox.put(None)
        code = self._process.wait(max(0.0, min(self._patience.end_s, self._patience.until_s - self._clock())))
        if code != 0:
            said = "was still running after its input had ended; it was ended" if code is None else "failed at its end"
            lines = self._process.last_lines()
            self._closed.set()
            self._end_process()
            raise TransportError(f"the agent {said}", exit_code=code, last_lines=lines)

    def close(self) -> None:
        """See TokenSource.close."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._outbox.put(None)
        if self._lost is None:
            self._lost = TransportError("the runtime is closed; open it again")
            self._process.wait(self._patience.end_s)
        self._end_process()

    def _wait_until_ready(self, digest: str | None) -> Ready:
        until_s = self._clock() + self._patience.load_s
        event = self._next("loading the artifact", until_s)
        if isinstance(event, Reported):
            raise _reported(event)
        if not isinstance(event, Ready):
            raise self._fail(f"the agent's first line is a {type(event).__name__.lower()}, not its ready line")
        if digest is not None and event.artifact not in (None, digest):
            raise self._fail(f"the agent serves artifact {event.artifact:.12}…, asked for was {digest:.12}…")
        self._boot_id = event.boot_id
        return event

    def _check_capabilities(self, request: TokenRequest) -> None:
        sampling, can = request.sampling, self.ready.capabilities
        for name, used in (
            ("temperature", sampling.temperature > 0),
            ("top_k", sampling.temperature > 0 and sampling.top_k is not None),
            ("top_p", sampling.temperature > 0 and sampling.top_p is not None),
            ("session", request.session is not None),
            ("deadline_s", request.deadline_s is not None),
            ("hold", self._hold),
        ):
            if used and name not in can:
                raise UnsupportedError(
                    f"the agent on this device ({self.ready.agent}) cannot honour {name}; it can: "
                    f"{', '.join(can) or 'nothing optional'}; leave {name} out"
                )

    def _exclusively(self) -> _Exclusive:
        return _Exclusive(self._running)

    def _stream(self, request: TokenRequest, called_s: float) -> Generator[TokenRecord, None, None]:
        with self._exclusively():
            waited_s = self._clock() - called_s
            if request.deadline_s is not None:
                request = dataclasses.replace(request, deadline_s=request.deadline_s - waited_s)
            number = self._next_number()
            self._current = number
            ended = False
            self._send(encode_generate(number, request, hold=self._hold))
            try:
                while not ended:
                    event = self._answer(number, "generating")
                    record = event.record if isinstance(event, Answer) else None
                    if isinstance(record, NewToken):
                        assert record.at_s is not None  # the protocol's token lines have it
                        yield NewToken(record.id, record.at_s + waited_s)
                    elif isinstance(record, TokensDone):
                        ended = True
                        total_s = None if record.total_s is None else record.total_s + waited_s
                        yield dataclasses.replace(record, total_s=total_s)
                    else:
                        raise self._fail(f"the agent said {event!r:.80} in the middle of an answer")
            except RuntimesError:  # an error line ends the request as a done line does; or the agent is lost
                ended = True
                raise
            finally:
                if not ended and self._lost is None and not self._closed.is_set():
                    self.cancel()
                    self._drain(number)
                self._current = None

    def _drain(self, number: int) -> None:
        """Read a cancelled answer to its end, so that the next one starts clean."""
        while True:
            event = self._answer(number, "cancelling")
            if isinstance(event, Answer) and event.event == "done":
                return

    def _answer(self, number: int, doing: str) -> Answer | Sample:
        """The next event of this request. Raises what an error line says."""
        while True:
            event = self._next(doing, self._clock() + self._patience.progress_s)
            if isinstance(event, Reported) and event.request in (number, None):
                raise self._fail(event.message) if event.fatal else _reported(event)
            if isinstance(event, Answer | Sample) and event.request == number:
                return event

    def _next(self, doing: str, until_s: float) -> FromAgent:
        """The next event. Raises, and is lost for good, when the agent ends, is silent or takes too long."""
        began_s = self._clock()
        until_s = min(until_s, self._patience.until_s)
        while True:
            if self._lost is not None:
                raise self._lost
            silent_until_s = self._heard_s + self._patience.silence_s
            try:
                event = self._heard.get(timeout=max(0.0, min(until_s, silent_until_s) - self._clock()))
            except queue.Empty:
                now_s = self._clock()
                if now_s >= until_s:
                    raise self._fail(
                        f"the agent was ended after {now_s - began_s:.0f} s of {doing} without a result; "
                        "allow it a longer deadline"
                    ) from None
                if now_s >= self._heard_s + self._patience.silence_s:
                    raise self._fail(f"the agent said nothing for {now_s - self._heard_s:.0f} s of {doing}") from None
                continue  # a pong came meanwhile
            if event is None:
                raise self._fail(f"the agent ended while {doing}")
            if isinstance(event, TransportError):
                raise self._fail(str(event))
            return event

    def _fail(self, message: str) -> TransportError:
        """End the process and remember why: from now on every call raises this."""
        code = self._process.wait(1.0 if "ended" in message else 0.0)
        lines = self._process.last_lines()
        self._closed.set()
        self._outbox.put(None)
        self._end_process()
        reason = None if self._diagnose is None else self._diagnose(self._boot_id)
        told = message if reason is None else f"{message}: {reason}"
        self._lost = TransportError(told, exit_code=code, last_lines=lines)
        return self._lost

    def _end_process(self) -> None:
        self._process.close()
        for thread in self._threads:
            thread.join(self._patience.end_s)

    def _next_number(self) -> int:
        return next(self._numbers) % HIGHEST_REQUEST

    def _send(self, line: bytes) -> None:
        if len(line) > self.ready.max_line_bytes:
            raise RequestError(f"the request is {len(line)} bytes; this agent takes {self.ready.max_line_bytes}")
        self._outbox.put(line)

    def _write(self) -> None:
        """Orders as they come, and a ping when none came for a while."""
        while True:
            try:
                line = self._outbox.get(timeout=PING_S)
            except queue.Empty:
                line = encode({"do": "ping", "request": self._next_number()})
            if line is None or self._lost is not None:
                break
            try:
                self._process.write_line(line)
            except TransportError:
                break  # the reader finds the end, and tells it with the log's last lines
        self._process.close_stdin()

    def _read(self) -> None:
        for line in self._process.lines():
            self._heard_s = self._clock()
            try:
                event = decode_event(line)
            except TransportError as error:
                self._heard.put(error)
                continue
            if not (isinstance(event, Answer) and event.event == "pong"):
                self._heard.put(event)
        self._heard.put(None)


class _Exclusive:
    """One request at a time; a second is refused instead of waiting."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RequestError("another request is running; read it to its end or close it first")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _reported(event: Reported) -> Exception:
    """The agent's error as the exception that the same fault raises in this process."""
    if event.code == "unsupported":
        return UnsupportedError(event.message)
    if event.code == "busy" and event.fatal:
        return DeviceBusyError(event.message)
    if event.code in ("engine", "artifact"):
        return EngineError(event.message)
    if event.code in ("request", "busy"):
        return RequestError(event.message)
    return TransportError(f"the agent reported {event.code}: {event.message}")
