"""What quantisation costs, gathered while the weights stream through: see `Loss` in export.artifact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from export.artifact import Loss
from export.errors import NumbersError
from export.weights.methods.quantize import QuantisedRows

MOST_NATS = 700.0  # e to the power of more is no float


@dataclass(frozen=True)
class ChunkLoss:
    """The figures of one chunk of rows."""

    worst: float
    squared_error: float
    squared_weight: float
    zeroed_blocks: int


def chunk_loss(weight: Tensor, rows: QuantisedRows) -> ChunkLoss:
    """float32 weights against what became of them."""
    exact = weight.flatten()
    return ChunkLoss(
        worst=float(rows.relative_error.max()),
        squared_error=float(rows.squared_error.sum()),
        squared_weight=float(torch.dot(exact, exact)),
        zeroed_blocks=zeroed_blocks(exact, rows),
    )


def zeroed_blocks(weight: Tensor, rows: QuantisedRows) -> int:
    """How many blocks became 0, because the scale of their weights is 0 in the type that it is stored in."""
    if not bool((rows.relative_error == 1).any()):  # so it is for such a block; seldom for others
        return 0
    exact, stored = (values.reshape(rows.relative_error.numel(), -1) for values in (weight, rows.dequantised))
    return int(((stored == 0).all(dim=1) & (exact != 0).any(dim=1)).sum())


@dataclass
class LossMeter:
    """Takes in the chunks' figures and, at the end, the logits of both models."""

    worst: float = 0.0
    worst_tensor: str = ""
    squared_error: float = 0.0
    squared_weight: float = 0.0
    zeroed_blocks: int = 0

    def add(self, name: str, chunk: ChunkLoss) -> None:
        """One chunk of rows. Called in the order of the file, so that sums are the same in every run."""
        if chunk.worst > self.worst:
            self.worst, self.worst_tensor = chunk.worst, name
        self.squared_error += chunk.squared_error
        self.squared_weight += chunk.squared_weight
        self.zeroed_blocks += chunk.zeroed_blocks

    def result(self, figures: Tensor) -> Loss:
        """`figures`: what logit_figures gave; behind them the same for an int8 KV cache, where there is one. Raises
        NumbersError where the model itself gives no numbers."""
        if not bool(torch.isfinite(figures).all()):
            raise NumbersError("the model's logits on a plain text are not finite; is the checkpoint whole?")
        differences, kl, same, exact_nll, nll = figures[:FIGURES]
        return Loss(
            text_tokens=figures.shape[1],
            worst_group_error=self.worst,
            worst_group_tensor=self.worst_tensor,
            mean_squared_error=self.squared_error / self.squared_weight if self.squared_weight else 0.0,
            max_logit_difference=float(differences.max()),
            mean_kl=float(kl.mean()),
            kl_interval=interval(kl),
            top1_agreement=float(same.mean()),
            float_perplexity=perplexity(exact_nll),
            perplexity=perplexity(nll),
            zeroed_blocks=self.zeroed_blocks,
            kv_cache_kl=float(figures[FIGURES + 1].mean()) if len(figures) > FIGURES else None,
        )


def perplexity(losses: Tensor) -> float | None:
    """Of the negative log-likelihoods of a text's tokens; None beyond every float."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < MOST_NATS else None


FIGURES = 5  # that logit_figures gives
# Logits that are compared at a time, so that a large vocabulary takes no more memory than a small one.
COMPARED_TOKENS = 32


def logit_figures(exact: Tensor, rounded: Tensor, *, next_ids: Tensor) -> Tensor:
    """Logits of the float model and of the quantised one, float32 [sequences, tokens, vocab]; next_ids [sequences,
    tokens] -> float32 [5, sequences * (tokens - 1)]: the largest difference of a logit, KL in nats, whether both prefer
    the same token, and both models' negative log-likelihood of the token that follows."""
    tokens = exact.shape[1]
    parts: list[Tensor] = []
    for sequence in range(len(exact)):
        for start in range(0, tokens - 1, COMPARED_TOKENS):
            place = slice(start, min(start + COMPARED_TOKENS, tokens - 1))
            ours, theirs = rounded[sequence, place].double(), exact[sequence, place].double()
            log_exact, log_rounded = torch.log_softmax(theirs, dim=-1), torch.log_softmax(ours, dim=-1)
            target = next_ids[sequence, place.start + 1 : place.stop + 1, None]
            parts.append(
                torch.stack(
                    (
                        (ours - theirs).abs().amax(dim=-1),
                        (log_exact.exp() * (log_exact - log_rounded)).sum(dim=-1),
                        (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).double(),
                        -log_exact.gather(-1, target)[:, 0],
                        -log_rounded.gather(-1, target)[:, 0],
                    )
                )
            )
    return torch.cat(parts, dim=1).float()


RESAMPLED_TOKENS = 32  # neighbours in a text are alike, so that the interval is made from blocks of them


# Student's t of 95 %, by the number of blocks less one. The last is for all more, too: it is 8 % above a normal
# distribution's.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12)


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of what is never negative over the tokens of a text, from the spread of the means
    of its blocks."""
    count = len(values) // RESAMPLED_TOKENS
    if count < 2:
        return float(values.min()), float(values.max())
    means = values[: count * RESAMPLED_TOKENS].double().view(count, -1).mean(dim=1)
    half = STUDENT[min(count - 1, len(STUDENT)) - 1] * float(means.std()) / math.sqrt(count)
    mean = float(values.double().mean())
    return max(0.0, mean - half), mean + half
