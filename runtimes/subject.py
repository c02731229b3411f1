"""An engine together with the token loop over it, for export's conformance suite, which so judges what users get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.artifact import Artifact
from runtimes.engines.engine import Engine
from runtimes.errors import EngineError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone
from runtimes.registry import ENGINES

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits


class EngineSubject:
    """`forward` is the engine's own; `decode` goes through the loop, with its pieces and its long-rope switch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def max_forward_tokens(self) -> int:
        return self._engine.max_forward_tokens

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """See Engine.forward."""
        return self._engine.forward(ids, start, long=long)

    def decode(self, ids: Sequence[int], count: int) -> list[int]:
        """The next `count` greedy tokens. Raises EngineError."""
        tokens: list[int] = []
        for record in TokenLoop(self._engine).stream(TokenRequest(ids=list(ids), max_new_tokens=count)):
            if isinstance(record, NewToken):
                tokens.append(record.id)
            elif isinstance(record, TokensDone) and record.error is not None:
                raise EngineError(record.error)
        return tokens

    def close(self) -> None:
        self._engine.close()


def open_subject(artifact: Artifact) -> EngineSubject:
    """The artifact in its own engine, on all cores. Raises EngineError."""
    return EngineSubject(ENGINES[artifact.manifest.format](artifact, None))
