"""What a comparison of engines measured, raw, and the figures that are made of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Run:
    """One contender, one prompt, once."""

    contender: str
    prompt_tokens: int
    load_s: float
    ttft_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_memory_bytes: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All runs of one session, in the order in which they were made."""

    command: str
    machine: str
    tools: Mapping[str, str]  # versions
    threads: int
    generate_tokens: int
    bandwidth_bytes_per_s: Sequence[float]  # of reading memory with these threads, before each round
    # Contender -> prompt tokens -> what must be read for a token after the prompt; without llama.cpp, whose files are
    # not looked into.
    bytes_per_token: Mapping[str, Mapping[int, int]]
    runs: Sequence[Run]

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(run.contender for run in self.runs))

    @property
    def prompts(self) -> list[int]:
        return sorted({run.prompt_tokens for run in self.runs})

    def of(self, contender: str, prompt_tokens: int) -> list[Run]:
        """The rounds of one contender with one prompt."""
        return [run for run in self.runs if (run.contender, run.prompt_tokens) == (contender, prompt_tokens)]

    def bound(self, contender: str, prompt_tokens: int) -> float | None:
        """Tokens a second if a token took no more than reading its bytes; None where they are not known."""
        needed = self.bytes_per_token.get(contender, {}).get(prompt_tokens)
        return statistics.median(self.bandwidth_bytes_per_s) / needed if needed else None


class Spread(NamedTuple):
    """A median, and the range of all rounds: there are too few of them for more."""

    median: float
    low: float
    high: float

    def __format__(self, how: str) -> str:
        """The three, each by `how`."""
        return f"{self.median:{how}} ({self.low:{how}}-{self.high:{how}})"


def spread(runs: Iterable[Run], value: Callable[[Run], float]) -> Spread:
    """Of one figure over some runs."""
    values = [value(run) for run in runs]
    return Spread(statistics.median(values), min(values), max(values))
