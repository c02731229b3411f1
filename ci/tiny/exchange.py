"""One question and its one right answer, the unit of the tiny model's text, and the split into training and held-out.

An exchange carries a key naming its content; the split is a hash of that key, so a held-out pair of numbers or
(device, room) never appears in training, in whatever words.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Exchange:
    category: str
    key: str
    question: str
    answer: str


@dataclass(frozen=True)
class Memory:
    """Something told in one turn (`tell`, acknowledged by `told`) and asked for later."""

    key: str
    tell: str
    told: str
    ask: str
    answer: str


Topic = Callable[[Random], Exchange]


def is_held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % HELD_OUT_ONE_IN == 0
