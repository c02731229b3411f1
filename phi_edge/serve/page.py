"""The chat page: its files, by the path at which the server has them."""

from __future__ import annotations

import importlib.resources
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

_SHARED = importlib.resources.files("runtimes") / "page"  # with the web bundle
_OWN = importlib.resources.files("phi_edge.serve")
PAGE = {
    "/": (_SHARED / "index.html", "text/html"),
    "/page.css": (_SHARED / "page.css", "text/css"),
    "/chat.js": (_SHARED / "chat.js", "text/javascript"),
    "/page.js": (_OWN / "page.js", "text/javascript"),
}
# The page runs its own script and style and talks to this server, and nothing else.
SOURCES = "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def send_page(path: str) -> Callable[[Request], Awaitable[Response]]:
    """The handler of one file of PAGE."""
    file, kind = PAGE[path]

    async def send(request: Request) -> Response:
        return Response(file.read_bytes(), media_type=kind, headers={"Content-Security-Policy": SOURCES})

    return send
