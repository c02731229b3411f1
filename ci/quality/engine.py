"""What is measured: an engine that gives logits for ids. Every row of the table has one, ours and the peers'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]  # [vocab]


class Engine(Protocol):
    """A loaded model."""

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """After ids[:first], then after each further id; what was read before is forgotten.

        A row may be overwritten by the next.
        """
        ...
