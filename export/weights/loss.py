"""What quantisation costs, gathered while the weights stream through: see `Loss` in export.artifact."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from export.artifact import Loss
from export.weights.quantize import QuantisedRows

# One fixed text for every export, so that figures of different schemes can be held side by side.
TEXT = (
    "The lamp in the kitchen is now on. Please set the heater in the bedroom to twenty degrees. How many centimetres "
    "are 3 metres? 3 metres are 300 centimetres. What is 17 plus 26? 17 plus 26 is 43. On a small device every byte "
    "of memory counts, and so does every token per second."
)


def text_ids(tokenizer: str) -> list[int]:
    """The fixed text in the tokens of this tokenizer.json."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_str(tokenizer).encode(TEXT, add_special_tokens=False).ids
    return ids


@dataclass(frozen=True)
class ChunkLoss:
    """The figures of one chunk of rows."""

    worst: float
    squared_error: float
    squared_weight: float


def chunk_loss(weight: Tensor, rows: QuantisedRows) -> ChunkLoss:
    """float32 weights against what became of them."""
    exact = weight.flatten()
    return ChunkLoss(
        worst=float(rows.relative_error.max()),
        squared_error=float(rows.squared_error.sum()),
        squared_weight=float(torch.dot(exact, exact)),
    )


@dataclass
class LossMeter:
    """Takes in the chunks' figures and, at the end, the logits of both models."""

    worst: float = 0.0
    worst_tensor: str = ""
    squared_error: float = 0.0
    squared_weight: float = 0.0

    def add(self, name: str, chunk: ChunkLoss) -> None:
        """One chunk of rows. Called in the order of the file, so that sums are the same in every run."""
        if chunk.worst > self.worst:
            self.worst, self.worst_tensor = chunk.worst, name
        self.squared_error += chunk.squared_error
        self.squared_weight += chunk.squared_weight

    def result(self, ids: list[int], logits: Tensor) -> Loss:
        """logits [2, tokens, vocab]: the float model's, then the quantised model's."""
        exact, quantised = (torch.log_softmax(part.double(), dim=-1) for part in logits)
        kl = (exact.exp() * (exact - quantised)).sum(dim=-1)
        agreement = (exact.argmax(dim=-1) == quantised.argmax(dim=-1)).double()
        return Loss(
            text_sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
            text_tokens=len(ids),
            worst_group_error=self.worst,
            worst_group_tensor=self.worst_tensor,
            mean_squared_error=self.squared_error / self.squared_weight,
            max_logit_difference=float((logits[0] - logits[1]).abs().max()),
            mean_kl=float(kl.mean()),
            top1_agreement=float(agreement.mean()),
        )


def no_loss(ids: list[int]) -> Loss:
    """The figures of a float scheme: nothing is lost."""
    return Loss(
        text_sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
        text_tokens=len(ids),
        worst_group_error=0.0,
        worst_group_tensor="",
        mean_squared_error=0.0,
        max_logit_difference=0.0,
        mean_kl=0.0,
        top1_agreement=1.0,
    )
