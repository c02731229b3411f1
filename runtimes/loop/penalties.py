"""What a text's own tokens change in the next logits: the repetition, presence and frequency penalties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtimes.loop.tokens import Sampling

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits


class Penalties:
    """Applies one request's penalties. `add` every token that becomes part of the answer.

    The repetition penalty follows transformers: the logit of an id that is in the prompt or the answer is divided by it
    where positive and multiplied by it where negative. Presence and frequency follow OpenAI: of an id that is in the
    answer, presence is subtracted once and frequency once for each time.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._repetition = sampling.repetition_penalty
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._seen = set(prompt)
        self._answer: Counter[int] = Counter()

    def add(self, id: int) -> None:
        """This id is in the answer from now on."""
        self._seen.add(id)
        self._answer[id] += 1

    def apply(self, logits: Logits) -> Logits:
        """The logits after the penalties, float32 [vocab]; the same array where there is nothing to change."""
        import numpy as np

        repeats = self._repetition != 1 and bool(self._seen)
        counts = (self._presence != 0 or self._frequency != 0) and bool(self._answer)
        if not repeats and not counts:
            return logits
        logits = logits.copy()
        if repeats:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            seen = logits[ids]
            logits[ids] = np.where(seen > 0, seen / self._repetition, seen * self._repetition)
        if counts:
            ids = np.fromiter(self._answer.keys(), np.int64, len(self._answer))
            times = np.fromiter(self._answer.values(), np.float32, len(self._answer))
            logits[ids] -= self._presence + self._frequency * times
        return logits
