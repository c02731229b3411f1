"""The token loop on the fake engine: pieces, the long-rope switch, deadlines, cancelling, failing."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtimes.engines.fake import FakeEngine, fake_artifact
from runtimes.errors import RequestError
from runtimes.loop.grammar import Grammars
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import Grammar, NewToken, TokenRequest, TokensDone

PROMPT = list(b"a prompt of some length")


def run(loop: TokenLoop, request: TokenRequest) -> tuple[list[int], TokensDone]:
    *tokens, done = loop.stream(request)
    assert isinstance(done, TokensDone)
    return [record.id for record in tokens if isinstance(record, NewToken)], done


def request(ids: Sequence[int] = PROMPT, max_new_tokens: int = 8, **fields: object) -> TokenRequest:
    return TokenRequest(ids=ids, max_new_tokens=max_new_tokens, **fields)  # type: ignore[arg-type]


def by_hand(engine: FakeEngine, ids: Sequence[int], count: int) -> list[int]:
    """Greedy tokens with the whole sequence computed anew for each."""
    sequence = list(ids)
    for _ in range(count):
        sequence.append(int(engine.forward(sequence, 0).argmax()))
    return sequence[len(ids) :]


def test_pieces_give_the_same_tokens() -> None:
    expected = by_hand(FakeEngine(), PROMPT, 8)
    for pieces in (1, 2, 7, 512):
        engine = FakeEngine()
        ids, done = run(TokenLoop(engine, prefill_chunk_tokens=pieces), request())
        assert ids == expected
        assert max(length for _, length in engine.calls) <= pieces
        assert done.usage.prefilled == len(PROMPT)


def test_an_engine_s_own_limit_is_kept() -> None:
    engine = FakeEngine(max_forward_tokens=5)
    ids, _ = run(TokenLoop(engine), request())
    assert ids == by_hand(FakeEngine(), PROMPT, 8)
    assert max(length for _, length in engine.calls) == 5


@pytest.mark.parametrize("switch", [10, len(PROMPT), len(PROMPT) + 3, 100])
@pytest.mark.parametrize("pieces", [4, 512])
def test_crossing_the_long_rope_switch_prefills_again(switch: int, pieces: int) -> None:
    engine = FakeEngine(switch_tokens=switch)
    ids, done = run(TokenLoop(engine, prefill_chunk_tokens=pieces), request())
    assert ids == by_hand(FakeEngine(switch_tokens=switch), PROMPT, 8)
    again = [length for start, length in engine.calls[1:] if start == 0]
    crossed_midway = len(PROMPT) <= switch < len(PROMPT) + 7
    assert again == ([min(pieces, switch + 1)] if crossed_midway else [])
    assert max(length for _, length in engine.calls) <= pieces
    assert done.usage.prefilled == len(PROMPT)


def test_a_session_knows_on_which_side_of_the_switch_it_was() -> None:
    engine = FakeEngine(switch_tokens=len(PROMPT) + 3)
    loop = TokenLoop(engine, prefill_chunk_tokens=4)
    longer = PROMPT + list(b" and more")
    for ids, reused in (
        (PROMPT, 0),
        (PROMPT, 0),  # the answer crossed the switch: its keys were computed with the long factors
        (longer, len(PROMPT)),  # long as well
        ([*longer[:-1], 1], len(longer) - 1),
        ([*longer, 2], len(longer) - 1),
        (PROMPT, 0),
    ):
        tokens, done = run(loop, request(ids, session="s"))
        assert tokens == by_hand(FakeEngine(switch_tokens=engine.switch_tokens), ids, 8)
        assert done.usage.reused == reused


def test_what_a_ring_has_forgotten_is_prefilled_again() -> None:
    engine = FakeEngine(resumes=4)
    loop = TokenLoop(engine, prefill_chunk_tokens=4)
    for ids, reused in (
        (PROMPT, 0),
        ([*PROMPT[:-1], 1], 0),  # the answer went further than the ring goes back
        ([*PROMPT[:-1], 1], 0),
        (PROMPT[:-2], 0),
        ([*PROMPT[:-2], *by_hand(FakeEngine(), PROMPT[:-2], 8)[:5], 2], len(PROMPT) + 3),
    ):
        tokens, done = run(loop, request(ids, session="s"))
        assert (tokens, done.usage.reused) == (by_hand(FakeEngine(), ids, 8), reused)


def test_a_deadline_in_the_middle() -> None:
    loop = TokenLoop(FakeEngine(forward_s=0.01))
    ids, done = run(loop, request(max_new_tokens=400, deadline_s=0.1))
    assert done.finish == "deadline"
    assert 1 <= len(ids) <= 10
    assert done.total_s is not None and 0.1 <= done.total_s < 0.5


def test_a_deadline_in_the_prefill() -> None:
    loop = TokenLoop(FakeEngine(forward_s=0.02), prefill_chunk_tokens=1)
    ids, done = run(loop, request(deadline_s=0.05))
    assert (ids, done.finish, done.prefill_s) == ([], "deadline", None)
    assert 0 < done.usage.prefilled < len(PROMPT)
    # What was computed can be used by the session's next request, and by it alone.
    ids, done = run(loop, request())
    assert (ids, done.usage.reused) == (by_hand(FakeEngine(), PROMPT, 8), 0)


def test_cancel_from_another_thread() -> None:
    loop = TokenLoop(FakeEngine(forward_s=0.005))
    stream = loop.stream(request(max_new_tokens=400))
    next(stream)
    threading.Timer(0.05, loop.cancel).start()
    *tokens, done = stream
    assert isinstance(done, TokensDone)
    assert done.finish == "cancelled"
    assert len(tokens) < 50
    assert done.usage.completion == len(tokens) + 1
    assert run(loop, request())[1].finish == "length", "a cancel does not reach the next request"


def test_cancel_in_the_prefill() -> None:
    loop = TokenLoop(FakeEngine(forward_s=0.02), prefill_chunk_tokens=1)
    threading.Timer(0.05, loop.cancel).start()
    ids, done = run(loop, request())
    assert (ids, done.finish) == ([], "cancelled")


def test_a_failing_engine_is_told_and_its_cache_forgotten() -> None:
    engine = FakeEngine(fail_at=len(PROMPT) + 2)
    loop = TokenLoop(engine)
    ids, done = run(loop, request(session="s"))
    assert (len(ids), done.finish) == (3, "error")
    assert done.error is not None and "as it was asked to" in done.error
    _, done = run(loop, request(max_new_tokens=2, session="s"))
    assert (done.finish, done.usage.reused) == ("length", 0)


def test_forget_drops_the_prefix() -> None:
    loop = TokenLoop(FakeEngine())
    run(loop, request(session="s"))
    loop.forget()
    assert run(loop, request(session="s"))[1].usage.reused == 0


def test_a_stop_id_is_told_apart() -> None:
    stop = by_hand(FakeEngine(), PROMPT, 8)[4]
    ids, done = run(TokenLoop(FakeEngine()), request(stop_ids=[stop]))
    assert (len(ids), done.finish, done.stop_id, done.usage.completion) == (4, "stop", stop, 4)


def test_a_request_is_checked_before_anything_runs() -> None:
    engine = FakeEngine(context_tokens=8)
    with pytest.raises(RequestError, match="23 tokens; a context of 8 takes at most 7"):
        TokenLoop(engine).stream(request())
    assert engine.calls == []


@pytest.mark.parametrize("continues", [True, False])
def test_what_a_grammar_forces_is_computed_at_once(continues: bool, tmp_path: Path) -> None:
    """A key of a JSON object is no choice: its tokens go through the engine together."""
    engine = FakeEngine(continues=continues)
    loop = TokenLoop(engine, grammars=Grammars(fake_artifact(tmp_path / "artifact")))
    schema = {"properties": {"temperature": {"enum": [1, 2]}}, "additionalProperties": False}
    schema |= {"type": "object", "required": ["temperature"]}
    grammar = Grammar("json_schema", json.dumps(schema))
    ids, done = run(loop, request(max_new_tokens=100, grammar=grammar, stop_ids=[261]))
    assert bytes(ids) in (b'{"temperature": 1}', b'{"temperature": 2}')
    assert (done.finish, done.stop_id, done.usage.completion) == ("stop", 261, len(ids))
    steps = [length for start, length in engine.calls if start > 0]
    assert sum(steps) < len(ids)  # nothing is computed after the end
    assert max(steps) == (len(b'{"temperature": ') if continues else 1)
