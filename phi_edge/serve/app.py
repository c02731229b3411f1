"""The HTTP interface of one runtime: routes, and how a request becomes a job and its events an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from phi_edge.serve.bodies import Body, ChatBody, CompletionBody
from phi_edge.serve.chat import Answering, chat_pieces, completion_pieces, whole_chat, whole_completion
from phi_edge.serve.errors import ApiError, api_error
from phi_edge.serve.guard import LOOPBACK, Guard, read_body
from phi_edge.serve.metrics import Metrics
from phi_edge.serve.openapi import openapi
from phi_edge.serve.page import PAGE, send_page
from phi_edge.serve.requests import chat_request, completion_request
from phi_edge.serve.responses import Responding, response_events, whole_response
from phi_edge.serve.responses_body import ResponsesBody, responses_request
from phi_edge.serve.slot import Job, QueueFullError, Slot
from runtimes.api import Event, GenerateRequest
from runtimes.errors import RuntimesError
from runtimes.text.runtime import TextRuntime

B = TypeVar("B", bound=Body)
Objects = AsyncGenerator[dict[str, Any], None]


@dataclass(frozen=True)
class Settings:
    """How a server is reached. `hosts` None: by any name."""

    model: str
    queue_limit: int = 8
    key: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK


def build_app(runtime: TextRuntime, settings: Settings) -> Starlette:
    """The application. It closes the runtime at its end."""
    slot = Slot(runtime, queue_limit=settings.queue_limit)
    metrics = Metrics(slot)
    server = Server(slot, settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(slot.close)
        runtime.close()

    routes = [
        Route("/v1/chat/completions", server.chat_completions, methods=["POST"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/responses", server.responses, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{model:path}", server.model),
        Route("/health", server.health),
        Route("/metrics", server.metrics_page),
        Route("/openapi.json", server.openapi),
        *(Route(path, send_page(path)) for path in PAGE),
    ]
    paths = {route.path for route in routes}
    guard = Middleware(
        Guard,
        key=settings.key,
        hosts=settings.hosts,
        count=lambda path, status: metrics.count(path if path in paths else "other", status),
    )
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        **dict.fromkeys((ApiError, ValidationError, QueueFullError, RuntimesError), _error),
    }
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=lifespan)


class Server:
    """The handlers."""

    def __init__(self, slot: Slot, settings: Settings, metrics: Metrics) -> None:
        self._slot, self._settings, self._metrics = slot, settings, metrics
        self._runtime = slot.runtime
        self._adapters = model_names(settings.model, slot.runtime)

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        body = await self._read(request, ChatBody)
        answering = self._answering(body, "chat.completion", tools=bool(body.tools), logprobs=bool(body.logprobs))
        return await self._answer(
            request,
            self._adapted(body.model, chat_request(body, self._runtime)),
            whole=None if body.stream else lambda events: whole_chat(answering, events),
            pieces=lambda events: chat_pieces(answering, events),
        )

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        body = await self._read(request, CompletionBody)
        answering = self._answering(body, "text_completion", tools=False, logprobs=body.logprobs is not None)
        return await self._answer(
            request,
            self._adapted(body.model, completion_request(body, self._runtime)),
            whole=None if body.stream else lambda events: whole_completion(answering, events),
            pieces=lambda events: completion_pieces(answering, events),
        )

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses"""
        body = await self._read(request, ResponsesBody)
        responding = Responding(self._runtime, body)
        return await self._answer(
            request,
            self._adapted(body.model, responses_request(body, self._runtime)),
            whole=None if body.stream else lambda events: whole_response(responding, events),
            pieces=lambda events: response_events(responding, events),
            named=True,
        )

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._adapters]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/MODEL"""
        name = request.path_params["model"]
        self._check_model(name)
        return JSONResponse(self._model(name))

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while requests can be served."""
        broken = self._slot.broken
        state: dict[str, Any] = (
            {"status": "ok"} if broken is None else {"status": "failed", "reason": broken.splitlines()[0]}
        )
        state |= {"model": self._settings.model, "waiting": self._slot.waiting, "running": self._slot.running}
        return JSONResponse(state, 200 if broken is None else 503)

    async def metrics_page(self, request: Request) -> Response:
        """GET /metrics"""
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json"""
        return JSONResponse(openapi(list(self._adapters), keyed=self._settings.key is not None))

    async def _read(self, request: Request, kind: type[B]) -> B:
        body = kind.model_validate_json(await read_body(request))
        self._check_model(body.model)  # type: ignore[attr-defined]
        return body

    def _check_model(self, name: str) -> None:
        if name not in self._adapters:
            raise ApiError(
                404, f"the model is {name!r:.60}; this server has {', '.join(self._adapters)}", param="model",
                code="model_not_found",
            )  # fmt: skip

    def _adapted(self, model: str, request: GenerateRequest) -> GenerateRequest:
        """The request to the adapter that the model's name says."""
        return replace(request, adapter=self._adapters[model])

    def _answering(self, body: ChatBody | CompletionBody, kind: str, *, tools: bool, logprobs: bool) -> Answering:
        options = body.stream_options
        if options is not None and not body.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        usage = options is not None and bool(options.include_usage)
        return Answering(self._runtime, body.model, kind, tools=tools, logprobs=logprobs, usage=usage)

    async def _answer(
        self,
        request: Request,
        generate: GenerateRequest,
        *,
        whole: Callable[[AsyncIterator[Event]], Awaitable[dict[str, Any]]] | None,
        pieces: Callable[[AsyncIterator[Event]], Objects],
        named: bool = False,
    ) -> Response:
        """One object where there is `whole`, else a stream of `pieces`, whose types name its events if `named`."""
        job = self._slot.submit(generate)
        events = self._metrics.watch(job.events(), job.submitted_s)
        gone = asyncio.create_task(_cancel_when_gone(request, job))
        try:
            await job.accepted()
            if whole is not None:
                return JSONResponse(await whole(events))
        except BaseException:
            job.cancel()
            raise
        finally:
            gone.cancel()
        return EventSourceResponse(_lines(job, pieces(events), named), sep="\n", headers={"X-Accel-Buffering": "no"})

    def _model(self, name: str) -> dict[str, Any]:
        manifest = self._runtime.manifest
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "phi-edge",
            "context_tokens": manifest.context_tokens,
            "suggested_sampling": str(self._runtime.suggested) or None,
        }


def model_names(model: str, runtime: TextRuntime) -> dict[str, str | None]:
    """The names that a request may give as its model -> the LoRA adapter that each means."""
    adapters = [side.name for side in runtime.manifest.source.side_adapters]
    return {model: None} | {f"{model}:{adapter}": adapter for adapter in adapters}


async def _lines(job: Job, objects: Objects, named: bool) -> AsyncGenerator[dict[str, str], None]:
    """The stream's messages. A client that goes away ends the job; a failure is the stream's last message."""
    try:
        async for each in objects:
            yield {"event": each["type"], "data": json.dumps(each)} if named else {"data": json.dumps(each)}
        if not named:
            yield {"data": "[DONE]"}
    except (ApiError, RuntimesError) as error:
        body = api_error(error).body()
        yield {"event": "error", "data": json.dumps({"type": "error", **body["error"]} if named else body)}
    finally:
        job.cancel()


async def _cancel_when_gone(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _error(request: Request, error: Exception) -> Response:
    return api_error(error).response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers) if error.headers else None
    path = request.scope["path"]
    return ApiError(error.status_code, f"{request.method} {path:.200}: {error.detail}", headers=headers).response()
