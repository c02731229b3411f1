"""The listening socket and uvicorn on it."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket

import uvicorn

from phi_edge.errors import UserError
from phi_edge.serve.app import Settings, build_app
from phi_edge.terminal import echo
from runtimes.terminal import one_line
from runtimes.text.runtime import TextRuntime

# How long answers that are being sent may go on after Ctrl-C.
LAST_ANSWERS_S = 3


def serve(runtime: TextRuntime, settings: Settings, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM, then close the runtime. Raises UserError where it cannot listen."""
    try:
        listening = listen(host, port)
    except OSError as error:
        runtime.close()
        raise UserError(
            f"cannot listen on {host} port {port} ({error.strerror or error}); give another --host or --port"
        ) from error
    port = listening.getsockname()[1]
    if not _is_loopback(host):
        settings = dataclasses.replace(settings, hosts=None)
        if settings.key is None:
            echo(f"warning: {host} lets other machines call without a key; --api-key-env asks for one", err=True)
    if str(runtime.suggested):
        echo(f"sampling, where a request has none: {runtime.suggested}, as the model's makers suggest", err=True)
    if runtime.suggested.unsupported:
        names = ", ".join(runtime.suggested.unsupported)
        echo(f"warning: generation_config.json also has {one_line(names)}, which is not followed", err=True)
    shown = f"[{host}]" if ":" in host else host
    echo(f"serving {settings.model} on http://{shown}:{port} (Ctrl-C ends it)", err=True)
    config = uvicorn.Config(
        build_app(runtime, settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    with contextlib.suppress(KeyboardInterrupt):  # how a server ends
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, made before uvicorn starts, so that a port in use is an error of ours, in one line. Port 0 is
    a free one. Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # Its connections inherit this. asyncio leaves sockets of create_server without it, and each second small packet,
    # such as a token, would wait 40 ms for the client's acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
