"""The one table of stock engines: what they run, and what of our figures they cannot give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runtimes.errors import EngineError
from runtimes.loop.tokens import TokenSource
from runtimes.stock.genai import look_at_genai, open_genai
from runtimes.stock.llama import look_at_gguf, open_gguf
from runtimes.stock.model import EngineName, StockModel
from runtimes.stock.program import look_at_program
from runtimes.system.paths import path_fault

NO_REFERENCE = {"reference_share": "another tool's export keeps no answer to compare with"}


class StockTokens(TokenSource, Protocol):
    """A model in a stock engine, as the agent serves it."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def accelerator(self) -> str | None:
        """See Engine.accelerator."""
        ...

    def forget(self) -> None:
        """Drop what is kept between two requests."""
        ...


@dataclass(frozen=True, kw_only=True)
class StockEngine:
    """One row: how its models are recognised, and how an agent opens one."""

    format: str  # as in manifests
    package: str  # the distribution whose version counts
    loop: str  # whose generation loop calls it
    look: Callable[[Path], StockModel | None]  # None: the path is nothing of this engine's
    # path, context in tokens, threads; None: it takes text, and runtimes.agent.text_runner runs it.
    open: Callable[[Path, int, int | None], StockTokens] | None
    lacks: Mapping[str, str] = field(default_factory=lambda: NO_REFERENCE)  # metric -> why it has none


STOCK: dict[EngineName, StockEngine] = {
    "llama.cpp": StockEngine(
        format="gguf",
        package="xllamacpp",
        loop="phi-edge's",
        look=look_at_gguf,
        open=open_gguf,
    ),
    "onnxruntime-genai": StockEngine(
        format="onnx",
        package="onnxruntime-genai",
        loop="its own",
        look=look_at_genai,
        open=open_genai,
    ),
    "executorch": StockEngine(
        format="executorch",
        package="executorch",
        loop="its own",
        look=look_at_program,
        open=None,
    ),
}


def find_stock(path: Path) -> StockModel | None:
    """The model at a path, a file or a folder; None where no stock engine runs it. Raises EngineError."""
    found = next((found for engine in STOCK.values() if (found := engine.look(path)) is not None), None)
    if found is not None and (fault := path_fault(path)) is not None:
        raise EngineError(fault)
    return found
