"""What a client gets when a request fails: OpenAI's error object, with the field's name where there is one."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from phi_edge.serve.slot import QueueFullError
from runtimes.errors import ContextFullError, RequestError, RuntimesError, UnsupportedError

_FIELD = re.compile(r"(?!(?:str|int|float|bool)$)[a-z_0-9]+")


class ApiError(Exception):
    """An answer that is not 200. `param` is the field that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def api_error(error: Exception) -> ApiError:
    """The answer to any failure of a request. Raises it again where it is a bug of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after_s)})
    if isinstance(error, ContextFullError):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, UnsupportedError):
        return ApiError(400, str(error), code="unsupported")
    if isinstance(error, RequestError):
        return ApiError(400, str(error))
    if isinstance(error, RuntimesError):
        return ApiError(503, str(error).splitlines()[0], code="model_failed")
    raise error


def _invalid(error: ValidationError) -> ApiError:
    """What is wrong with a body: an unknown field, where there is one, else the first thing, as exactly as can be."""
    found = error.errors(include_url=False, include_context=False)
    about = [each for each in found if each["loc"][:1] == found[0]["loc"][:1]]
    first = next((each for each in found if each["type"] == "extra_forbidden"), None)
    # A value that fits none of several types has an error for each of them.
    first = first or max(about, key=lambda each: len(each["loc"]))
    # Pydantic also names the alternatives of a union: types and tags that begin with a capital, which are no fields.
    param = ".".join(str(place) for place in first["loc"] if _FIELD.fullmatch(str(place))) or None
    if first["type"] == "extra_forbidden":
        message = f"unknown or unsupported field {param}; leave it out (the OpenAPI page lists what is allowed)"
    elif first["type"] == "missing":
        message = f"{param} is missing"
    elif param is None:
        message = f"the body is not as it must be: {first['msg']}"
    else:
        message = f"{param} is {first['input']!r:.60}: {first['msg']}"
    return ApiError(400, message, param=param, code="unknown_field" if first["type"] == "extra_forbidden" else None)
