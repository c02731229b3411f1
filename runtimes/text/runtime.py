"""The host's side of generate: text in, text out, around any source of token ids, here or on a device."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from export.artifact import Manifest
from runtimes.api import (
    Alternative,
    AnyMessage,
    DoneEvent,
    Event,
    Finish,
    GenerateRequest,
    Message,
    Timings,
    TokenEvent,
)
from runtimes.asynchronous import in_thread
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.loop.tokens import NewToken, SessionStore, TokenRecord, TokensDone, TokenSource
from runtimes.text import request as requests
from runtimes.text.stream import StopScanner, TextJoiner
from runtimes.text.suggested import NOTHING_SUGGESTED, Suggested
from runtimes.text.tokenizer import Tokenizer
from runtimes.text.tools import parse_calls

Text = str | Sequence[AnyMessage]
DEFAULTS = GenerateRequest()


class TextRuntime:
    """A Runtime over a TokenSource: tokenising, template, UTF-8 and stop strings happen here, once for all targets.

    `generate` is the whole interface; `chat`, `stream` and `agenerate` are shorter ways to it. `with` closes it.
    """

    def __init__(
        self,
        source: TokenSource,
        tokenizer: Tokenizer,
        manifest: Manifest,
        suggested: Suggested = NOTHING_SUGGESTED,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`suggested` is what the model's makers suggest for sampling; nothing here uses it by itself."""
        self._source = source
        self._tokenizer = tokenizer
        self.manifest = manifest
        self.suggested = suggested
        self._clock = clock
        self._closed = False

    @property
    def has_template(self) -> bool:
        """See Runtime.has_template."""
        return self._tokenizer.has_template

    def generate(self, request: GenerateRequest) -> Generator[Event, None, None]:
        """Token events, then one done event. Closing the iterator cancels.

        The request is accepted, checked and tokenised now: RequestError comes from here, not from the first event.
        """
        accepted = self._clock()
        if self._closed:
            raise RequestError("the runtime is closed; open it again")
        request = requests.checked(request)
        ids = requests.encode(request, self._tokenizer)
        # Times and deadline count from here, so the source is given what is left after tokenising.
        spent_s = self._clock() - accepted
        tokens = self._source.stream(requests.token_request(request, ids, self.manifest, spent_s))
        return self._events(request, ids, tokens, spent_s)

    def chat(self, messages: Text, settings: GenerateRequest = DEFAULTS) -> str:
        """The whole answer to a conversation, or to one question. `settings` has everything but the messages.

        Raises RequestError, and EngineError where the engine fails in the middle.
        """
        return "".join(self.stream(messages, settings))

    def stream(self, messages: Text, settings: GenerateRequest = DEFAULTS) -> Generator[str, None, None]:
        """As `chat`, in pieces as they come. Closing the iterator cancels."""
        return _texts(self.generate(dataclasses.replace(settings, messages=_turns(messages))))

    def agenerate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As `generate`, for `async for`. The request is accepted when the first event is awaited, in a thread of its
        own. Closing the iterator, or cancelling its task, cancels."""
        return in_thread(lambda: self.generate(request), self.cancel)

    def cancel(self) -> None:
        """End the request that runs now, within one token or one piece of the prefill: its last event says so. From
        any thread; without effect when none runs."""
        self._source.cancel()

    def count_tokens(self, text: Text | GenerateRequest) -> int:
        """How many tokens a plain text, a conversation through the chat template, or a request's prompt has.

        Raises RequestError as `generate` does, except that any length counts.
        """
        if isinstance(text, str):
            text = GenerateRequest(prompt=text)
        elif not isinstance(text, GenerateRequest):
            text = GenerateRequest(messages=text)
        return len(requests.encode(requests.checked(text), self._tokenizer))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        return self._tokenizer.bytes[id]

    def save_session(self, session: str, path: Path | str) -> int:
        """Keep what this session has in the KV cache in a file, and return how many tokens that is.

        A file is as large as the cache: manifest.memory.kv_bytes_per_token for each token. Raises RequestError where
        another request took the cache over, and UnsupportedError where the engine or the device cannot.
        """
        return self._sessions().save_session(session, Path(path), self.manifest.digest())

    def load_session(self, session: str, path: Path | str) -> int:
        """The inverse, after a restart too: requests of this session reuse what they share with it. Only for the same
        artifact."""
        return self._sessions().load_session(session, Path(path), self.manifest.digest())

    def _sessions(self) -> SessionStore:
        if not isinstance(self._source, SessionStore):
            raise UnsupportedError("a device keeps its KV cache to itself, so a session cannot be saved or loaded")
        return self._source

    def close(self) -> None:
        """Free the model. The runtime cannot be used afterwards."""
        self._closed = True
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _events(
        self, request: GenerateRequest, ids: list[int], tokens: Generator[TokenRecord, None, None], spent_s: float
    ) -> Generator[Event, None, None]:
        whole = requests.grammar_of(request) is not None  # a first space belongs to the document
        joiner, scanner = TextJoiner(self._tokenizer.bytes, ids, whole=whole), StopScanner(request.stop)
        completion, stop_string, text = 0, None, ""
        with contextlib.closing(tokens):
            for record in tokens:
                if isinstance(record, TokensDone):
                    done = self._done(record, completion, stop_string, scanner.rest(), spent_s)
                    calls = parse_calls(text + done.text, request.tools) if request.tools else ()
                    yield dataclasses.replace(done, tool_calls=calls)
                elif stop_string is None:  # a device may send a few more before the stop reaches it
                    completion += 1
                    scanned = scanner.add(joiner.add(record.id))
                    text += scanned.text
                    at_s = None if record.at_s is None else record.at_s + spent_s
                    yield TokenEvent(record.id, scanned.text, at_s, record.logprob, self._alternatives(record))
                    if scanned.stop is not None:
                        stop_string = scanned.stop
                        self._source.cancel()

    def _alternatives(self, record: NewToken) -> tuple[Alternative, ...]:
        table = self._tokenizer.bytes
        return tuple(Alternative(id, table[id].decode("utf-8", "replace"), logprob) for id, logprob in record.top)

    def _done(
        self, record: TokensDone, completion: int, stop_string: str | None, rest: str, spent_s: float
    ) -> DoneEvent:
        finish: Finish = record.finish
        if stop_string is not None:
            finish = "stop"
        elif record.stop_id is not None:
            finish = "eos" if record.stop_id in self.manifest.tokens.stop else "stop"
        return DoneEvent(
            finish=finish,
            text=rest,
            stop_string=stop_string,
            usage=dataclasses.replace(record.usage, completion=completion),
            timings=Timings(
                prefill_s=record.prefill_s,
                total_s=None if record.total_s is None else record.total_s + spent_s,
            ),
            memory=record.memory,
            error=record.error,
        )


def _turns(messages: Text) -> Sequence[AnyMessage]:
    return [Message("user", messages)] if isinstance(messages, str) else messages


def _texts(events: Generator[Event, None, None]) -> Generator[str, None, None]:
    with contextlib.closing(events):
        for event in events:
            if event.text:
                yield event.text
            if isinstance(event, DoneEvent) and event.finish == "error":
                raise EngineError(event.error or "the device reported an error without a message")
