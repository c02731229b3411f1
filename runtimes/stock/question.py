"""What the process of ExecuTorch's text runner is asked, and what it answers: one line of JSON each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runtimes.api import MemoryUse


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is answered."""

    model: str
    tokenizer: str
    texts: Sequence[str]  # of the same length: one of them is asked
    new_tokens: int
    warm_up: bool  # before the measured answer: the first text whose answer does not end early; else the first is asked
    threads: int | None
    cold: bool  # drop the program from the page cache first


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of it. Times are since the runner was asked; with `error` all others are empty."""

    error: str | None = None
    pieces: Sequence[str] = ()
    at_s: Sequence[float] = ()
    prompt_tokens: int = 0
    prefill_s: float | None = None  # in the runner's whole milliseconds; None where they are too few
    load_s: float | None = None  # from the start of the process until the program is loaded
    open_s: float | None = None
    load_mode: Literal["mmap", "read"] | None = None
    cached_share: float | None = None
    energy_j: float | None = None  # of the whole machine, while the measured answer came
    energy_source: str | None = None
    memory: MemoryUse = dataclasses.field(default_factory=MemoryUse)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
