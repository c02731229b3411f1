"""What one block's predictions are worth: a number for each predicted token. Pure numpy.

The logits of the artifact come a position at a time; those of the reference are there for the whole block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ArtifactError
from export.verify.score.blocks import Block
from export.verify.score.figures import Floats

Rows = NDArray[np.float32]  # [predicted tokens, vocab], logits
MOST_NLL = 700.0  # nats, of a block's mean: exp(709.8) is beyond float64
TOP_IDS = 64  # of the reference, whose log-probabilities a device is asked for


@dataclass(frozen=True, kw_only=True)
class BlockLosses:
    """Of each predicted token of a block. The last three are None without a reference."""

    kind: str
    nll: Floats  # nats: -log of the probability that the artifact gave to the token
    reference_nll: Floats | None = None
    kl: Floats | None = None  # nats, of the reference's distribution from the artifact's
    same_top1: Floats | None = None  # 1 where both prefer the same token, else 0


@dataclass(frozen=True)
class DevicePrediction:
    """What a device reports of one position, so that a whole vocabulary never crosses the wire."""

    log_probabilities: Sequence[float]  # of the ids it was asked for, in their order
    top: int


def losses(block: Block, logits: Iterable[Any], reference: Rows | None) -> BlockLosses:
    """`logits` [vocab] after each of ids[:first], ids[:first + 1], ...; a row may be overwritten by the next.

    Raises ArtifactError where one of them is not finite, or the perplexity would not be.
    """
    rows = [
        _position(np.asarray(row), target, None if reference is None else reference[number])
        for number, (row, target) in enumerate(zip(logits, block.targets, strict=True))
    ]
    return _block(block, np.array(rows, dtype=np.float64), reference is not None)


def wanted_ids(block: Block, reference: Rows | None) -> list[list[int]]:
    """What a device is asked for at each position: the token that follows, then the reference's top ids but it."""
    if reference is None:
        return [[target] for target in block.targets]
    count = min(TOP_IDS, reference.shape[1])
    tops = np.argpartition(-reference, count - 1, axis=1)[:, :count]
    return [[target, *(int(id) for id in row if id != target)] for target, row in zip(block.targets, tops, strict=True)]


def device_losses(block: Block, seen: Sequence[DevicePrediction], reference: Rows | None) -> BlockLosses:
    """As `losses`, from what a device reported for `wanted_ids`.

    KL is that of the distributions over {wanted ids, everything else}: at most the KL over the vocabulary.
    """
    wanted = wanted_ids(block, reference)
    rows = []
    for number, (prediction, ids) in enumerate(zip(seen, wanted, strict=True)):
        ours = np.asarray(prediction.log_probabilities, np.float64)
        if reference is None:
            rows.append((-ours[0], 0.0, 0.0, 0.0))
            continue
        theirs = log_softmax(reference[number])[ids]
        kl = float((np.exp(theirs) * (theirs - ours)).sum()) + _rest(theirs, ours)
        same = float(prediction.top == int(reference[number].argmax()))
        rows.append((-ours[0], -float(theirs[0]), max(0.0, kl), same))
    return _block(block, np.array(rows, dtype=np.float64), reference is not None)


def log_softmax(logits: Any) -> Floats:
    """Logits [vocab] -> log-probabilities in float64."""
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max()
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result


def _position(logits: Any, target: int, reference: Any | None) -> tuple[float, float, float, float]:
    """nll, the reference's nll, KL, same top token; the last three are 0 without a reference."""
    ours = log_softmax(logits)
    if reference is None:
        return -float(ours[target]), 0.0, 0.0, 0.0
    theirs = log_softmax(reference)
    # Not np.dot: its threads wait for cores that the engine holds, 20 ms a token on a busy machine.
    kl = float((np.exp(theirs) * (theirs - ours)).sum())
    return -float(ours[target]), -float(theirs[target]), max(0.0, kl), float(ours.argmax() == theirs.argmax())


def _rest(theirs: Floats, ours: Floats) -> float:
    """The part of the KL that "everything else" has."""
    left, right = (max(1e-12, 1.0 - float(np.exp(part).sum())) for part in (theirs, ours))
    return left * float(np.log(left / right))


def _block(block: Block, columns: Floats, compared: bool) -> BlockLosses:
    if not np.isfinite(columns).all():
        raise ArtifactError(
            "the artifact's logits are not finite (not a number, or beyond the range of its floating-point type); "
            "export it again, with --activations float32 if it was made with float16"
        )
    nll, reference_nll, kl, same = columns.T
    if nll.mean() > MOST_NLL:
        raise ArtifactError(
            f"the artifact gives the tokens of a text the probability e^-{nll.mean():.0f}: its perplexity is beyond "
            "every float, and its weights or its device are broken; export it again"
        )
    if not compared:
        return BlockLosses(kind=block.kind, nll=nll)
    return BlockLosses(kind=block.kind, nll=nll, reference_nll=reference_nll, kl=kl, same_top1=same)
