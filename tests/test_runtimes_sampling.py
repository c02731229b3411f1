"""Sampling: what may be drawn, how often, and that a seed draws the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtimes.errors import EngineError
from runtimes.loop.sampling import draw, sample
from runtimes.loop.tokens import Sampling

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def drawn(sampling: Sampling, logits: np.ndarray = LOGITS, count: int = 4000) -> dict[int, float]:
    """Each id's share among many draws."""
    ids = [sample(logits, sampling, index) for index in range(count)]
    return {id: ids.count(id) / count for id in set(ids)}


def test_the_stream_is_splitmix64() -> None:
    # The reference implementation's first outputs for the seed 1234567, as a C agent must give them.
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [draw(1234567, index) for index in range(4)] == [(value >> 11) / (1 << 53) for value in reference]
    assert all(0 <= draw(2**64 - 1, index) < 1 for index in range(1000))


def test_greedy_takes_the_first_of_the_best() -> None:
    assert sample(np.array([1, 3, 3, 2], np.float32), Sampling(), 0) == 1


def test_temperature_follows_the_probabilities() -> None:
    shares = drawn(Sampling(temperature=1.0, seed=7))
    assert shares == pytest.approx({0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}, abs=0.03)
    cold = drawn(Sampling(temperature=0.5, seed=7))
    total = 0.5**2 + 0.25**2 + 0.15**2 + 0.1**2
    assert cold[0] == pytest.approx(0.25 / total, abs=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert set(drawn(Sampling(temperature=1.0, top_k=2))) == {0, 1}
    # The token that crosses the share is kept, as transformers does.
    assert set(drawn(Sampling(temperature=1.0, top_p=0.5))) == {0}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.6))) == {0, 1}
    assert set(drawn(Sampling(temperature=1.0, top_p=1.0))) == {0, 1, 2, 3}
    # top-p counts shares of what top-k left: 0.5 / 0.75 is more than 0.6.
    assert set(drawn(Sampling(temperature=1.0, top_k=2, top_p=0.6))) == {0}
    assert set(drawn(Sampling(temperature=1e-6))) == {0}
    assert set(drawn(Sampling(temperature=1.0, top_k=99))) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 5, 300, 2000])
def test_the_shortcut_gives_what_a_full_sort_gives(top_k: int | None, top_p: float) -> None:
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 4.0):  # flat: the nucleus is far longer than the shortcut
        logits = (rng.standard_normal(3000) * spread).astype(np.float32)
        sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, seed=3)
        order = np.lexsort((np.arange(3000), -logits.astype(np.float64)))[: top_k or 3000]
        weights = np.exp(logits[order].astype(np.float64) - logits.max())
        weights /= weights.sum()
        kept = order[np.concatenate([[0.0], weights.cumsum()[:-1]]) < top_p]
        cumulative = np.exp(logits[kept].astype(np.float64) - logits.max()).cumsum()
        for index in range(50):
            wanted = kept[int(cumulative.searchsorted(draw(3, index) * cumulative[-1], side="right"))]
            assert sample(logits, sampling, index) == wanted


def test_ties_go_to_the_lower_id() -> None:
    assert set(drawn(Sampling(temperature=1.0, top_k=2), np.zeros(8, np.float32), 200)) == {0, 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error(bad: float) -> None:
    with pytest.raises(EngineError, match="logits are"):
        sample(np.array([0.0, bad, 1.0], np.float32), Sampling(), 0)


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf], np.float32)
    assert set(drawn(Sampling(temperature=2.0), logits, 200)) == {1}
