"""An agent on a device as a TokenSource: requests become lines of the agent protocol, its events become token records.

`open_remote` starts the conversation and waits for the ready line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from devices.transports.agent_connection import AgentConnection
from devices.transports.answer_check import AnswerCheck, score_problem
from devices.transports.host import LineProcess
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from export.artifact import Manifest
from runtimes.agent.events import ErrorEvent, Event, Ready, Reply, Scored
from runtimes.agent.fields import GRAMMARS
from runtimes.agent.scoring import Prediction, ScoreRequest
from runtimes.agent.wire import encode, encode_generate, encode_score
from runtimes.errors import (
    DeviceBusyError,
    EngineError,
    RequestError,
    RuntimesError,
    TransportError,
    UnsupportedError,
)
from runtimes.loop.tokens import NewToken, TokenRecord, TokenRequest, TokensDone, check_request


def open_remote(
    process: LineProcess,
    *,
    manifest: Manifest | None = None,
    hold: bool = False,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    until_s: float = math.inf,
    diagnose: Callable[[str | None], str | None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RemoteTokens:
    """Wait until the agent in this process is ready. Closes the process when it does not get ready.

    `manifest` is that of the artifact which it must serve. `hold`: the agent sends the tokens together with the done
    line, for benchmarks. `until_s`: when everything must be over, on `clock`. `diagnose` gets the boot id that the
    agent reported and says why the agent was lost, or None.
    Raises TransportError, and what the agent reports: EngineError, RequestError, DeviceBusyError.
    """
    connection = AgentConnection(process, timeouts=timeouts, until_s=until_s, diagnose=diagnose, clock=clock)
    connection.start()
    try:
        ready = _wait_until_ready(connection, timeouts.load_s, manifest)
    except BaseException:
        connection.close()
        raise
    return RemoteTokens(connection, ready, hold=hold, timeouts=timeouts)


class RemoteTokens:
    """See TokenSource. `ready` is what the agent reported about itself.

    After a TransportError in the middle of an answer every further call raises the same; open a new one.
    """

    def __init__(self, connection: AgentConnection, ready: Ready, *, hold: bool, timeouts: Timeouts) -> None:
        self.ready = ready
        self._connection = connection
        self._hold = hold
        self._timeouts = timeouts
        self._running = threading.Lock()
        self._current: int | None = None  # the number of the request that is being generated

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream."""
        called_s = self._connection.clock()
        check_request(request, self.ready.context_tokens, self.ready.vocab_size)
        self._check_capabilities(request)
        if request.session is not None:
            # Any text may name a session; on the wire it is short and plain.
            request = dataclasses.replace(
                request, session=hashlib.sha256(request.session.encode(errors="surrogatepass")).hexdigest()
            )
        return self._stream(request, called_s)

    def predict(self, request: ScoreRequest) -> Sequence[Prediction]:
        """How probable the wanted ids are at each position. Raises RuntimesError."""
        if "score" not in self.ready.capabilities:
            raise UnsupportedError(
                f"the agent on this device ({self.ready.agent}) cannot score; score the artifact on this machine, "
                "without --device"
            )
        with self._exclusively():
            number = self._connection.next_number()
            self._send(encode_score(number, request))
            while True:
                event = self._next_event(number, "scoring", self._timeouts.progress_s)
                if isinstance(event, Scored):
                    if (problem := score_problem(event.predictions, request, self.ready.vocab_size)) is not None:
                        raise self._connection.fail(f"the agent cannot be trusted: {problem}")
                    return event.predictions

    def cancel(self) -> None:
        """See TokenSource.cancel."""
        number = self._current
        if number is not None and "cancel" in self.ready.capabilities:
            self._connection.send(encode({"do": "cancel", "request": number}))

    def finish(self) -> None:
        """Let the agent exit by itself; raises TransportError if it fails at its end."""
        self._connection.finish()

    def close(self) -> None:
        """See TokenSource.close."""
        self._connection.close()

    def _check_capabilities(self, request: TokenRequest) -> None:
        sampling, can = request.sampling, self.ready.capabilities
        for name, used in (
            ("temperature", sampling.temperature > 0),
            ("top_k", sampling.temperature > 0 and sampling.top_k is not None),
            ("top_p", sampling.temperature > 0 and sampling.top_p is not None),
            ("min_p", sampling.temperature > 0 and sampling.min_p is not None),
            ("repetition_penalty", sampling.repetition_penalty != 1),
            ("presence_penalty", sampling.presence_penalty != 0),
            ("frequency_penalty", sampling.frequency_penalty != 0),
            ("logprobs", request.logprobs is not None),
            *((kind, request.grammar is not None and request.grammar.kind == kind) for kind in GRAMMARS),
            ("adapter", request.adapter is not None),
            ("session", request.session is not None),
            ("deadline_s", request.deadline_s is not None),
            ("speculate", request.speculate),
            ("hold", self._hold),
        ):
            if used and name not in can:
                fix = f"leave {name} out"
                if name in GRAMMARS and self.ready.agent.endswith("python"):
                    fix = f"install llguidance for the device's Python, or {fix}"
                raise UnsupportedError(
                    f"the agent on this device ({self.ready.agent}) does not support {name}; it supports: "
                    f"{', '.join(can) or 'nothing optional'}; {fix}"
                )

    def _stream(self, request: TokenRequest, called_s: float) -> Generator[TokenRecord, None, None]:
        with self._exclusively():
            waited_s = self._connection.clock() - called_s
            if request.deadline_s is not None:
                request = dataclasses.replace(request, deadline_s=request.deadline_s - waited_s)
            self._current = number = self._connection.next_number()
            check = AnswerCheck(request, context_tokens=self.ready.context_tokens, vocab_size=self.ready.vocab_size)
            until_s = math.inf
            if request.deadline_s is not None:  # a forward that runs at the deadline may take its time
                until_s = self._connection.clock() + max(0.0, request.deadline_s) + self._timeouts.silence_s
            ended = False
            try:
                self._send(encode_generate(number, request, hold=self._hold))
                while not ended:
                    record = self._next_record(number, "generating", check, until_s)
                    ended = isinstance(record, TokensDone)
                    yield _later(record, waited_s)
            except RuntimesError:  # an error line ends the request as a done line does; or the agent is lost
                ended = True
                raise
            finally:
                if not ended and self._connection.open:
                    self.cancel()
                    self._drain(number, check)
                self._current = None

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """One request at a time; a second one is refused instead of waiting."""
        if not self._running.acquire(blocking=False):
            raise RequestError("another request is running; read it to its end or close it first")
        try:
            yield
        finally:
            self._running.release()

    def _send(self, line: bytes) -> None:
        if len(line) > self.ready.max_line_bytes:
            raise RequestError(
                f"the request is {len(line)} bytes long; this agent takes {self.ready.max_line_bytes}; shorten it"
            )
        self._connection.send(line)

    def _drain(self, number: int, check: AnswerCheck) -> None:
        """Read a cancelled answer to its end, so that the next one starts clean."""
        until_s = math.inf
        if "cancel" in self.ready.capabilities:
            until_s = self._connection.clock() + self._timeouts.silence_s
        while not isinstance(self._next_record(number, "cancelling", check, until_s), TokensDone):
            pass

    def _next_record(self, number: int, doing: str, check: AnswerCheck, until_s: float) -> NewToken | TokensDone:
        """The next record of this request. Raises what an error line reports, and TransportError for a record that no
        answer to it has."""
        limit_s = self._timeouts.end_s if check.complete else self._timeouts.progress_s
        until_s = min(until_s, self._connection.clock() + limit_s)
        while True:
            event = self._next_event(number, doing, until_s - self._connection.clock())
            if isinstance(event, Reply):
                if (problem := check.problem(event.record)) is not None:
                    raise self._connection.fail(f"the agent cannot be trusted: {problem}")
                return event.record

    def _next_event(self, number: int, doing: str, limit_s: float) -> Event:
        """The next line that is not an error. Raises what an error line about this request reports."""
        event = self._connection.next_event(doing, limit_s)
        if isinstance(event, Reply | Scored) and event.number != number:
            raise self._connection.fail(f"the agent answers request {event.number}, and {number} was asked")
        if isinstance(event, ErrorEvent) and event.number in (number, None):
            raise self._connection.fail(event.message) if event.fatal else _exception(event)
        return event


def _wait_until_ready(connection: AgentConnection, load_s: float, manifest: Manifest | None) -> Ready:
    event = connection.next_event("loading the artifact", load_s)
    if isinstance(event, ErrorEvent):
        raise _exception(event)
    if not isinstance(event, Ready):
        raise connection.fail(f"the agent's first line is {event!r:.80}, not its ready line")
    if manifest is not None:
        _check_ready(connection, event, manifest)
    connection.boot_id = event.boot_id
    return event


def _check_ready(connection: AgentConnection, ready: Ready, manifest: Manifest) -> None:
    digest = manifest.digest()
    if ready.artifact not in (None, digest):
        raise connection.fail(f"the agent serves artifact {ready.artifact:.12}…, but {digest:.12}… was asked for")
    seen, wanted = (ready.context_tokens, ready.vocab_size), (manifest.context_tokens, manifest.model.vocab_size)
    if seen != wanted:
        raise connection.fail(
            f"the agent reports a context of {seen[0]} tokens and a vocabulary of {seen[1]}; the artifact has "
            f"{wanted[0]} and {wanted[1]}"
        )


def _later(record: NewToken | TokensDone, waited_s: float) -> TokenRecord:
    """Its times since `stream` was called: the agent counts from when it read the line."""
    if isinstance(record, NewToken):
        assert record.at_s is not None  # the protocol's token lines have it
        return dataclasses.replace(record, at_s=record.at_s + waited_s)
    return dataclasses.replace(record, total_s=None if record.total_s is None else record.total_s + waited_s)


def _exception(event: ErrorEvent) -> Exception:
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
