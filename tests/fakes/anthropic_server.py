"""A small server that speaks Anthropic's streaming messages protocol, on a free port: two tokens a piece, no model."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from phi_edge.serve.server import listen

KEY = "sk-fake"
PROMPT_TOKENS = 130


@dataclass
class FakeAnthropic:
    """Where it listens, and the bodies of all requests."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    broken: str = ""  # "counts", "cut" or "busy": what is wrong with its answers

    async def messages(self, request: Request) -> Response:
        """POST /v1/messages."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "authentication_error", "invalid key")
        if self.broken == "busy":
            return refusal(429, "rate_limit_error", "too many requests")
        body = await request.json()
        self.asked.append(body)
        events = answer(body, self.broken)
        lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        return StreamingResponse(lines, media_type="text/event-stream")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "authentication_error", "invalid key")
        return JSONResponse({"data": [], "has_more": False, "first_id": None, "last_id": None})


def refusal(status: int, kind: str, message: str) -> Response:
    """As the protocol has errors."""
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)


def answer(body: dict[str, Any], broken: str) -> Iterator[dict[str, Any]]:
    """The events of an answer: 7000 to a question about grams, and words up to max_tokens to anything else."""
    count = "many" if broken == "counts" else PROMPT_TOKENS
    usage = {"input_tokens": count, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": f"{body['model']}-20260101"}
    yield {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    is_short = "grams" in body["messages"][-1]["content"]
    pieces = ["70", "00"] if is_short else ["one two "] * (body["max_tokens"] // 2)
    for piece in pieces:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    if broken == "cut":
        return
    yield {"type": "content_block_stop", "index": 0}
    reason = "end_turn" if is_short else "max_tokens"
    written = 3 if is_short else body["max_tokens"]
    delta = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": written}}
    yield {"type": "message_stop"}


@contextlib.contextmanager
def fake_anthropic() -> Iterator[FakeAnthropic]:
    """Serves until the end of the block."""
    fake = FakeAnthropic()
    listening = listen("127.0.0.1", 0)
    routes = [Route("/v1/messages", fake.messages, methods=["POST"]), Route("/v1/models", fake.models)]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    fake.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
