"""The host's side of the agent protocol, against agents that misbehave: every wait has an end and a reason."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.transports.child import ChildLines
from devices.transports.remote_tokens import RemoteTokens, open_remote
from devices.transports.timeouts import Timeouts
from fakes.agent import fake_agent
from runtimes.engines.fake import fake_artifact
from runtimes.errors import EngineError, RequestError, TransportError, UnsupportedError
from runtimes.loop.tokens import Grammar, NewToken, Sampling, TokenRequest, TokensDone

START = """
import json, os, sys, time
def say(**fields):
    print(json.dumps(fields), flush=True)
def ready(**fields):
    say(**({"event": "ready", "protocol": 1, "agent": "a test's", "context_tokens": 512, "vocab_size": 262} | fields))
def hear(do="generate"):
    while True:
        command = json.loads(sys.stdin.readline())
        if command["do"] == do:
            return command
"""
REQUEST = TokenRequest(ids=[1, 2], max_new_tokens=3)


@pytest.fixture
def start() -> Iterator[Callable[..., RemoteTokens]]:
    opened: list[RemoteTokens] = []

    def begin(program: str, **fields: Any) -> RemoteTokens:
        fields.setdefault("timeouts", Timeouts(load_s=20, silence_s=20, progress_s=20, end_s=1))
        opened.append(open_remote(ChildLines([sys.executable, "-c", START + program]), **fields))
        return opened[-1]

    yield begin
    for source in opened:
        source.close()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit(3)", r"the agent ended while loading the artifact \(exit code 3\)"),
        ("sys.stderr.write('no room\\n'); os.abort()", r"(?s)killed by SIGABRT\)\n  no room"),
        ("print('Welcome to your Pi!')", "printed b'Welcome to your Pi!', which is no line .* make it silent"),
        ("say(event='done', request=1)", "is no line of agent protocol 1"),
        ("ready(protocol=2)", "speaks protocol 2; this version speaks 1; install the same"),
        ("say(event='pong', request=1); say(event='sample', conditions={})", r"line is Sample\(.*, not its ready line"),
        ('sys.stdout.write(\'{"event": "rea\'); sys.stdout.flush()', "the agent ended while loading"),
        ("ready(artifact='b' * 64); hear()", "serves artifact bbbbbbbbbbbb…, but [0-9a-f]{12}… was asked for"),
        (
            "ready(context_tokens=4096); hear()",
            "a context of 4096 tokens and a vocabulary of 262; the artifact has 512",
        ),
        (
            "ready(context_tokens='512')",
            r"no line of agent protocol 1 \(Ready: context_tokens: expected int, saw '512'\)",
        ),
        ("ready(max_line_bytes=0)", r"max_line_bytes is 0"),
        ("ready(capabilities=None)", "capabilities: expected"),
        ("ready(load_s=1e999)", "which is no line of agent protocol 1"),
        ("sys.stdout.write('x' * 5_000_000); sys.stdout.flush(); time.sleep(9)", "a line of more than 4194304 bytes"),
        (
            "say(event='error', request=None, code='internal', message='x' * 3_000_000, fatal=True)",
            "internal: x{2000}…$",
        ),
        (
            "say(event='error', request=None, code='internal', message='x', fatal=True)",
            "the agent reported internal: x",
        ),
    ],
)
def test_an_agent_that_does_not_get_ready(
    start: Callable[..., RemoteTokens], tmp_path: Path, program: str, said: str
) -> None:
    manifest = fake_artifact(tmp_path / "artifact").manifest
    with pytest.raises(TransportError, match=said):
        start(program, manifest=manifest)


def test_what_the_agent_cannot_load_is_the_engines_error(start: Callable[..., RemoteTokens]) -> None:
    with pytest.raises(EngineError, match="no such library"):
        start("say(event='error', request=None, code='engine', message='no such library', fatal=True); sys.exit(2)")


@pytest.mark.parametrize(
    ("program", "timeouts", "said"),
    [
        (
            "time.sleep(900)",
            Timeouts(load_s=0.3, end_s=0.1),
            r"stopped after \d+ s of loading .* without a result",
        ),
        ("time.sleep(900)", Timeouts(silence_s=0.3, end_s=0.1), r"the agent wrote nothing for \d+ s of loading"),
    ],
)
def test_loading_has_an_end(start: Callable[..., RemoteTokens], program: str, timeouts: Timeouts, said: str) -> None:
    with pytest.raises(TransportError, match=said):
        start(program, timeouts=timeouts)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("hear(); sys.exit(4)", r"the agent ended while generating: nobody knows \(exit code 4\)"),
        ("say(event='token', request=hear()['request'], id=1, at_s=0.1); os.kill(os.getpid(), 9)", "SIGKILL"),
        (
            "hear(); print('ld.so: something', flush=True); time.sleep(900)",
            "printed b'ld.so: something', which is no line",
        ),
        ("hear(); sys.stdout.write('{\"event\": \"tok'); sys.stdout.flush()", "the agent ended while generating"),
        ("hear(); time.sleep(900)", r"stopped after \d+ s of generating without a result"),
        ("say(event='error', request=hear()['request'], code='engine', message='x', fatal=True)", "x"),
    ],
)  # fmt: skip
def test_an_agent_lost_in_an_answer_is_lost_for_good(
    start: Callable[..., RemoteTokens], program: str, said: str
) -> None:
    timeouts = Timeouts(progress_s=1, end_s=0.2)
    source = start(f"ready()\n{program}", timeouts=timeouts, diagnose=lambda boot_id: "nobody knows")
    with pytest.raises(TransportError, match=said) as first:
        list(source.stream(REQUEST))
    assert "nobody knows" in str(first.value)
    with pytest.raises(TransportError, match=said):
        list(source.stream(REQUEST))


def test_an_error_line_ends_the_request_alone(start: Callable[..., RemoteTokens]) -> None:
    source = start("""
ready()
say(event="error", request=hear()["request"], code="internal", message="a bug", fatal=False)
say(event="error", request=hear()["request"], code="request", message="not so", fatal=False)
number = hear()["request"]
usage = {"prompt": 2, "reused": 0, "prefilled": 2, "completion": 0}
say(event="done", request=number, finish="length", usage=usage, more="than version 1 knows")
""")
    with pytest.raises(TransportError, match="the agent reported internal: a bug"):
        list(source.stream(REQUEST))
    with pytest.raises(RequestError, match="not so"):
        list(source.stream(REQUEST))
    (done,) = source.stream(REQUEST)
    assert isinstance(done, TokensDone) and done.memory is None and done.total_s is None


def test_what_an_agent_does_not_support_is_refused_here(start: Callable[..., RemoteTokens]) -> None:
    source = start("ready(capabilities=['cancel'])\nhear()")
    for request in (
        TokenRequest(ids=[1], max_new_tokens=1, sampling=Sampling(temperature=1.0)),
        TokenRequest(ids=[1], max_new_tokens=1, session="a"),
        TokenRequest(ids=[1], max_new_tokens=1, deadline_s=3.0),
    ):
        with pytest.raises(UnsupportedError, match=r"does not support \w+; it supports: cancel; leave \w+ out"):
            source.stream(request)
    python = start("ready(capabilities=['cancel'], agent='phi-edge 1.0 python')\nhear()")
    with pytest.raises(UnsupportedError, match=r"regex; .* install llguidance for the device's Python, or leave"):
        python.stream(TokenRequest(ids=[1], max_new_tokens=1, stop_ids=[2], grammar=Grammar("regex", "a")))
    with pytest.raises(UnsupportedError, match="does not support hold"):
        start("ready()\nhear()", hold=True).stream(REQUEST)


def open_fake(folder: Path, forward_s: float) -> RemoteTokens:
    """A real agent of a fake artifact, made in `folder`, that takes so long for a token."""
    artifact = fake_artifact(folder / "artifact").folder
    return open_remote(ChildLines([*fake_agent(forward_s), str(artifact)]))


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[RemoteTokens]:
    source = open_fake(tmp_path, 0.02)
    yield source
    source.close()


def test_cancel_from_another_thread_ends_in_a_done(slow: RemoteTokens) -> None:
    stream = slow.stream(TokenRequest(ids=[1], max_new_tokens=400))
    next(stream)
    thread = threading.Thread(target=slow.cancel)
    thread.start()
    *tokens, done = stream
    thread.join()
    assert isinstance(done, TokensDone) and done.finish == "cancelled"
    assert len(tokens) < 399
    slow.cancel()  # nothing runs
    assert len(list(slow.stream(REQUEST))) == 4


def test_a_stream_that_is_left_is_cancelled(tmp_path: Path) -> None:
    """Three whole answers would take longer than a test may."""
    with contextlib.closing(open_fake(tmp_path, 0.5)) as source:
        for _ in range(3):
            stream = source.stream(TokenRequest(ids=[1], max_new_tokens=500))
            assert all(isinstance(record, NewToken) for record in itertools.islice(stream, 2))
            stream.close()
        assert len(list(source.stream(REQUEST))) == 4


def test_a_session_may_have_any_name(slow: RemoteTokens) -> None:
    request = TokenRequest(ids=[1, 2, 3], max_new_tokens=1, session="a b\n\0 日本 \ud83d")
    reused = []
    for _ in range(2):
        *_, done = slow.stream(request)
        assert isinstance(done, TokensDone)
        reused.append(done.usage.reused)
    assert reused == [0, 2]


def test_a_closed_source_says_so(slow: RemoteTokens) -> None:
    slow.close()
    slow.close()
    with pytest.raises(TransportError, match="the runtime is closed"):
        list(slow.stream(REQUEST))
