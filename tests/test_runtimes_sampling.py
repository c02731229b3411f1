"""Sampling: what may be drawn, how often, and that a seed draws the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtimes.errors import EngineError
from runtimes.loop.chooser import Chooser
from runtimes.loop.sampling import draw, sample
from runtimes.loop.tokens import Sampling, TokenRequest

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


PROMPT = [3, 3, 17, 250]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, min_p=0.2),
        Sampling(temperature=1.5, top_k=40, top_p=0.8, min_p=0.1),
        Sampling(temperature=1.0, min_p=1.0),
        Sampling(temperature=1.0, min_p=0.0, repetition_penalty=1.3),
        Sampling(temperature=1.0, top_p=0.9, repetition_penalty=0.5),
        Sampling(repetition_penalty=2.0),
    ],
)
def test_the_choice_is_that_of_transformers_processors(sampling: Sampling) -> None:
    """The draw is ours; what may be drawn, and how likely each is, comes from transformers."""
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    if sampling.temperature:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        steps += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        steps += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
        steps += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p is not None else []
    rng = np.random.default_rng(1)
    chooser, ids = Chooser(TokenRequest(ids=PROMPT, max_new_tokens=99, sampling=sampling)), list(PROMPT)
    for index in range(60):
        logits = (rng.standard_normal(300) * 2).astype(np.float32)
        scores = steps(torch.tensor([ids]), torch.tensor(logits)[None].clone())[0].numpy()
        order = np.lexsort((np.arange(300), -scores))
        if sampling.temperature:
            if sampling.top_k is None and sampling.top_p is None:
                order = np.arange(300)  # nothing is sorted where nothing needs to be
            weights = np.exp(scores[order].astype(np.float64) - scores.max()).cumsum()
            wanted = int(order[weights.searchsorted(draw(sampling.seed, index) * weights[-1], side="right")])
        else:
            wanted = int(order[0])
        before = logits.copy()
        assert chooser.choose(logits).id == wanted
        assert (logits == before).all()  # they belong to the engine
        ids.append(wanted)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    """OpenAI's rule: logit - presence * (count > 0) - frequency * count, over what was sampled."""
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    chooser = Chooser(TokenRequest(ids=[0, 0, 0], max_new_tokens=9, sampling=sampling))
    logits = np.array([2.0, 1.1, 0.9], np.float32)
    # 0 falls to 1.25, then to 1.0; then 1 falls to 0.35.
    assert [chooser.choose(logits).id for _ in range(5)] == [0, 0, 1, 0, 2]


def test_log_probabilities_are_the_model_s_own() -> None:
    sampling = Sampling(temperature=1.0, top_k=1, repetition_penalty=50.0)
    request = TokenRequest(ids=[0], max_new_tokens=9, sampling=sampling, logprobs=2)
    choice = Chooser(request).choose(LOGITS + 5)
    assert choice.id == 1
    assert choice.logprob == pytest.approx(math.log(0.25), abs=1e-6)
    assert [id for id, _ in choice.top] == [0, 1]
    assert [logprob for _, logprob in choice.top] == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-6)
