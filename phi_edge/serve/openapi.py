"""The OpenAPI page: made of the classes that read the bodies, so it says what is really allowed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from phi_edge.serve.bodies import ChatBody, CompletionBody
from phi_edge.serve.responses_body import ResponsesBody

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponsesBody,
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi(models: Sequence[str], *, keyed: bool) -> dict[str, Any]:
    """OpenAPI 3.1. `models`: the names that a request may give. `keyed`: requests need an API key."""
    _, schemas = models_json_schema(
        [(body, "validation") for body in BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    definitions = schemas["$defs"]
    for body in BODIES.values():
        definitions[body.__name__]["properties"]["model"] = {"type": "string", "enum": models}
    paths: dict[str, Any] = {path: {"post": _post(path, body.__name__, keyed)} for path, body in BODIES.items()}
    paths |= {
        "/v1/models": {"get": _get("The served models: one, and the same with each of its LoRA adapters.", keyed)},
        "/v1/models/{model}": {"get": _get("A served model.", keyed, models=models)},
        "/health": {"get": _get("Whether requests can be served.", False, others=("503",))},
        "/metrics": {"get": _get("Counters for Prometheus.", keyed, kind="text/plain")},
    }
    page: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Phi Edge: {models[0]}", "version": importlib.metadata.version("phi-edge")},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR} | definitions},
    }
    if keyed:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return page


def _post(path: str, body: str, keyed: bool) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    answers = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "object"}}}
    return {
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "The answer, whole or as a stream.", "content": answers}}
        | _errors("400", "404", "413", "415", "429", "500", "503", *(["401"] if keyed else [])),
        **({"security": [{"key": []}]} if keyed else {}),
    }


def _get(
    what: str, keyed: bool, *, kind: str = "application/json", models: Sequence[str] = (), others: Sequence[str] = ()
) -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    operation: dict[str, Any] = {
        "summary": what,
        "responses": {"200": {"description": what, "content": {kind: {"schema": schema}}}},
    }
    for status in others:
        operation["responses"][status] = operation["responses"]["200"]
    operation["responses"] |= _errors(*(["401"] if keyed else []), *(["404"] if models else []))
    if models:
        named = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": models}}
        operation["parameters"] = [named]
    if keyed:
        operation["security"] = [{"key": []}]
    return operation


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": "Refused, with the reason.", "content": content} for status in statuses}
