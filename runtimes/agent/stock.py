"""What the agent opens with --stock: a model that another tool exported, in its own engine. Only bench asks for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runtimes.agent.facts import cached_before, describe_agent, describe_loading
from runtimes.errors import RequestError
from runtimes.stock.model import files_of
from runtimes.stock.table import STOCK, StockTokens

# Of what an agent may lack. A request is a prompt and a number of greedy tokens.
CAPABILITIES = ("hold", "cancel")


def open_stock(
    path: Path, engine: str, context_tokens: int, threads: int | None, *, cold: bool
) -> tuple[StockTokens, dict[str, Any]]:
    """The loaded model and the ready line. Raises RuntimesError."""
    began_s = time.perf_counter()
    opener = next((row.open for name, row in STOCK.items() if name == engine), None)
    if opener is None:
        known = ", ".join(name for name, row in STOCK.items() if row.open is not None)
        raise RequestError(f"--stock is {engine!r:.60}; an agent runs {known}")
    files = files_of(path)
    cached_share = cached_before(files, cold=cold)
    tokens = opener(path, context_tokens, threads)
    facts = describe_agent(threads) | describe_loading(files, began_s, cached_share)
    return tokens, facts | {
        "context_tokens": context_tokens,
        "vocab_size": tokens.vocab_size,
        "capabilities": [*CAPABILITIES],
        "accelerator": tokens.accelerator,
    }
