"""Guesses in the token loop: the tokens are those without them, whatever the request, and wrong ones cost little.

On the fake engine, whose logits are the same in whatever forward they are computed, so every number must be equal.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from runtimes.engines.fake import FAKE_ROWS, FakeEngine, fake_artifact
from runtimes.loop import guesses
from runtimes.loop.grammar import Grammars
from runtimes.loop.guesses import Guesses
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import Grammar, NewToken, Sampling, TokenRequest, TokensDone

FEW = 6  # ids: so few that what was there before comes again by chance
PROMPT = random.Random(0).choices(range(FEW), k=60)
TEXT = list(b"The lamp in the hall is on. ")


def run(loop: TokenLoop, **fields: Any) -> tuple[list[tuple[Any, ...]], TokensDone]:
    """What is reported of each token but its time, and the end."""
    given: dict[str, Any] = {"ids": PROMPT, "max_new_tokens": 120, "speculate": True} | fields
    *tokens, done = loop.stream(TokenRequest(**given))
    assert isinstance(done, TokensDone)
    return [(token.id, token.logprob, token.top) for token in tokens if isinstance(token, NewToken)], done


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling": Sampling(temperature=1.0, seed=3)},
        {"sampling": Sampling(temperature=0.7, top_k=4, top_p=0.9, min_p=0.05, seed=4)},
        {"sampling": Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2)},
        {"logprobs": 3},
        {"stop_ids": [2]},
        {"session": "s"},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 400},
    ],
)
@pytest.mark.parametrize(("switch", "piece"), [(None, 512), (70, 3)])
def test_tokens_are_those_without_guesses(fields: dict[str, Any], switch: int | None, piece: int) -> None:
    answers = []
    for speculate in (False, True):
        engine = FakeEngine(vocab_size=FEW, context_tokens=256, switch_tokens=switch)
        loop = TokenLoop(engine, prefill_chunk_tokens=piece)
        answers.append([run(loop, speculate=speculate, **fields | each) for each in ({}, {"ids": PROMPT[:-5]})])
    for (expected, plainly), (tokens, done) in zip(*answers, strict=True):
        assert tokens == expected
        assert (done.finish, done.stop_id) == (plainly.finish, plainly.stop_id)
        assert (done.usage.reused, done.usage.completion) == (plainly.usage.reused, plainly.usage.completion)
        assert (plainly.usage.proposed, plainly.usage.accepted) == (0, 0)
        assert 0 <= done.usage.accepted <= min(done.usage.proposed, done.usage.completion)
    assert done.usage.proposed > 0 or done.usage.completion < 20


def test_a_session_goes_on_after_a_wrong_guess() -> None:
    """What was guessed is in the cache for a moment, and nobody takes it for the answer."""
    loop, fresh = (TokenLoop(FakeEngine(vocab_size=FEW)) for _ in range(2))
    for read in range(1, 40):
        records = loop.stream(TokenRequest(ids=PROMPT, max_new_tokens=60, session="s", speculate=True))
        said = [record.id for record, _ in zip(records, range(read), strict=False) if isinstance(record, NewToken)]
        records.close()
        ids = [*PROMPT, *said, 1]
        again, done = run(loop, ids=ids, session="s", max_new_tokens=8)
        assert again == run(fresh, ids=ids, max_new_tokens=8, speculate=False)[0]
        assert done.usage.reused >= len(PROMPT) + read - 1


def test_a_repeated_text_takes_few_forwards() -> None:
    engine = FakeEngine(script=TEXT * 3)
    tokens, done = run(TokenLoop(engine), ids=[*(TEXT * 2), 0], max_new_tokens=80)
    assert bytes(id for id, *_ in tokens) == bytes(TEXT * 3)[:80]
    assert done.usage.accepted >= 50
    assert len(engine.calls) <= 30
    assert max(length for _, length in engine.calls[1:]) <= FAKE_ROWS


def test_wrong_guesses_cost_little() -> None:
    """The loss in forwards of one token, at the cost that is assumed for a guess."""
    for seed in range(5):
        ids = random.Random(seed).choices(range(4), k=300)
        done = run(TokenLoop(FakeEngine(vocab_size=4, context_tokens=1024)), ids=ids, max_new_tokens=400)[1]
        loss = guesses.COST * done.usage.proposed - done.usage.accepted
        assert done.usage.proposed > 0
        assert loss <= guesses.FIRST_CREDIT + guesses.CREDIT_PER_TOKEN * 400


def test_the_longest_earlier_run_is_followed_and_of_equals_the_latest() -> None:
    assert Guesses([1, 2, 3, 9, 2, 3, 4, 4, 1, 2, 3]).propose(2) == [9, 2]
    assert Guesses([1, 2, 5, 5, 1, 2, 6, 6, 1, 2]).propose(4) == [6, 6]
    assert Guesses([1, 2, 3, 4]).propose(4) == []
    assert Guesses([1, 1, 1]).propose(4) == [1]
    assert Guesses([1]).propose(4) == []


def test_a_grammar_rules_over_guesses(tmp_path: Path) -> None:
    artifact = fake_artifact(tmp_path / "fake")
    form = r'(\{"lamp": "(on|off)"\}, ){1,8}end'
    ids = list(b'{"lamp": "on"}, {"lamp": "on"}, ')
    answers = []
    for speculate in (False, True):
        loop = TokenLoop(FakeEngine(), grammars=Grammars(artifact))
        stop = artifact.manifest.tokens.stop
        answers.append(run(loop, ids=ids, grammar=Grammar("regex", form), stop_ids=stop, speculate=speculate))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1].finish == answers[1][1].finish == "stop"


def test_a_cancel_between_right_guesses_ends_at_once() -> None:
    loop = TokenLoop(FakeEngine(script=TEXT * 3))
    records = loop.stream(TokenRequest(ids=[*(TEXT * 2), 0], max_new_tokens=80, speculate=True))
    for _ in range(30):
        next(records)
    loop.cancel()
    (done,) = records
    assert isinstance(done, TokensDone) and (done.finish, done.usage.completion) == ("cancelled", 30)
