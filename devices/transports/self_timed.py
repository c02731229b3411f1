"""A runner that takes text and reports no token's time, only times of the whole answer: its prompt, and its account."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from devices.transports.texts import Texts
from export.artifact import Tokens
from runtimes.api import MemoryUse
from runtimes.errors import UnsupportedError

# A token that begins a word: "▁" and "Ġ" are SentencePiece's and byte-level BPE's blank.
WORD = re.compile("[▁Ġ][A-Za-z]{3,}")
# How many ids before a new one can decide whether it is read as it was written.
SEEN = 8
TRIES = 100  # for each id


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """What a process of ours around the runner can tell besides."""

    load_s: float | None  # from its start until the runner could be asked
    load_mode: Literal["mmap", "read"] | None
    cached_share: float | None
    memory: MemoryUse
    versions: Mapping[str, str]
    energy_j: float | None
    energy_source: str | None


@dataclass(frozen=True, kw_only=True)
class SelfTimed:
    """One answer. Seconds since the request began, but for load_s, which came before; None: it does not say."""

    prompt_tokens: int
    completion_tokens: int
    token_ids: Sequence[int]  # what the answer's text reads as, which may be other ids, more or fewer
    load_s: float | None
    prefill_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    piece_at_s: Sequence[float] = ()  # where it gives its answer in pieces
    process: ProcessFacts | None = None


# (prompt tokens, new tokens, whether to warm up before, in the same process)
Timed = Callable[[int, int, bool], SelfTimed]


def spelt_ids(texts: Texts, tokens: Tokens, count: int) -> list[int]:
    """`count` ordinary ids whose text the tokenizer reads as these ids again: the same for all artifacts of one
    tokenizer. Raises UnsupportedError where it has no such text."""
    special = {tokens.bos, tokens.pad, *tokens.stop}
    vocabulary = sorted(texts.vocabulary().items(), key=lambda item: item[1])
    words = [id_ for text, id_ in vocabulary if id_ not in special and WORD.fullmatch(text)]
    draw = random.Random(0)
    ids: list[int] = []
    for _ in range(count):
        for _ in range(TRIES if words else 0):
            longer = [*ids[-SEEN:], draw.choice(words)]
            if texts.encode(texts.decode(longer)) == longer:
                ids.append(longer[-1])
                break
        else:
            raise UnsupportedError(
                "its runner takes text, and the tokenizer has no words that it reads as it wrote them"
            )
    return ids
