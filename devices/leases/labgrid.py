"""Leases across hosts: a device is a place of labgrid, and its coordinator says who has acquired it.

labgrid leaves a place acquired when its client is gone, so a job counts in a tag of the place; one whose count does not
move any more, by the clock of the job that waits, is dead. Each process acquires under a name of its own, so that
releasing a dead one's place can never take it from a third one that was faster.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from devices.errors import LeaseError
from devices.leases.lease import TIMES, Held, Holder, LeaseTimes

CALL_S = 10.0
_JOB, _SINCE, _BEAT = "phi-edge-job", "phi-edge-since", "phi-edge-beat"
_TAKEN = "already acquired"  # what the coordinator says of a place
_USER = "phi-edge-"  # and the process, and a random word


@dataclass(frozen=True)
class _Seen:
    """What a place's count was, and since when it has not moved."""

    user: str
    beat: str
    since_s: float


class LabgridStore:
    """See devices.leases.lease.Store. A device's key is the name of its place."""

    def __init__(self, coordinator: str, times: LeaseTimes = TIMES) -> None:
        self._coordinator, self._times = coordinator, times
        self._seen: dict[str, _Seen] = {}
        self._user = f"{platform.node()}/{_USER}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._connected: _Session | None = None
        self._beats: dict[str, int] = {}  # by token
        self._lock = threading.Lock()

    def take(self, device: str, token: str, job: str) -> Held | None:
        """See Store.take."""
        with self._session() as session:
            place = session.place(device)
            if place.acquired:
                silent_s = time.monotonic() - self._look(device, place).since_s
                if silent_s < self._times.dead_s or not _is_ours(place.acquired):
                    return _held(place, silent_s)
                session.release(device, place.acquired)
            while not session.acquire(device):
                place = session.place(device)
                if place.acquired:  # else the job that was faster has ended already
                    return _held(place, 0.0)
            since = datetime.now(UTC).isoformat(timespec="seconds")
            session.tag(device, {_JOB: job, _SINCE: since, _BEAT: f"{token} 0"})
            return None

    def beat(self, device: str, token: str) -> bool:
        """See Store.beat."""
        with self._session() as session:
            if not self._is_held(session.place(device), token):
                return False
            self._beats[token] = self._beats.get(token, 0) + 1
            session.tag(device, {_BEAT: f"{token} {self._beats[token]}"})
            return True

    def release(self, device: str, token: str) -> None:
        """See Store.release."""
        with self._session() as session:
            self._beats.pop(token, None)
            if self._is_held(session.place(device), token):
                session.release(device, self._user)

    def held(self) -> Sequence[Held]:
        """See Store.held."""
        with self._session() as session:
            return [_held(place, 0.0) for place in session.places() if place.acquired]

    def close(self) -> None:
        """See Store.close."""
        with self._lock:
            if self._connected is not None:
                self._connected.close()
                self._connected = None

    @contextlib.contextmanager
    def _session(self) -> Iterator[_Session]:
        """The connection, for one thread at a time. One that failed is not used again: its coordinator may have
        forgotten who we are."""
        with self._lock:
            if self._connected is None:
                self._connected = _Session(self._coordinator, self._user)
            try:
                yield self._connected
            except LeaseError:
                self._connected.close()
                self._connected = None
                raise

    def _is_held(self, place: Any, token: str) -> bool:
        """Whether it is still this lease that has the place."""
        return bool(place.acquired == self._user and place.tags.get(_BEAT, "").partition(" ")[0] == token)

    def _look(self, device: str, place: Any) -> _Seen:
        """Since when we have seen this holder with this count."""
        before = self._seen.get(device)
        beat = place.tags.get(_BEAT, "")
        if before is None or (before.user, before.beat) != (place.acquired, beat):
            self._seen[device] = before = _Seen(place.acquired, beat, time.monotonic())
        return before


class _Session:
    """A connection to the coordinator, which knows it by the name of its user."""

    def __init__(self, coordinator: str, user: str) -> None:
        try:
            import grpc
            from labgrid.remote.generated import labgrid_coordinator_pb2, labgrid_coordinator_pb2_grpc
        except ImportError as error:
            raise LeaseError(
                f"leases.coordinator needs labgrid ({error}): pip install 'phi-edge[lab]', or leave it out"
            ) from error
        self._grpc, self._messages = grpc, labgrid_coordinator_pb2
        self._user, self._coordinator = user, coordinator
        # The coordinator knows a client by its connection, and gRPC would share one among channels.
        self._channel = grpc.insecure_channel(coordinator, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = labgrid_coordinator_pb2_grpc.CoordinatorStub(self._channel)
        self._ended = threading.Event()
        stream = self._stub.ClientStream(self._hello())
        try:
            with self._errors():
                grpc.channel_ready_future(self._channel).result(timeout=CALL_S)
                next(stream)  # the coordinator's answer to `sync`: it knows our name now
        except LeaseError:
            self.close()
            raise
        self._stream = stream

    def place(self, name: str) -> Any:
        """The place of this name."""
        found = {place.name: place for place in self.places()}
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise LeaseError(
                f"labgrid's coordinator {self._coordinator} has no place {name!r}; known: {known}; make it with "
                f"`labgrid-client -p {name} create`"
            )
        return found[name]

    def places(self) -> Sequence[Any]:
        """All places."""
        with self._errors():
            answer = self._stub.GetPlaces(self._messages.GetPlacesRequest(), timeout=CALL_S)
        return list(answer.places)

    def acquire(self, name: str) -> bool:
        """Whether the place is ours now; not where another job was faster."""
        try:
            self._stub.AcquirePlace(self._messages.AcquirePlaceRequest(placename=name), timeout=CALL_S)
        except self._grpc.RpcError as error:
            # A place whose resources are not there is refused by the same code; and who had it may have released it
            # before we ask who that is.
            refused = error.code() == self._grpc.StatusCode.FAILED_PRECONDITION
            if refused and (_TAKEN in (error.details() or "") or self.place(name).acquired):
                return False
            raise self._error(error) from error
        return True

    def release(self, name: str, user: str) -> None:
        """Release the place if it is this user's."""
        request = self._messages.ReleasePlaceRequest(placename=name, fromuser=user)
        with self._errors():
            self._stub.ReleasePlace(request, timeout=CALL_S)

    def tag(self, name: str, tags: Mapping[str, str]) -> None:
        """Set tags of a place; others stay."""
        with self._errors():
            self._stub.SetPlaceTags(self._messages.SetPlaceTagsRequest(placename=name, tags=tags), timeout=CALL_S)

    def close(self) -> None:
        """Drop the connection."""
        self._ended.set()
        self._channel.close()

    def _hello(self) -> Iterator[Any]:
        """Who we are; the stream stays open as long as the session."""
        message = self._messages.ClientInMessage()
        message.startup.version = importlib.metadata.version("labgrid")
        message.startup.name = self._user
        yield message
        message = self._messages.ClientInMessage()
        message.sync.id = 1
        yield message
        self._ended.wait()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (self._grpc.RpcError, self._grpc.FutureTimeoutError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> LeaseError:
        said = error.details() if isinstance(error, self._grpc.Call) else None
        return LeaseError(
            f"labgrid's coordinator {self._coordinator} did not do it: {said or 'no answer'}; check that it runs, and "
            "leases.coordinator in the lab file"
        )


def _is_ours(user: str) -> bool:
    """Whether a job of ours has it. A person who acquired it by hand does not count, and is not dead."""
    return user.partition("/")[2].startswith(_USER)


def _held(place: Any, silent_s: float) -> Held:
    host, _, user = place.acquired.partition("/")
    pid = user.removeprefix(_USER).partition("-")[0]
    ours = _is_ours(place.acquired)
    holder = Holder(
        job=place.tags.get(_JOB, "a job that is starting") if ours else f"{user}, by labgrid",
        host=host,
        pid=int(pid) if ours and pid.isdigit() else None,
        since=place.tags.get(_SINCE) if ours else None,
    )
    return Held(device=place.name, holder=holder, silent_s=silent_s)
