"""What an engine's KV cache has: the ids by position, the session they belong to, and how they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.engines.engine import AdaptableEngine, CheckingEngine, Engine, OpenCache, WindowEngine
from runtimes.errors import RequestError, UnsupportedError
from runtimes.loop.session_file import SessionFile, read_session, write_session
from runtimes.loop.tokens import TokenRequest, check_ids

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits


class Cache:
    """The engine with a record of its cache. Every forward goes through it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Asked once: Python compares every member of a protocol, which takes as long as the rest of the loop.
        self._checking = engine if isinstance(engine, CheckingEngine) else None
        self._window = engine if isinstance(engine, WindowEngine) else None
        self.ids: list[int] = []  # those whose keys and values are in the engine, by position
        self._end = 0  # the furthest position that was written since position 0 was
        self._long = False  # they were computed with the long rope factors
        self._session: str | None = None
        self._adapter: str | None = None
        self._closed = False

    def forget(self) -> None:
        """Drop all: the next forward begins at position 0."""
        self.ids, self._session = [], None

    def close(self) -> None:
        """Free the engine."""
        self._closed = True
        self.engine.close()

    def take(self, request: TokenRequest) -> int:
        """Trim to what this request may keep, and return how many tokens that is. Raises EngineError."""
        self.use_adapter(request.adapter)
        same = request.session is not None and request.session == self._session
        if not same or not self.engine.continues or self.changes_factors(len(request.ids)):
            self.ids = []
        self._session = request.session
        keep = 0
        # The last prompt token is always computed: its logits are needed.
        for cached, wanted in zip(self.ids, request.ids[:-1], strict=False):
            if cached != wanted:
                break
            keep += 1
        if self._window is not None and not self._window.can_resume(keep, self._end):
            keep = 0
        self.keep(keep)
        return keep

    def keep(self, count: int) -> None:
        """Only the first `count` positions count from here on."""
        del self.ids[count:]

    def start(self, count: int, length: int) -> None:
        """As `keep`, for a sequence that has `length` ids."""
        self.keep(count)
        self._long = self._is_long(length)

    def changes_factors(self, length: int) -> bool:
        """Whether a sequence of this length takes other rope factors than the cached ids did."""
        return self._is_long(length) != self._long

    def forward(self, ids: Sequence[int], start: int) -> Logits:
        """See Engine.forward."""
        self._before(start, len(ids))
        logits = self.engine.forward(ids, start, long=self._long)
        self.ids.extend(ids)
        return logits

    def forward_rows(self, ids: Sequence[int], start: int, rows: int) -> Logits:
        """See CheckingEngine.forward_rows."""
        assert self._checking is not None
        self._before(start, len(ids))
        logits = self._checking.forward_rows(ids, start, rows, long=self._long)
        self.ids.extend(ids)
        return logits

    @property
    def can_check(self) -> bool:
        """Whether guesses can be checked, several in one forward."""
        return self._checking is not None and self._checking.most_rows > 1 and self.engine.continues

    def most_guesses(self, length: int) -> int:
        """How many guesses one forward may check after `length` ids, of which the last is not cached: within the
        context and the same rope factors, and so that all of them can be taken back."""
        if self._checking is None:
            return 0
        end, switch = self.engine.context_tokens, self.engine.switch_tokens
        if switch is not None and not self._long:
            end = min(end, switch)
        most = min(self._checking.most_rows - 1, end - length)
        while most > 0 and self._window is not None and not self._window.can_resume(length - 1, length + most):
            most -= 1
        return most

    def check_adapter(self, name: str | None) -> None:
        """Raises RequestError for an adapter that the artifact does not have."""
        known = self.engine.adapters if isinstance(self.engine, AdaptableEngine) else ()
        if name is not None and name not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none: export it with --side-adapter"
            raise RequestError(f"this artifact has no adapter {name!r:.80}; {has}")

    def use_adapter(self, name: str | None) -> None:
        """What is cached was computed with another one. Raises EngineError."""
        if name != self._adapter and isinstance(self.engine, AdaptableEngine):
            self.ids = []
            self.engine.use_adapter(name)
            self._adapter = name

    def save(self, session: str, path: Path, artifact: str) -> int:
        """See SessionStore.save_session."""
        if self._session != session or not self.ids:
            raise RequestError(f"the session {session!r} has no cache: another request took it over, or none ran")
        if self._window is not None and not self._window.can_resume(len(self.ids), self._end):
            raise RequestError(
                f"the session {session!r} has lost its cache: its last request was interrupted; send another"
            )
        parts = self._open().read_cache(len(self.ids))
        write_session(
            path,
            SessionFile(artifact=artifact, adapter=self._adapter, ids=self.ids, long=self._long, parts=parts),
        )
        return len(self.ids)

    def load(self, session: str, path: Path, artifact: str) -> int:
        """See SessionStore.load_session."""
        cache = self._open()
        content = read_session(path, artifact)
        check_ids("token id", content.ids, self.engine.vocab_size)
        self.check_adapter(content.adapter)
        self.forget()
        self.use_adapter(content.adapter)
        cache.write_cache(content.parts, len(content.ids))
        self.ids, self._long, self._session = list(content.ids), content.long, session
        self._end = len(self.ids)
        return self._end

    def _open(self) -> OpenCache:
        if not isinstance(self.engine, OpenCache):
            raise UnsupportedError("this engine keeps its KV cache to itself, so a session cannot be saved or loaded")
        return self.engine

    def _before(self, start: int, count: int) -> None:
        if self._closed:
            raise RequestError("the runtime is closed; open it again")
        self._end = max(self._end if start else 0, start + count)
        self.keep(start)  # until the engine is back, the cache beyond is in an unknown state

    def _is_long(self, length: int) -> bool:
        switch = self.engine.switch_tokens
        return switch is not None and length > switch
