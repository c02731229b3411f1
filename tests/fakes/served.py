"""A server of `phi-edge serve` in this process, on a free port."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from phi_edge.serve.app import Settings, build_app
from phi_edge.serve.server import listen
from runtimes.text.runtime import TextRuntime


@dataclass(frozen=True)
class Served:
    """Where it listens, and what it serves."""

    port: int
    runtime: TextRuntime
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextlib.contextmanager
def served(runtime: TextRuntime, settings: Settings) -> Iterator[Served]:
    """Serves until the end of the block."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(build_app(runtime, settings), log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Served(listening.getsockname()[1], runtime, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
