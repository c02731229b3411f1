"""What the generate interface asks of a model that a service runs, whatever its protocol.

Implementations: anthropic_service.py, openai_service.py. What a service sends is foreign: `count` and `text` check it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from runtimes.api import Message
from runtimes.errors import ConnectionLostError, TransportError


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, in what every service can do."""

    messages: Sequence[Message]
    max_tokens: int
    temperature: float
    top_p: float | None
    stop: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an answer ended, and what the service counted: its tokens are what it asks money for."""

    finish: Literal["eos", "stop", "length"]
    stop_string: str | None = None
    prompt_tokens: int
    reused_tokens: int  # of them, read from the service's own cache of prompts
    completion_tokens: int
    model: str  # that answered, where the service says it more exactly than it was asked


class Service(Protocol):
    """A model behind a URL. What fails raises TransportError; ConnectionLostError where trying again may help."""

    @property
    def client_version(self) -> str:
        """Of the official client's library."""
        ...

    def answer(self, ask: Ask) -> Generator[str | Ended, None, None]:
        """The pieces of text as they come, then Ended. Closing the iterator closes the connection of this answer."""
        ...

    def look(self) -> None:
        """Ask for nothing that costs money: whether the service is there, and takes the key."""
        ...

    def close(self) -> None:
        """Drop the connections."""
        ...


@contextlib.contextmanager
def failures(url: str, lost: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """The errors of an official client, of which `lost` are those of the connection, as the errors of Service."""
    import httpx2

    try:
        yield
    except (lost, httpx2.TransportError) as error:
        raise ConnectionLostError(f"{url}: {error}") from error
    except (failed, ValueError) as error:  # ValueError: what it sent is no JSON
        raise TransportError(f"{url}: {error}") from error


def count(value: object, what: str) -> int:
    """A number of tokens that a service reported. Raises TransportError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TransportError(f"the service reported {value!r:.60} {what}; a count of tokens is needed for its figures")
    return value


def text(value: object) -> str:
    """A piece of text, or nothing. Raises TransportError."""
    if value is not None and not isinstance(value, str):
        raise TransportError(f"the service sent {value!r:.60} where text belongs")
    return value or ""
