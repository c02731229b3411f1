"""The generate interface over a model that a service runs. What such a service cannot do is refused, never ignored."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator

from devices.transports.cloud.service import Ask, Ended, Service
from runtimes.api import DoneEvent, Event, GenerateRequest, Timings, TokenEvent, Usage
from runtimes.errors import RequestError, TransportError, UnsupportedError
from runtimes.text.messages import as_messages

NO_ID = -1  # of a token event: it is a piece of the stream, of one or more tokens that the service does not name
SUPPORTED = ("messages", "max_new_tokens", "temperature", "top_p", "stop")


class CloudRuntime:
    """See runtimes.api.Runtime.

    A token event is a piece of the stream, and its time is on this machine's clock: the network is in it. The counts
    are the service's own.
    """

    has_template = True

    def __init__(self, service: Service, clock: Callable[[], float] = time.perf_counter) -> None:
        self._service = service
        self._clock = clock
        self._closed = False
        self.answered_by: str | None = None  # the model of the last answer, as the service calls it

    @property
    def client_version(self) -> str:
        """See Service.client_version."""
        return self._service.client_version

    def generate(self, request: GenerateRequest) -> Generator[Event, None, None]:
        """See Runtime.generate. Raises TransportError where the service fails."""
        accepted = self._clock()
        if self._closed:
            raise RequestError("the runtime is closed; open it again")
        return self._events(_ask(request), accepted)

    def close(self) -> None:
        """See Runtime.close."""
        self._closed = True
        self._service.close()

    def _events(self, ask: Ask, accepted: float) -> Generator[Event, None, None]:
        ended: Ended | None = None
        with contextlib.closing(self._service.answer(ask)) as parts:
            for part in parts:
                if isinstance(part, Ended):
                    ended = part
                else:
                    yield TokenEvent(NO_ID, part, self._clock() - accepted)
        if ended is None:
            raise TransportError("the service's answer stopped before its end, or without its counts of tokens")
        self.answered_by = ended.model
        yield DoneEvent(
            finish=ended.finish,
            stop_string=ended.stop_string,
            usage=Usage(
                prompt=ended.prompt_tokens,
                reused=ended.reused_tokens,
                prefilled=max(0, ended.prompt_tokens - ended.reused_tokens),
                completion=ended.completion_tokens,
            ),
            timings=Timings(prefill_s=None, total_s=self._clock() - accepted),
        )


def _ask(request: GenerateRequest) -> Ask:
    """Raises RequestError for a conversation that is wrong, and UnsupportedError for what no service does."""
    for field in dataclasses.fields(GenerateRequest):
        if field.name not in SUPPORTED and getattr(request, field.name) != field.default:
            raise UnsupportedError(
                f"a service has no {field.name} in common with the artifacts; it takes {', '.join(SUPPORTED)}"
            )
    if request.messages is None:
        raise RequestError("messages is missing; a service takes a conversation")
    messages = as_messages(request.messages)
    if any(message.role == "tool" or message.tool_calls for message in messages):
        raise UnsupportedError("a service is asked without tools; give system, user and assistant messages")
    return Ask(
        messages=messages,
        max_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=request.stop,
    )
