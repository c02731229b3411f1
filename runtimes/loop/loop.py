"""The generation loop: prefill, sample, forward, again. Token ids only; the same code in process and on a device.

It owns what an engine does not know: the KV cache's contents (cache.py), guesses (guesses.py), deadlines, cancelling.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.api import Finish, Usage
from runtimes.engines.engine import Engine
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.loop.cache import Cache
from runtimes.loop.chooser import Chooser
from runtimes.loop.guesses import Guesses
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
        self._cache = Cache(engine)
        self._grammars = grammars
        chunk = prefill_chunk_tokens if engine.continues else engine.context_tokens
        self._chunk_tokens = min(chunk, engine.max_forward_tokens)
        self._clock = clock
        self._running = threading.Lock()
        self._cancelled = threading.Event()

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
        self._cache.check_adapter(request.adapter)
        if request.speculate and not self._cache.can_check:
            raise UnsupportedError(
                "speculate needs the logits of several tokens at once, which this artifact or its engine does not "
                "give; leave it out, or export for the CPU with this version"
            )
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
                self._cache.use_adapter(None)
                self._cache.start(0, len(ids))
                for start in range(0, first, self._chunk_tokens):
                    end = min(start + self._chunk_tokens, first)
                    logits = self._cache.forward(ids[start:end], start)
                yield logits
                for position in range(first, len(ids)):
                    if self._cancelled.is_set():
                        return
                    yield self._cache.forward(ids[position : position + 1], position)
            finally:
                self.forget()

    def save_session(self, session: str, path: Path, artifact: str) -> int:
        """See SessionStore.save_session."""
        with self._exclusively():
            return self._cache.save(session, path, artifact)

    def load_session(self, session: str, path: Path, artifact: str) -> int:
        """See SessionStore.load_session."""
        with self._exclusively():
            return self._cache.load(session, path, artifact)

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
        self._cache.forget()

    def close(self) -> None:
        """Free the engine. The loop cannot be used afterwards."""
        self._cache.close()

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
        guesses = Guesses(ids)
        prompt, reused, prefilled, completion = len(ids), self._cache.take(request), 0, 0
        room = min(request.max_new_tokens, self._engine.context_tokens - prompt)
        prefill_s: float | None = None
        stop_id: int | None = None
        error: str | None = None
        finish: Finish | None = self._ended(request, accepted)
        try:
            while finish is None:
                logits = guesses.next_logits()
                if completion == 0:
                    began = self._clock()
                    logits = self._prefill(ids, reused, request, accepted)
                    prefill_s = None if logits is None else self._clock() - began
                    prefilled = len(self._cache.ids) - reused
                    memory.sample()
                elif logits is None:
                    self._cache.keep(guesses.end_check())
                    logits = self._step(ids, guesses, room - completion, request, accepted)
                if logits is None:
                    finish = self._ended(request, accepted)
                    break
                chosen = chooser.choose(logits)
                at_s = self._clock() - accepted
                if chosen.id in request.stop_ids:
                    finish, stop_id = "stop", chosen.id
                    break
                forced = chooser.forced()
                if forced:
                    guesses.cut()
                for choice in (chosen, *forced):
                    completion += 1
                    yield NewToken(choice.id, at_s, choice.logprob, choice.top)
                    ids.append(choice.id)
                    if finish := self._ended(request, accepted) or ("length" if completion >= room else None):
                        break
                if finish is None and chooser.complete:
                    finish, stop_id = "stop", request.stop_ids[0]  # as if the model had ended its document
            self._cache.keep(guesses.end_check())
        except EngineError as failure:
            # What the cache contains now is unknown.
            self.forget()
            finish, error = "error", str(failure)
        memory.sample()
        assert finish is not None
        yield TokensDone(
            finish=finish,
            stop_id=stop_id,
            usage=Usage(
                prompt=prompt,
                reused=reused,
                prefilled=prefilled,
                completion=completion,
                proposed=guesses.proposed,
                accepted=guesses.accepted,
            ),
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

    def _step(
        self, ids: list[int], guesses: Guesses, room: int, request: TokenRequest, accepted: float
    ) -> Logits | None:
        """The logits after ids[-1]; a few ids before it may not be cached yet. If none is missing, `guesses` gets those
        after ids that may follow, too. None when cancelled or past the deadline."""
        if self._cache.changes_factors(len(ids)):
            return self._prefill(ids, 0, request, accepted)
        start = len(self._cache.ids)
        piece = self._chunk_tokens if self._engine.continues else 1
        guessed: list[int] = []
        if request.speculate and start == len(ids) - 1:
            guessed = guesses.propose(min(self._cache.most_guesses(len(ids)), room - 1, piece - 1))
        if not guessed:
            return self._compute(ids, start, piece, request, accepted)
        rows = self._cache.forward_rows([ids[-1], *guessed], start, 1 + len(guessed))
        guesses.check(guessed, rows)
        return guesses.next_logits()

    def _prefill(self, ids: list[int], start: int, request: TokenRequest, accepted: float) -> Logits | None:
        """Compute ids[start:] in pieces and return the last logits. None when cancelled or past the deadline."""
        self._cache.start(start, len(ids))
        return self._compute(ids, start, self._chunk_tokens, request, accepted)

    def _compute(self, ids: list[int], start: int, piece: int, request: TokenRequest, accepted: float) -> Logits | None:
        logits: Logits | None = None
        while start < len(ids):
            if logits is not None and self._ended(request, accepted):
                return None
            end = min(start + piece, len(ids))
            logits = self._cache.forward(ids[start:end], start)
            start = end
        return logits
