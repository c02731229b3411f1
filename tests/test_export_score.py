"""The streamed float reference against transformers, which is the independent judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint.open import open_checkpoint
from export.verify.reference import Transformers
from export.verify.score.blocks import Block
from export.verify.score.streamed import StreamedReference


def compare(checkpoint: Path) -> list[int]:
    """Blocks shorter and longer than the window and the long-rope switch; the layers that `done` was told of."""
    opened = open_checkpoint(str(checkpoint))
    ids = np.random.default_rng(0).integers(3, 200, 120).tolist()
    blocks = [Block("text", ids[:40], 10), Block("text", ids, 32), Block("text", ids[20:60], 20)]
    reference = Transformers(opened, {name: tensor.read() for name, tensor in opened.tensors.items()})
    layers: list[int] = []
    found = list(StreamedReference(opened).rows(blocks, lambda done, total: layers.append(done)))
    for block, rows in zip(blocks, found, strict=True):
        expected = reference.logits(block.ids[:-1], range(block.first, len(block.ids)))
        assert rows.shape == (block.scored, opened.config.vocab_size)
        assert float(np.abs(rows - expected).max()) < 1e-3 * float(expected.std())
    return layers


@pytest.mark.parametrize("tied", [False, True])
def test_a_layer_at_a_time(random_checkpoint: Callable[..., Path], tied: bool) -> None:
    assert compare(random_checkpoint(sliding_window=50, tie_word_embeddings=tied)) == [0, 1, 2]


def test_both_sides_of_the_long_rope_switch(longrope_checkpoint: Path) -> None:
    compare(longrope_checkpoint)
