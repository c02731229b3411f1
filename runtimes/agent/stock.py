"""What the agent opens with --stock: a model that another tool exported, in its own engine. Only bench asks for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runtimes.agent.facts import age_s, describe_agent, load_mode, weights
from runtimes.errors import RequestError
from runtimes.stock.model import files_of
from runtimes.stock.table import STOCK, StockTokens
from runtimes.system import pagecache
from runtimes.system.boot import boot_id

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
    if cold:
        pagecache.drop(files)
    cached_share = pagecache.cached_share(weights(files))
    tokens = opener(path, context_tokens, threads)
    return tokens, describe_agent(threads) | {
        "context_tokens": context_tokens,
        "vocab_size": tokens.vocab_size,
        "capabilities": [*CAPABILITIES],
        "boot_id": boot_id(),
        "load_s": age_s(),
        "open_s": time.perf_counter() - began_s,
        "load_mode": load_mode(files),
        "cached_share": cached_share,
        "accelerator": tokens.accelerator,
    }
