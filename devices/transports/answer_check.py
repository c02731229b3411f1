"""What a device may answer to a request: the records of an answer are held against the request, not believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtimes.agent.scoring import Prediction, ScoreRequest
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone

MOST_PROBABILITY = 1.01  # of all tokens together; each log-probability is rounded


class AnswerCheck:
    """One answer, record by record. `problem` says what is wrong with the next one; None: nothing."""

    def __init__(self, request: TokenRequest, *, context_tokens: int, vocab_size: int) -> None:
        self._request = request
        self._vocab_size = vocab_size
        self._most = min(request.max_new_tokens, context_tokens - len(request.ids))
        self._count = 0
        self._last_s = 0.0

    @property
    def complete(self) -> bool:
        """Whether all tokens that were asked for have come, so that only the done line can follow."""
        return self._count >= self._most

    def problem(self, record: NewToken | TokensDone) -> str | None:
        """Look at the next record."""
        return self._token(record) if isinstance(record, NewToken) else self._done(record)

    def _token(self, token: NewToken) -> str | None:
        if self.complete:
            return f"it generates more than the {self._most} tokens that it was asked for"
        if token.id >= self._vocab_size:
            return f"its token {token.id} is not in the model's vocabulary of {self._vocab_size}"
        if len(token.top) > (self._request.logprobs or 0) or any(id >= self._vocab_size for id, _ in token.top):
            return f"it reports {len(token.top)} likeliest tokens with ids up to {max(id for id, _ in token.top)}"
        if token.at_s is not None and token.at_s < self._last_s:
            return f"its clock runs backwards, from {self._last_s:.3f} s to {token.at_s:.3f} s"
        self._count += 1
        self._last_s = token.at_s or self._last_s
        return None

    def _done(self, done: TokensDone) -> str | None:
        usage, prompt = done.usage, len(self._request.ids)
        if usage.completion != self._count:
            return f"it counts {usage.completion} tokens and sent {self._count}"
        if usage.prompt != prompt or usage.reused + usage.prefilled > prompt:
            return f"it counts a prompt of {usage.prompt} tokens ({usage.reused} + {usage.prefilled}), not of {prompt}"
        if not usage.accepted <= min(usage.proposed, self._count):
            return f"it counts {usage.accepted} right guesses of {usage.proposed}, in {self._count} tokens"
        if done.stop_id is not None and done.stop_id not in self._request.stop_ids:
            return f"it stopped at token {done.stop_id}, which is no stop token of this request"
        if done.total_s is not None and done.total_s < self._last_s:
            return f"it ended after {done.total_s:.3f} s, before its last token at {self._last_s:.3f} s"
        return None


def score_problem(predictions: Sequence[Prediction], request: ScoreRequest, vocab_size: int) -> str | None:
    """What is wrong with the answer to a score; None: nothing."""
    if len(predictions) != len(request.wanted):
        return f"it scored {len(predictions)} of {len(request.wanted)} positions"
    for prediction, wanted in zip(predictions, request.wanted, strict=True):
        if len(prediction.log_probabilities) != len(wanted):
            return f"it reports {len(prediction.log_probabilities)} probabilities of {len(wanted)} ids"
        if prediction.top >= vocab_size:
            return f"its token {prediction.top} is not in the model's vocabulary of {vocab_size}"
        # Of each id once; a host may ask for one twice.
        total = sum(math.exp(log) for log in dict(zip(wanted, prediction.log_probabilities, strict=True)).values())
        if total > MOST_PROBABILITY:
            return f"its probabilities of {len(wanted)} tokens are {total:.2f} together"
    return None
