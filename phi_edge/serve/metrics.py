"""What the server counts, in Prometheus' text form: requests, tokens, times, the queue."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from phi_edge.serve.slot import Slot
from runtimes.api import DoneEvent, Event

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
RATES = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500)


class Metrics:
    """One server's counters, in a registry of their own."""

    def __init__(self, slot: Slot) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "phi_edge_requests", "Answers by path and status.", ["path", "status"], registry=registry
        )
        self._tokens = Counter("phi_edge_tokens", "Tokens: prefilled, reused, completion.", ["kind"], registry=registry)
        self._ends = Counter("phi_edge_generations", "Generations by how they ended.", ["finish"], registry=registry)
        self._first = Histogram(
            "phi_edge_first_token_seconds",
            "From the request's arrival to its first token, waiting included.",
            buckets=SECONDS,
            registry=registry,
        )
        self._rate = Histogram(
            "phi_edge_decode_tokens_per_second", "After the first token.", buckets=RATES, registry=registry
        )
        waiting = Gauge("phi_edge_waiting", "Requests in the queue.", registry=registry)
        running = Gauge("phi_edge_running", "Requests that are being generated: 0 or 1.", registry=registry)
        waiting.set_function(lambda: slot.waiting)
        running.set_function(lambda: slot.running)

    def count(self, path: str, status: int) -> None:
        """One answer."""
        self._requests.labels(path, str(status)).inc()

    async def watch(self, events: AsyncIterator[Event], submitted_s: float) -> AsyncGenerator[Event, None]:
        """The same events, counted. One that ends early counts as cancelled."""
        first_s: float | None = None
        finish = "cancelled"
        try:
            async for event in events:
                now_s = time.perf_counter()
                if isinstance(event, DoneEvent):
                    finish = event.finish
                    self._count_tokens(event)
                    if first_s is not None and event.usage.completion > 1 and now_s > first_s:
                        self._rate.observe((event.usage.completion - 1) / (now_s - first_s))
                elif first_s is None:
                    first_s = now_s
                    self._first.observe(first_s - submitted_s)
                yield event
        finally:
            self._ends.labels(finish).inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def _count_tokens(self, done: DoneEvent) -> None:
        for kind in ("prefilled", "reused", "completion"):
            self._tokens.labels(kind).inc(getattr(done.usage, kind))
