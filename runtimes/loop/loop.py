"""The generation loop: prefill, sample, forward, again. Token ids only; the same code in process and on a device.

It owns what an engine does not know: the KV cache's contents, sessions, the long-rope switch, deadlines, cancelling.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.api import Finish, Usage
from runtimes.engines.engine import AdaptableEngine, Engine, OpenCache
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.loop.chooser import Chooser
from runtimes.loop.session_file import SessionFile, read_session, write_session
from runtimes.loop.tokens import NewToken, TokenRecord, TokenRequest, TokensDone, check_ids, check_request
from runtimes.system.memory import PeakMemory

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits
    from runtimes.loop.grammar import Grammars, Matcher

# A prompt is prefilled in pieces of this length, so that a cancel or a deadline need not wait for all of it.
PREFILL_CHUNK_TOKENS = 512


class TokenLoop:
    """A TokenSource over an engine in this process. One request at a time; `cancel` may come from another thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        grammars: Grammars | None = None,
        prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Without `grammars` a request with a grammar is refused."""
        self._engine = engine
        self._grammars = grammars
        chunk = prefill_chunk_tokens if engine.continues else engine.context_tokens
        self._chunk_tokens = min(chunk, engine.max_forward_tokens)
        self._clock = clock
        self._running = threading.Lock()
        self._cancelled = threading.Event()
        self._cached: list[int] = []  # the ids whose keys and values are in the engine, by position
        self._cached_long = False  # they were computed with the long rope factors
        self._session: str | None = None  # the session that they belong to
        self._adapter: str | None = None  # the adapter that the engine uses
        self._closed = False

    @property
    def accelerator(self) -> str | None:
        """See Engine.accelerator."""
        return self._engine.accelerator

    @property
    def vocab_size(self) -> int:
        """See Engine.vocab_size."""
        return self._engine.vocab_size

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream."""
        accepted = self._clock()
        check_request(request, self._engine.context_tokens, self._engine.vocab_size)
        self._check_adapter(request.adapter)
        chooser = Chooser(request, self._matcher(request))
        if not self._running.locked():
            self._cancelled.clear()  # here and not at the first record: a cancel counts from the acceptance on
        return self._stream(request, chooser, accepted)

    def cancel(self) -> None:
        """See TokenSource.cancel."""
        self._cancelled.set()

    def logits_along(self, ids: Sequence[int], first: int) -> Generator[Logits, None, None]:
        """The logits after ids[:first], then after each further id: what a text's tokens are predicted from.

        A row may be overwritten by the next. The sessions' cache is dropped. `cancel` ends it early. Raises
        RequestError, and EngineError.
        """
        check_ids("token id", ids, self._engine.vocab_size)
        if not 1 <= first <= len(ids) <= self._engine.context_tokens:
            raise RequestError(
                f"{len(ids)} tokens, of which the first {first} are read at once, do not fit a context of "
                f"{self._engine.context_tokens}; shorten the text"
            )
        if not self._running.locked():
            self._cancelled.clear()  # at the call, as in stream
        return self._logits_along(ids, first)

    def _logits_along(self, ids: Sequence[int], first: int) -> Generator[Logits, None, None]:
        with self._exclusively():
            try:
                self.forget()
                self._use_adapter(None)
                self._cached_long = self._is_long(len(ids))
                for start in range(0, first, self._chunk_tokens):
                    end = min(start + self._chunk_tokens, first)
                    logits = self._forward(ids[start:end], start)
                yield logits
                for position in range(first, len(ids)):
                    if self._cancelled.is_set():
                        return
                    yield self._forward(ids[position : position + 1], position)
            finally:
                self.forget()

    def save_session(self, session: str, path: Path, artifact: str) -> int:
        """See SessionStore.save_session."""
        with self._exclusively():
            if self._session != session or not self._cached:
                raise RequestError(f"the session {session!r} has no cache: another request took it over, or none ran")
            parts = self._open_cache().read_cache(len(self._cached))
            content = SessionFile(
                artifact=artifact, adapter=self._adapter, ids=self._cached, long=self._cached_long, parts=parts
            )
            write_session(path, content)
            return len(self._cached)

    def load_session(self, session: str, path: Path, artifact: str) -> int:
        """See SessionStore.load_session."""
        with self._exclusively():
            cache = self._open_cache()
            content = read_session(path, artifact)
            check_ids("token id", content.ids, self._engine.vocab_size)
            self._check_adapter(content.adapter)
            self.forget()
            if any(part.ndim != 3 or part.shape[1] != len(content.ids) for part in content.parts):
                raise RequestError(f"{path}: its cache has another length than its ids; save it again")
            self._use_adapter(content.adapter)
            cache.write_cache(content.parts)
            self._cached, self._cached_long, self._session = list(content.ids), content.long, session
            return len(self._cached)

    def _open_cache(self) -> OpenCache:
        if not isinstance(self._engine, OpenCache):
            raise UnsupportedError("this engine keeps its KV cache to itself, so a session cannot be saved or loaded")
        return self._engine

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """One request at a time; a second one is refused instead of waiting."""
        if not self._running.acquire(blocking=False):
            raise RequestError("another request is running; read it to its end or close it first")
        try:
            yield
        finally:
            self._cancelled.clear()
            self._running.release()

    def forget(self) -> None:
        """Drop the sessions' cached prefix: the next request prefills from position 0."""
        self._cached, self._session = [], None

    def close(self) -> None:
        """Free the engine. The loop cannot be used afterwards."""
        self._closed = True
        self._engine.close()

    def _check_adapter(self, name: str | None) -> None:
        known = self._engine.adapters if isinstance(self._engine, AdaptableEngine) else ()
        if name is not None and name not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none: export it with --side-adapter"
            raise RequestError(f"this artifact has no adapter {name!r:.80}; {has}")

    def _use_adapter(self, name: str | None) -> None:
        """What is cached was computed with another one. Raises EngineError."""
        if name != self._adapter and isinstance(self._engine, AdaptableEngine):
            self._cached = []
            self._engine.use_adapter(name)
            self._adapter = name

    def _matcher(self, request: TokenRequest) -> Matcher | None:
        if request.grammar is None:
            return None
        if self._grammars is None:
            raise UnsupportedError(f"{request.grammar.kind} is not supported here; leave it out")
        return self._grammars.compile(request.grammar)

    def _stream(self, request: TokenRequest, chooser: Chooser, accepted: float) -> Generator[TokenRecord, None, None]:
        with self._exclusively():
            yield from self._generate(request, chooser, accepted)

    def _generate(self, request: TokenRequest, chooser: Chooser, accepted: float) -> Generator[TokenRecord, None, None]:
        memory = PeakMemory()
        ids = list(request.ids)
        self._use_adapter(request.adapter)
        prompt, reused, prefilled, completion = len(ids), self._reusable(request), 0, 0
        room = min(request.max_new_tokens, self._engine.context_tokens - prompt)
        prefill_s: float | None = None
        stop_id: int | None = None
        error: str | None = None
        finish: Finish | None = self._ended(request, accepted)
        try:
            while finish is None:
                if completion == 0:
                    began = self._clock()
                    logits = self._prefill(ids, reused, request, accepted)
                    prefill_s = None if logits is None else self._clock() - began
                    prefilled = len(self._cached) - reused
                    memory.sample()
                else:
                    logits = self._step(ids, request, accepted)
                if logits is None:
                    finish = self._ended(request, accepted)
                    break
                chosen = chooser.choose(logits)
                at_s = self._clock() - accepted
                if chosen.id in request.stop_ids:
                    finish, stop_id = "stop", chosen.id
                    break
                for choice in (chosen, *chooser.forced()):
                    completion += 1
                    yield NewToken(choice.id, at_s, choice.logprob, choice.top)
                    ids.append(choice.id)
                    if finish := self._ended(request, accepted) or ("length" if completion >= room else None):
                        break
                if finish is None and chooser.complete:
                    finish, stop_id = "stop", request.stop_ids[0]  # as if the model had ended its document
        except EngineError as failure:
            # What the cache contains now is unknown.
            self.forget()
            finish, error = "error", str(failure)
        memory.sample()
        assert finish is not None
        yield TokensDone(
            finish=finish,
            stop_id=stop_id,
            usage=Usage(prompt=prompt, reused=reused, prefilled=prefilled, completion=completion),
            prefill_s=prefill_s,
            total_s=self._clock() - accepted,
            memory=memory.use(),
            error=error,
        )

    def _ended(self, request: TokenRequest, accepted: float) -> Finish | None:
        if self._cancelled.is_set():
            return "cancelled"
        if request.deadline_s is not None and self._clock() - accepted >= request.deadline_s:
            return "deadline"
        return None

    def _reusable(self, request: TokenRequest) -> int:
        """Trim the cache to what this request may keep of it, and return how many tokens that is."""
        same = request.session is not None and request.session == self._session
        if not same or not self._engine.continues or self._is_long(len(request.ids)) != self._cached_long:
            self._cached = []
        self._session = request.session
        keep = 0
        # The last prompt token is always computed: its logits are needed.
        for cached, wanted in zip(self._cached, request.ids[:-1], strict=False):
            if cached != wanted:
                break
            keep += 1
        del self._cached[keep:]
        return keep

    def _step(self, ids: list[int], request: TokenRequest, accepted: float) -> Logits | None:
        """The logits after ids[-1]; a few ids before it may not be cached yet. None when cancelled or past the
        deadline."""
        if self._is_long(len(ids)) != self._cached_long:
            return self._prefill(ids, 0, request, accepted)
        piece = self._chunk_tokens if self._engine.continues else 1
        return self._compute(ids, len(self._cached), piece, request, accepted)

    def _prefill(self, ids: list[int], start: int, request: TokenRequest, accepted: float) -> Logits | None:
        """Compute ids[start:] in pieces and return the last logits. None when cancelled or past the deadline."""
        del self._cached[start:]
        self._cached_long = self._is_long(len(ids))
        return self._compute(ids, start, self._chunk_tokens, request, accepted)

    def _compute(self, ids: list[int], start: int, piece: int, request: TokenRequest, accepted: float) -> Logits | None:
        logits: Logits | None = None
        while start < len(ids):
            if logits is not None and self._ended(request, accepted):
                return None
            end = min(start + piece, len(ids))
            logits = self._forward(ids[start:end], start)
            start = end
        return logits

    def _forward(self, ids: Sequence[int], start: int) -> Logits:
        if self._closed:
            raise RequestError("the runtime is closed; open it again")
        # Until the engine is back, the cache beyond `start` is in an unknown state.
        del self._cached[start:]
        logits = self._engine.forward(ids, start, long=self._cached_long)
        self._cached.extend(ids)
        return logits

    def _is_long(self, length: int) -> bool:
        switch = self._engine.switch_tokens
        return switch is not None and length > switch
