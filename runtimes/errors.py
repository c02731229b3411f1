"""What runtimes/ can raise.

RuntimesError               one line for the user, exit 2
├── RequestError            the request is wrong: too long for the context, two prompts at once, ...
│   └── UnsupportedError    this runtime cannot honour a field
├── EngineError             the engine's library is missing, or cannot load the artifact
└── TransportError          the device or the wire failed (carries command, exit code and last lines)
"""

from __future__ import annotations


class RuntimesError(Exception):
    """The message says what was seen, what is allowed and what to do."""


class RequestError(RuntimesError):
    """The request cannot be served as it is."""


class UnsupportedError(RequestError):
    """This runtime cannot honour a field of the request."""


class EngineError(RuntimesError):
    """The engine cannot be loaded or cannot load the artifact."""


class TransportError(RuntimesError):
    """The device or the wire failed."""
