"""What is checked of every request before anything reads it: the host's name, the key, the size."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi_edge.serve.errors import ApiError
from phi_edge.serve.page import PAGE

MAX_BODY_BYTES = 4 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = (*PAGE, "/health")


class Guard:
    """Answers requests that may not pass, and counts all answers."""

    def __init__(
        self, app: ASGIApp, *, key: str | None, hosts: Collection[str] | None, count: Callable[[str, int], None]
    ) -> None:
        """`hosts` are the names by which a client may call us: another one is a page of another site that had its name
        resolved to this machine. None: any. `count` gets each answer's path and status."""
        self._app = app
        self._key = key
        self._hosts = hosts
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
            await send(message)

        try:
            self._check(Request(scope))
        except ApiError as error:
            await error.response()(scope, receive, counted)
        else:
            await self._app(scope, receive, counted)

    def _check(self, request: Request) -> None:
        host = _host(request.headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, f"the host {host!r:.60} is not served; call {' or '.join(self._hosts)}")
        if self._key is None or request.scope["path"] in OPEN_PATHS:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host(header: str) -> str | None:
    """The host's name of a Host header, which may be anything. Raises ApiError."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError as error:  # a bracket of an IPv6 address without the other
        raise ApiError(400, f"the host {header!r:.60} is no name and no address") from error


async def read_body(request: Request) -> bytes:
    """The body. Raises ApiError where it is no JSON by its type, too long, or not all of it comes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also for safety: a page of another site can send any other type without being asked first.
        raise ApiError(415, f"the content type is {kind!r:.60}; send application/json")
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes; shorten it")
    except ClientDisconnect as gone:  # nobody reads the answer, which is counted
        raise ApiError(400, "the client left before the end of its body") from gone
    return bytes(body)
