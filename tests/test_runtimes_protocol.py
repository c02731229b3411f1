"""The agent protocol (docs/agent-protocol.md) against both agents: both give the same answers."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from export.artifact import Manifest, open_artifact
from fakes.agent import fake_agent
from fakes.talk import Talk
from runtimes.agent.wire import MAX_LINE_BYTES
from runtimes.engines.fake import fake_artifact

FIELDS = {"ids": [1, 2, 3], "max_new_tokens": 4}
CODES = {"malformed", "request", "unsupported", "busy", "artifact", "engine"}


@dataclass(frozen=True)
class AgentUnderTest:
    """How to start an agent, and the artifact that it serves."""

    command: list[str]  # before the artifact's folder
    options: list[str]  # behind it
    manifest: Manifest
    folder: Path

    def start(self, *options: str, folder: Path | None = None) -> Talk:
        return Talk([*self.command, str(folder or self.folder), *self.options, *options])


@pytest.fixture(scope="module", params=["python", pytest.param("native", marks=pytest.mark.emulated)])
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AgentUnderTest:
    if request.param == "python":
        artifact = fake_artifact(tmp_path_factory.mktemp("agent") / "artifact", context_tokens=256)
        return AgentUnderTest(fake_agent(0.005), [], artifact.manifest, artifact.folder)
    program = request.getfixturevalue("android").folder / "agent-sanitized"
    libraries = request.getfixturevalue("host_libraries")
    artifact = open_artifact(request.getfixturevalue("tiny_onnx_short"))
    # The engine's library leaks by design: the sanitizer must report faults of the agent only.
    command = ["env", "ASAN_OPTIONS=detect_leaks=0", str(program)]
    return AgentUnderTest(command, ["--libraries", str(libraries)], artifact.manifest, artifact.folder)


@pytest.fixture
def start(agent: AgentUnderTest) -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def begin(*options: str, folder: Path | None = None) -> Talk:
        talks.append(agent.start(*options, folder=folder))
        return talks[-1]

    yield begin
    for talk in talks:
        talk.kill()


@pytest.fixture(scope="module")
def talk(agent: AgentUnderTest) -> Iterator[Talk]:
    """One ready agent for all tests that leave it as they found it."""
    begun = agent.start()
    assert begun.next()["event"] == "ready"
    yield begun
    begun.kill()


def long(agent: AgentUnderTest) -> dict[str, Any]:
    """A request that takes as long as the context allows."""
    return {"ids": [1], "max_new_tokens": agent.manifest.context_tokens - 1}


def test_the_ready_line(start: Callable[..., Talk], agent: AgentUnderTest) -> None:
    ready = start("--threads", "1").next()
    manifest = agent.manifest
    assert ready["protocol"] == 1
    assert ready["agent"].startswith("phi-edge ")
    assert ready["artifact"] in (manifest.digest(), None)
    assert (ready["context_tokens"], ready["vocab_size"]) == (manifest.context_tokens, manifest.model.vocab_size)
    assert ready["threads"] == 1
    required = ["temperature", "top_k", "top_p", "session", "deadline_s", "hold", "cancel"]
    assert [name for name in ready["capabilities"] if name in required] == required
    assert ready["max_line_bytes"] == MAX_LINE_BYTES
    assert 0 < ready["open_s"] <= ready["load_s"] + 0.01  # the kernel's clock ticks every 10 ms
    assert ready["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ready["versions"]


def test_an_answer_is_tokens_and_done(talk: Talk) -> None:
    talk.send("generate", 7, **FIELDS)
    *tokens, done = talk.answer(7)
    assert [token["event"] for token in tokens] == ["token"] * 4
    times = [token["at_s"] for token in tokens]
    assert times == sorted(times) and 0 < done["prefill_s"] <= times[0] and times[-1] <= done["total_s"]
    assert (done["finish"], done["stop_id"], done["error"]) == ("length", None, None)
    assert done["usage"].items() >= {"prompt": 3, "reused": 0, "prefilled": 3, "completion": 4}.items()
    assert done["memory"]["peak_bytes"] > 1_000_000


def test_held_tokens_are_the_same(talk: Talk) -> None:
    talk.send("generate", 1, **FIELDS)
    plain = talk.answer(1)
    talk.send("generate", 2, **FIELDS, hold=True)
    assert [line.get("id") for line in talk.answer(2)] == [line.get("id") for line in plain]


def test_a_stop_id_is_reported_and_is_no_token(talk: Talk) -> None:
    talk.send("generate", 1, **FIELDS)
    stop = talk.answer(1)[2]["id"]
    talk.send("generate", 2, **FIELDS, stop_ids=[stop])
    *tokens, done = talk.answer(2)
    assert len(tokens) <= 2
    assert (done["finish"], done["stop_id"]) == ("stop", stop)


def test_seeded_tokens_are_the_same_again(talk: Talk) -> None:
    answers = []
    for number in (1, 2):
        talk.send("generate", number, **FIELDS, temperature=2.0, top_k=50, top_p=0.9, seed=2**64 - 1)
        answers.append([line.get("id") for line in talk.answer(number)])
    assert answers[0] == answers[1]


def test_a_session_reuses_its_common_prefix(talk: Talk) -> None:
    for number, (reused, session) in enumerate([(0, "a"), (2, "a"), (0, "b"), (0, None)], start=1):
        talk.send("generate", number, **FIELDS, session=session)
        assert talk.answer(number)[-1]["usage"]["reused"] == reused


def test_a_deadline_that_is_over_ends_at_once(talk: Talk) -> None:
    talk.send("generate", 1, **FIELDS, deadline_s=-1.0)
    (done,) = talk.answer(1)
    assert done["finish"] == "deadline" and done["usage"]["completion"] == 0


def test_what_is_sent_while_it_loads(start: Callable[..., Talk], agent: AgentUnderTest) -> None:
    """A generate waits for the ready line; a second is busy, a ping is answered, and a cancel counts."""
    talk = start()
    talk.send("generate", 1, **long(agent))
    talk.send("generate", 2, **FIELDS)
    talk.send("ping", 3)
    talk.send("cancel", 1)
    lines = talk.until("done", 1)
    assert lines[-1]["finish"] == "cancelled"
    (busy,) = (line for line in lines if line["event"] == "error")
    assert (busy["request"], busy["code"], busy["fatal"]) == (2, "busy", False)
    assert "request 1 is running" in busy["message"]
    assert [line["request"] for line in lines if line["event"] == "pong"] == [3]
    talk.send("generate", 4, **FIELDS)
    assert len(talk.answer(4)) == 5


def test_two_quick_generates(talk: Talk, agent: AgentUnderTest) -> None:
    """In one write: the second is busy, a ping behind it is answered in between, and the first goes on."""
    commands: list[dict[str, Any]] = [
        {"do": "generate", "request": 1, **long(agent)},
        {"do": "generate", "request": 2, **FIELDS},
        {"do": "ping", "request": 3},
    ]
    talk.raw(b"\n".join(json.dumps(command).encode() for command in commands))
    lines = talk.until("done", 1)
    assert [(line["request"], line["code"]) for line in lines if line["event"] == "error"] == [(2, "busy")]
    assert [line["request"] for line in lines if line["event"] == "pong"] == [3]
    assert lines[-1]["usage"]["completion"] == agent.manifest.context_tokens - 1


def test_a_cancel_right_behind_its_generate_counts(talk: Talk, agent: AgentUnderTest) -> None:
    for number in range(1, 20):
        command = json.dumps({"do": "generate", "request": number, **long(agent)})
        talk.raw(command.encode() + b"\n" + json.dumps({"do": "cancel", "request": number}).encode())
        *tokens, done = talk.answer(number)
        assert done["finish"] == "cancelled" and len(tokens) == done["usage"]["completion"]


def test_a_late_or_foreign_cancel_does_nothing(talk: Talk) -> None:
    talk.send("cancel", 1)
    talk.send("generate", 2, **FIELDS)
    talk.send("cancel", 1)
    assert talk.answer(2)[-1]["finish"] == "length"
    talk.send("cancel", 2)
    talk.send("generate", 3, **FIELDS)
    assert talk.answer(3)[-1]["finish"] == "length"


def test_a_score_reports_the_wanted_ids(talk: Talk) -> None:
    talk.send("score", 1, ids=[1, 2, 3], first=2, wanted=[[3, 4], [5]])
    (scored,) = talk.until("scored", 1)
    assert [len(logs) for logs in scored["log_probabilities"]] == [2, 1]
    assert all(log <= 0 for logs in scored["log_probabilities"] for log in logs)
    assert len(scored["top"]) == 2
    talk.send("score", 2, ids=[1, 2, 3], first=2, wanted=[[3]])
    (refused,) = talk.until("error", 2)
    assert "there are 2 positions" in refused["message"]


def test_a_cancel_ends_a_score(talk: Talk, agent: AgentUnderTest) -> None:
    ids = [1] * agent.manifest.context_tokens
    command = {"do": "score", "request": 1, "ids": ids, "first": 1, "wanted": [[1]] * len(ids)}
    talk.raw(json.dumps(command).encode() + b"\n" + b'{"do": "cancel", "request": 1}')
    (error,) = talk.until("error", 1)
    assert error["code"] == "request" and "cancelled" in error["message"]
    talk.send("generate", 2, **FIELDS)
    assert talk.answer(2)[-1]["finish"] == "length"


GENERATE = b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 1'


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        (b"", "malformed", None),
        (b"hello", "malformed", None),
        (b"\xff\xfe{}", "malformed", None),
        (b"\xef\xbb\xbf" + b'{"do": "ping", "request": 1}', "malformed", None),
        (b"[1]", "malformed", None),
        (b"{}", "malformed", None),
        (b'{"request": 1, "do": "ping",}', "malformed", None),
        (b'{"request": 1, "do": "ping"} x', "malformed", None),
        (b'{"request": 1, "do": "ping", "request": 1}', "malformed", None),
        (b'{"request": 1.5, "do": "ping"}', "malformed", None),
        (b'{"request": -1, "do": "ping"}', "malformed", None),
        (b'{"request": true, "do": "ping"}', "malformed", None),
        (b'{"request": 9007199254740992, "do": "ping"}', "malformed", None),
        (b'{"request": 1}', "malformed", 1),
        (b'{"request": 1, "do": ["ping"]}', "malformed", 1),
        (b'{"request": 1, "do": "sample"}', "malformed", 1),
        (b'{"request": 1, "do": "forget"}', "malformed", 1),
        (b'{"request": 1, "do": "ping", "x": 2}', "request", 1),
        (b'{"request": 1, "do": "ping", "ids": [1]}', "request", 1),
        (b'{"request": 1, "do": "generate"}', "request", 1),
        (GENERATE + b', "n": 2}', "request", 1),
        (b'{"request": 1, "do": "generate", "ids": [1.0], "max_new_tokens": 1}', "request", 1),
        (b'{"request": 1, "do": "generate", "ids": [9999999], "max_new_tokens": 1}', "request", 1),
        (b'{"request": 1, "do": "generate", "ids": [-1], "max_new_tokens": 1}', "request", 1),
        (b'{"request": 1, "do": "generate", "ids": [], "max_new_tokens": 1}', "request", 1),
        (b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 0}', "request", 1),
        (GENERATE + b', "seed": -1}', "request", 1),
        (GENERATE + b', "seed": 18446744073709551616}', "request", 1),
        (GENERATE + b', "temperature": -1}', "request", 1),
        (GENERATE + b', "temperature": 1e999}', "request", 1),
        (GENERATE + b', "temperature": 99999999999999999999999}', "request", 1),
        (GENERATE + b', "top_k": 0}', "request", 1),
        (GENERATE + b', "top_p": 1.5}', "request", 1),
        (GENERATE + b', "session": "a b"}', "request", 1),
        (GENERATE + b', "hold": 1}', "request", 1),
        (b'{"request": 1, "do": "score", "ids": [1], "first": 1}', "request", 1),
        (b'{"request": 1, "do": "score", "ids": [1], "first": 0, "wanted": [[1], [1]]}', "request", 1),
        (b'{"request": 1, "do": "score", "ids": [1], "first": 2, "wanted": []}', "request", 1),
        (b'{"request": 1, "do": "score", "ids": [1], "first": 1, "wanted": [1]}', "request", 1),
        (b'{"request": 1, "do": "score", "ids": [1], "first": 1, "wanted": [[1099511627776]]}', "request", 1),
        (b'{"request": 1, "do": "score", "ids": [1], "first": 1, "wanted": [[1]], "hold": true}', "request", 1),
        (GENERATE + b', "top_p": NaN}', "malformed", None),
        (b"[" * 100_000, "malformed", None),
        (b'{"a":' * 100_000, "malformed", None),
        (b'{"request": ' + b"9" * 5000 + b', "do": "ping"}', "malformed", None),
        (b'{"request": 1, "do": "ping", "x": 1, "x": 2}', "malformed", None),
        (b'{"request": 1, "do": "ping", "\\n\\u001b": 2}', "request", 1),
        (GENERATE + b', "session": "\\ud800"}', "malformed", None),
        (GENERATE + b', "x": ' + b"[" * 70 + b"]" * 70 + b"}", "malformed", None),
        (GENERATE + b', "top_k": 18446744073709551616}', "request", 1),
        (GENERATE + b', "deadline_s": 18446744073709551616}', "request", 1),
        (GENERATE + b', "max_new_tokens2": 1, "x\\"[[": 1}', "request", 1),
        (b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 18446744073709551616}', "request", 1),
        (b"x" * (MAX_LINE_BYTES + 10), "malformed", None),
        (b" " * (3 * MAX_LINE_BYTES), "malformed", None),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_a_wrong_line_is_answered_and_the_agent_lives_on(
    talk: Talk, line: bytes, code: str, number: int | None
) -> None:
    talk.raw(line)
    error = talk.next()
    assert (error["event"], error["code"], error["request"], error["fatal"]) == ("error", code, number, False)
    assert "\n" not in error["message"]
    talk.send("generate", 2, **FIELDS)
    assert len(talk.answer(2)) == 5


def test_half_a_line_at_the_end_is_dropped(start: Callable[..., Talk]) -> None:
    talk = start()
    assert talk.next()["event"] == "ready"
    talk.stdin.write(b'{"do": "generate", "request": 1, "ids": [1], "max_new')
    talk.stdin.close()
    assert talk.stdout.read() == b""
    assert talk.process.wait(60) == 0


def test_the_end_of_stdin_ends_a_generation(start: Callable[..., Talk], agent: AgentUnderTest) -> None:
    talk = start()
    talk.next()
    talk.send("generate", 1, **long(agent))
    talk.next()
    assert talk.end() == 0


def test_silence_ends_the_agent(start: Callable[..., Talk]) -> None:
    talk = start("--silence-s", "2")
    talk.next()
    talk.send("ping", 1)
    assert talk.next()["event"] == "pong"
    assert talk.process.wait(60) == 3


def test_a_line_that_never_ends_is_silence(start: Callable[..., Talk]) -> None:
    talk = start("--silence-s", "2")
    talk.next()
    with contextlib.suppress(BrokenPipeError):
        while talk.process.poll() is None:
            talk.stdin.write(b"x")
            talk.stdin.flush()
            time.sleep(0.2)
    assert talk.process.wait(60) == 3


def test_a_host_that_neither_reads_nor_lives_is_left(start: Callable[..., Talk]) -> None:
    talk = start()
    with contextlib.suppress(BrokenPipeError):
        talk.stdin.write(b'{"do": "nothing", "request": 1}\n' * 1500)  # the answers fill the pipe
        talk.stdin.flush()
    talk.stdin.close()
    assert talk.process.wait(60) == 0


def test_one_agent_at_a_time_holds_a_lock(start: Callable[..., Talk], tmp_path: Path) -> None:
    lock = str(tmp_path / "lock")
    first = start("--lock", lock)
    assert first.next()["event"] == "ready"
    second = start("--lock", lock)
    refused = second.next()
    assert (refused["code"], refused["fatal"]) == ("busy", True)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == first.process.pid
    assert f'"pid": {first.process.pid}' in refused["message"]
    assert second.process.wait(60) == 2
    first.kill()
    assert start("--lock", lock).next()["event"] == "ready"


def test_what_cannot_be_opened_is_reported(start: Callable[..., Talk], tmp_path: Path) -> None:
    talk = start(folder=tmp_path / "no such")
    refused = talk.next()
    assert (refused["event"], refused["code"], refused["fatal"]) == ("error", "artifact", True)
    assert talk.process.wait(60) == 2


def nonsense(chance: random.Random) -> bytes:
    """A line that a broken host, a broken wire or an attacker might send; never one that runs for long."""
    good: dict[str, Any] = {
        "do": chance.choice(["generate", "cancel", "generate_", "ping", "generate", "", None, 3]),
        "request": chance.choice([chance.randrange(100), -1, 2**53, 1.0, "1", None, [], True]),
        "ids": chance.choice([[1, 2], [], [2**70], "1", None, [[1]], [None], list(range(200))]),
        "max_new_tokens": chance.choice([1, 2, 0, -5, 1.5, "2", None]),
    }
    for key in chance.sample(["stop_ids", "temperature", "top_k", "top_p", "seed", "deadline_s", "session", "hold"], 3):
        good[key] = chance.choice([None, 0, 1, -1, 0.5, 1e300, 2**64, "a", "", "\0", [], [1], {}, True, "é" * 70])
    if chance.random() < 0.3:
        del good[chance.choice(list(good))]
    line = json.dumps(good, ensure_ascii=chance.random() < 0.5).encode()
    kind = chance.randrange(6)
    if kind == 0:
        line = line[: chance.randrange(len(line))]
    elif kind == 1:
        place = chance.randrange(len(line))
        line = line[:place] + chance.randbytes(chance.randrange(1, 9)) + line[place:]
    elif kind == 2:
        line = chance.randbytes(chance.randrange(0, 300))
    elif kind == 3:
        line = bytes(byte ^ (1 << chance.randrange(8)) if chance.random() < 0.02 else byte for byte in line)
    return line.replace(b"\n", b"")


def check_error(line: Mapping[str, Any]) -> None:
    assert line["code"] in CODES and line["fatal"] is False
    assert "\n" not in line["message"] and 0 < len(line["message"]) < 600


def test_no_line_crashes_it(start: Callable[..., Talk]) -> None:
    talk = start()
    assert talk.next()["event"] == "ready"
    chance, count = random.Random(5), 4000
    for batch in range(0, count, 100):
        for _ in range(100):
            talk.raw(nonsense(chance))
        # A mark behind each batch: its answer comes, and everything before it was a line of the protocol.
        mark = 10**6 + batch
        talk.send("ping", mark)
        for line in talk.until("pong", mark):
            if line["event"] == "error":
                check_error(line)
    number = 10**7
    while busy(talk, number):  # with the last good line of the nonsense
        number += 1
    assert talk.end() == 0


def busy(talk: Talk, number: int) -> bool:
    """Send a generate and read its answer: was it refused because another one runs?"""
    talk.send("generate", number, **FIELDS)
    lines: list[dict[str, Any]] = []
    while not lines or lines[-1]["request"] != number or lines[-1]["event"] not in ("done", "error"):
        lines.append(talk.next())
    if lines[-1]["event"] == "error":
        assert lines[-1]["code"] == "busy"
        return True
    assert [line["event"] for line in lines if line["request"] == number] == ["token"] * 4 + ["done"]
    return False
