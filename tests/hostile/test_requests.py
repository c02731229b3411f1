"""Requests of any type, and runtimes that are closed: Python users get RequestError, never AttributeError."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime, TokenEvent
from runtimes.engines.fake import VOCAB_SIZE, FakeEngine, fake_artifact, fake_opener
from runtimes.errors import EngineError, RequestError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import Sampling, TokenRequest, check_request
from runtimes.registry import open_runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_artifact(tmp_path_factory.mktemp("requests") / "artifact").folder


@pytest.fixture
def runtime(folder: Path) -> Iterator[Runtime]:
    opened = open_runtime(folder, engine=fake_opener())
    yield opened
    opened.close()


HUGE = 10**400
NAN, INFINITY = float("nan"), float("inf")


def each(name: str, *values: Any, **others: Any) -> list[dict[str, Any]]:
    """A request for each value of one field."""
    return [others | {name: value} for value in values]


def one(role: Any, content: Any) -> list[Message]:
    return [Message(role, content)]


WRONG = [
    *each("prompt", b"a", 1, ["a"], Message("user", "a"), "\ud800"),
    *each("messages", "a", b"a", 1, {}, [], ["a"], [{"content": "a"}], [{"role": "user", "x": 1}], [None], prompt=None),
    *each("messages", one("user", None), one("user", b"a"), one("user", 1), one(None, "a"), one([], "a"), prompt=None),
    *each("token_ids", "a", b"\x01", 1, {1: 2}, [], [1.7], [True], ["1"], [None], [[1]], prompt=None),
    *each("token_ids", [-1], [VOCAB_SIZE], [HUGE], prompt=None),
    *each("tools", "a", 1, [1], [{}], [{"type": "function"}], prompt=None, messages=one("user", "a")),
    *each("tool_choice", None, 1, "x", [], prompt=None, messages=one("user", "a")),
    *each("continue_last", None, 1, "yes", prompt=None, messages=one("user", "a")),
    *each("max_new_tokens", None, 0, -1, 1.5, "3", True, [3], NAN),
    *each("temperature", None, "0", True, -1, NAN, INFINITY, HUGE, [0]),
    *each("top_k", 0, 1.5, "3", True),
    *each("top_p", 0, 1.5, "1", True, NAN, HUGE),
    *each("min_p", -1, 2, "1", NAN),
    *each("repetition_penalty", None, 0, "1", INFINITY, HUGE),
    *each("presence_penalty", None, 3, "1", NAN),
    *each("frequency_penalty", None, -3, "1", NAN),
    *each("seed", -1, 1.5, "3", 1 << 64, True),
    *each("stop", "a", None, 1, [1], [None], {"a": 1}, [""]),
    *each("stop_ids", "a", None, 1, [1.5], [True], [None], [-1], b"\x01"),
    *each("ignore_stop_ids", None, 1, "yes"),
    *each("deadline_s", "1", True, NAN, INFINITY, HUGE, [1]),
    *each("session", 1, b"a", ["a"]),
    *each("logprobs", -1, 1.5, "3", 21, True),
    *each("json_schema", {"a": NAN}, {"a": {1, 2}}, {"a": b"x"}),
    *each("regex", 1, b"a"),
    {"token_ids": [1]},
    {"regex": "a", "lark": "b"},
]


@pytest.mark.parametrize(
    "fields", WRONG, ids=lambda fields: ", ".join(f"{key}={value!r:.30}" for key, value in fields.items())
)
def test_a_wrong_type_is_a_wrong_request(runtime: Runtime, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        runtime.generate(dataclasses.replace(GenerateRequest(prompt="a", max_new_tokens=2), **fields))
    assert len(str(error.value)) < 400
    assert isinstance(next(runtime.generate(GenerateRequest(prompt="a", max_new_tokens=2))), TokenEvent)


@pytest.mark.parametrize("request_", [None, "a", {"prompt": "a"}, 1])
def test_what_is_no_request(runtime: Runtime, request_: Any) -> None:
    with pytest.raises(RequestError, match="give a GenerateRequest"):
        runtime.generate(request_)


def test_numbers_of_numpy_are_numbers(runtime: Runtime) -> None:
    request = GenerateRequest(token_ids=np.array([5, 6, 7]), max_new_tokens=np.int64(2), seed=np.uint64(3))  # type: ignore[arg-type]
    *tokens, done = runtime.generate(request)
    assert isinstance(done, DoneEvent) and (len(tokens), done.usage.prompt) == (2, 3)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 10**30, 5000])
def test_wrong_threads(folder: Path, threads: Any) -> None:
    with pytest.raises(RequestError, match=r"threads is .*; allowed: 1 to 1024"):
        open_runtime(folder, threads=threads, engine=fake_opener())


def test_after_close_nothing_is_served(folder: Path) -> None:
    runtime = open_runtime(folder, engine=fake_opener())
    begun = runtime.generate(GenerateRequest(prompt="a", max_new_tokens=50))
    assert len(list(itertools.islice(begun, 3))) == 3
    runtime.close()
    with pytest.raises(RequestError, match="the runtime is closed; open it again"):
        list(begun)
    with pytest.raises(RequestError, match="the runtime is closed; open it again"):
        runtime.generate(GenerateRequest(prompt="a"))
    runtime.close()


def test_after_close_nothing_is_served_by_the_real_engine(tiny_onnx: Path) -> None:
    runtime = open_runtime(tiny_onnx, threads=1)
    begun = runtime.generate(GenerateRequest(prompt="Once", max_new_tokens=50, ignore_stop_ids=True))
    next(begun)
    runtime.close()
    with pytest.raises(RequestError, match="closed"):
        list(begun)


@pytest.mark.parametrize("wrong", [1.5, True, "2", 0, None])
def test_the_token_interface_checks_them_too(wrong: Any) -> None:
    with pytest.raises(RequestError, match="max_new_tokens is"):
        check_request(TokenRequest(ids=[1], max_new_tokens=wrong), 100, 100)
    for ids in ([1.7], [True], [-1], ["1"]):
        with pytest.raises(RequestError, match=r"token id .* is not in the model's vocabulary"):
            check_request(TokenRequest(ids=ids, max_new_tokens=1), 100, 100)  # type: ignore[arg-type]


def test_a_generation_ends_at_its_length_and_never_beyond_the_context() -> None:
    engine = FakeEngine(context_tokens=100)
    *tokens, _ = TokenLoop(engine).stream(TokenRequest(ids=[5] * 50, max_new_tokens=1000))
    assert len(tokens) == 50
    assert max(start + count for start, count in engine.calls) <= 100


def test_the_engine_itself_refuses_a_position_beyond_its_context(tiny_onnx_short: Path) -> None:
    from export.artifact import open_artifact
    from runtimes.engines.onnx_engine import open_onnx

    engine = open_onnx(open_artifact(tiny_onnx_short), 1)
    with pytest.raises(EngineError, match="position 301 is beyond the context of 256 tokens"):
        engine.forward([5], 300)
    engine.close()


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e300])
def test_an_extreme_temperature_warns_nobody(temperature: float) -> None:
    loop = TokenLoop(FakeEngine())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampling in (
            Sampling(temperature=temperature),
            Sampling(temperature=temperature, top_k=5, top_p=0.9, repetition_penalty=100.0),
        ):
            assert len(list(loop.stream(TokenRequest(ids=[1], max_new_tokens=3, sampling=sampling)))) == 4
