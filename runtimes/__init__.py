"""An artifact in, a stream of token events out, on every target. Importing this imports no engine."""

from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime, TokenEvent
from runtimes.registry import open_runtime

__all__ = ["DoneEvent", "GenerateRequest", "Message", "Runtime", "TokenEvent", "open_runtime"]
