"""The agent protocol (docs/agent-protocol.md) held against the Python agent, also with lines that nobody meant."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from runtimes.agent.wire import MAX_LINE_BYTES
from runtimes.engines.fake import fake_artifact

SLOW_S = 0.02
FIELDS = {"ids": [1, 2, 3], "max_new_tokens": 4}
EVENTS = {"ready", "token", "done", "error", "forgotten", "sample", "pong"}
CODES = {"malformed", "request", "unsupported", "busy", "artifact", "engine", "internal"}


class Talk:
    """An agent's process, line by line, without the host's side of the protocol."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtimes.agent", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, do: str, request: int, **fields: Any) -> None:
        self.raw(json.dumps({"do": do, "request": request, **fields}).encode())

    def raw(self, line: bytes) -> None:
        self.stdin.write(line + b"\n")
        self.stdin.flush()

    def next(self) -> dict[str, Any]:
        line = self.stdout.readline()
        assert line.endswith(b"\n"), "the agent ended"
        message = json.loads(line)
        assert message["event"] in EVENTS
        return dict(message)

    def answer(self, request: int) -> list[dict[str, Any]]:
        """The lines of one generate, to its end."""
        lines = []
        while True:
            lines.append(self.next())
            assert lines[-1]["request"] == request
            if lines[-1]["event"] in ("done", "error"):
                return lines

    def end(self) -> int:
        self.stdin.close()
        code = self.process.wait(60)
        self.stdout.close()
        return code


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake_artifact(tmp_path_factory.mktemp("agent") / "artifact").folder)


@pytest.fixture
def start(artifact: str) -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def begin(*options: str, forward_s: float = 0.0, folder: str = artifact, fake: bool = True) -> Talk:
        engine = ["--fake-forward-s", str(forward_s)] if fake else []
        talks.append(Talk(folder, *engine, *options))
        return talks[-1]

    yield begin
    for talk in talks:
        talk.process.kill()
        talk.process.wait()
        talk.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            talk.stdin.close()


@pytest.fixture
def talk(start: Callable[..., Talk]) -> Talk:
    """A ready agent."""
    begun = start()
    assert begun.next()["event"] == "ready"
    return begun


def test_the_ready_line_says_what_a_host_must_know(start: Callable[..., Talk], artifact: str) -> None:
    from export.artifact import open_artifact

    ready = start("--threads", "1").next()
    manifest = open_artifact(Path(artifact)).manifest
    assert ready["protocol"] == 1
    assert ready["artifact"] == manifest.digest()
    assert (ready["context_tokens"], ready["vocab_size"]) == (manifest.context_tokens, manifest.model.vocab_size)
    assert ready["threads"] == 1
    assert ready["max_line_bytes"] >= 4 << 20
    assert 0 < ready["open_s"] < ready["load_s"] < 60
    assert ready["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert "python" in ready["versions"]


def test_an_answer_is_tokens_and_done(talk: Talk) -> None:
    talk.send("generate", 7, **FIELDS)
    *tokens, done = talk.answer(7)
    assert [token["event"] for token in tokens] == ["token"] * 4
    times = [token["at_s"] for token in tokens]
    assert times == sorted(times) and times[-1] <= done["total_s"]
    assert done["finish"] == "length" and done["error"] is None
    assert done["usage"] == {"prompt": 3, "reused": 0, "prefilled": 3, "completion": 4}
    assert done["memory"]["peak_bytes"] > 1_000_000
    assert talk.end() == 0


def test_held_tokens_are_the_same(talk: Talk) -> None:
    talk.send("generate", 1, **FIELDS)
    plain = talk.answer(1)
    talk.send("generate", 2, **FIELDS, hold=True)
    assert [line.get("id") for line in talk.answer(2)] == [line.get("id") for line in plain]


def test_a_stop_id_is_told_and_is_no_token(talk: Talk) -> None:
    talk.send("generate", 1, **FIELDS)
    stop = talk.answer(1)[2]["id"]
    talk.send("generate", 2, **FIELDS, stop_ids=[stop])
    *tokens, done = talk.answer(2)
    assert (len(tokens), done["finish"], done["stop_id"]) == (2, "stop", stop)


def test_cancel_in_the_middle_takes_one_token_at_most(start: Callable[..., Talk]) -> None:
    talk = start(forward_s=SLOW_S)
    talk.next()
    talk.send("generate", 1, ids=[1], max_new_tokens=500)
    assert [talk.next()["event"] for _ in range(3)] == ["token"] * 3
    talk.send("cancel", 1)
    talk.send("ping", 2)  # its answer shows that the agent has read the cancel
    lines: list[dict[str, Any]] = []
    while not {"pong", "done"} <= {line["event"] for line in lines}:
        lines.append(talk.next())
    events = [line["event"] for line in lines]
    assert events[events.index("pong") :].count("token") <= 1
    (done,) = (line for line in lines if line["event"] == "done")
    assert done["finish"] == "cancelled" and done["usage"]["completion"] < 500
    talk.send("generate", 2, **FIELDS)
    assert len(talk.answer(2)) == 5


def test_a_cancel_right_behind_its_generate_counts(start: Callable[..., Talk]) -> None:
    talk = start(forward_s=SLOW_S)
    talk.next()
    for number in range(1, 40):
        order = json.dumps({"do": "generate", "request": number, "ids": [1], "max_new_tokens": 400})
        talk.raw(order.encode() + b"\n" + json.dumps({"do": "cancel", "request": number}).encode())
        *tokens, done = talk.answer(number)
        assert done["finish"] == "cancelled" and len(tokens) <= 2


def test_a_late_or_foreign_cancel_does_nothing(talk: Talk) -> None:
    talk.send("cancel", 1)
    talk.send("generate", 2, **FIELDS)
    talk.send("cancel", 1)
    assert talk.answer(2)[-1]["finish"] == "length"
    talk.send("cancel", 2)
    talk.send("generate", 3, **FIELDS)
    assert talk.answer(3)[-1]["finish"] == "length"


def test_a_second_generate_is_busy_and_the_first_goes_on(start: Callable[..., Talk]) -> None:
    talk = start(forward_s=SLOW_S)
    talk.next()
    talk.send("generate", 1, ids=[1], max_new_tokens=20)
    talk.next()
    talk.send("generate", 2, **FIELDS)
    talk.send("forget", 3)
    lines = [talk.next() for _ in range(22)]
    busy = [line for line in lines if line["event"] == "error"]
    assert [(line["request"], line["code"]) for line in busy] == [(2, "busy"), (3, "busy")]
    assert "request 1 is running" in busy[0]["message"]
    while lines[-1]["event"] != "done":
        lines.append(talk.next())
    assert lines[-1]["usage"]["completion"] == 20


def test_sessions_and_forget(talk: Talk) -> None:
    for number, (reused, session) in enumerate([(0, "a"), (2, "a"), (0, "b"), (0, None)], start=1):
        talk.send("generate", number, **FIELDS, session=session)
        assert talk.answer(number)[-1]["usage"]["reused"] == reused
    talk.send("generate", 10, **FIELDS, session="a")
    talk.answer(10)
    talk.send("forget", 11)
    assert talk.next() == {"event": "forgotten", "request": 11}
    talk.send("generate", 12, **FIELDS, session="a")
    assert talk.answer(12)[-1]["usage"]["reused"] == 0


def test_pings_and_samples_are_answered_in_the_middle(start: Callable[..., Talk]) -> None:
    talk = start(forward_s=SLOW_S)
    talk.next()
    talk.send("generate", 1, ids=[1], max_new_tokens=100)
    talk.send("ping", 2)
    talk.send("sample", 3)
    lines: list[dict[str, Any]] = []
    while not {"pong", "sample"} <= {line["event"] for line in lines}:
        lines.append(talk.next())
    assert "done" not in {line["event"] for line in lines}
    sample = next(line for line in lines if line["event"] == "sample")
    assert sample["request"] == 3 and sample["memory"]["resident_bytes"] > 1_000_000
    assert sample["conditions"]["system"].startswith("Linux")


def test_a_deadline_ends_the_answer(start: Callable[..., Talk]) -> None:
    talk = start(forward_s=SLOW_S)
    talk.next()
    talk.send("generate", 1, ids=[1], max_new_tokens=400, deadline_s=0.2)
    *tokens, done = talk.answer(1)
    assert done["finish"] == "deadline" and 1 <= len(tokens) <= 12


def test_a_generate_sent_while_loading_waits_for_ready(start: Callable[..., Talk]) -> None:
    talk = start()
    talk.send("generate", 1, **FIELDS)
    assert talk.next()["event"] == "ready"
    assert len(talk.answer(1)) == 5


@pytest.mark.parametrize(
    ("line", "code", "request_", "said"),
    [
        (b"", "malformed", None, "not a line of JSON"),
        (b"hello", "malformed", None, "not a line of JSON"),
        (b"\xff\xfe{}", "malformed", None, "not a line of JSON"),
        (b"[1]", "malformed", None, "one JSON object"),
        (b"{}", "malformed", None, "request is None"),
        (b'{"request": 1.5, "do": "ping"}', "malformed", None, "request is 1.5"),
        (b'{"request": true, "do": "ping"}', "malformed", None, "request is True"),
        (b'{"request": 1}', "malformed", 1, "do is None; known: generate"),
        (b'{"request": 1, "do": ["ping"]}', "malformed", 1, "do is ['ping']"),
        (b'{"request": 1, "do": "ping", "x": 2}', "request", 1, "unknown key 'x' in ping"),
        (b'{"request": 1, "do": "generate"}', "request", 1, "ids is None; give a list"),
        (b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 1, "n": 2}', "request", 1, "unknown key 'n'"),
        (b'{"request": 1, "do": "generate", "ids": [1.0], "max_new_tokens": 1}', "request", 1, "ids is [1.0]"),
        (b'{"request": 1, "do": "generate", "ids": [999], "max_new_tokens": 1}', "request", 1, "token id 999"),
        (b'{"request": 1, "do": "generate", "ids": [], "max_new_tokens": 1}', "request", 1, "no tokens"),
        (b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 0}', "request", 1, "max_new_tokens is 0"),
        (b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 1, "seed": -1}', "request", 1, "seed is -1"),
        (
            b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 1, "session": "a b"}',
            "request",
            1,
            "session",
        ),
        (b'{"request": 1, "do": "generate", "ids": [1], "max_new_tokens": 1, "top_p": NaN}', "malformed", None, "JSON"),
        (b"[" * 100_000, "malformed", None, "not a line of JSON"),
        (b'{"request": ' + b"9" * 5000 + b', "do": "ping"}', "malformed", None, "JSON"),
        (b"x" * (MAX_LINE_BYTES + 10), "malformed", None, "longer than"),
        (b" " * (3 * MAX_LINE_BYTES), "malformed", None, "longer than"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_line_is_answered_and_the_agent_lives_on(
    talk: Talk, line: bytes, code: str, request_: int | None, said: str
) -> None:
    talk.raw(line)
    error = talk.next()
    assert (error["event"], error["code"], error["request"], error["fatal"]) == ("error", code, request_, False)
    assert said in error["message"] and "\n" not in error["message"]
    talk.send("generate", 2, **FIELDS)
    assert len(talk.answer(2)) == 5


def test_half_a_line_at_the_end_is_dropped(talk: Talk) -> None:
    talk.stdin.write(b'{"do": "generate", "request": 1, "ids": [1], "max_new')
    talk.stdin.close()
    assert talk.stdout.read() == b""
    assert talk.process.wait(60) == 0


def test_the_end_of_stdin_ends_a_generation(start: Callable[..., Talk]) -> None:
    talk = start(forward_s=0.5)  # the whole answer would take longer than `end` waits
    talk.next()
    talk.send("generate", 1, ids=[1], max_new_tokens=500)
    talk.next()
    assert talk.end() == 0


def test_silence_ends_the_agent(start: Callable[..., Talk]) -> None:
    talk = start("--silence-s", "4")
    talk.next()
    for number in range(5):
        time.sleep(1)
        talk.send("ping", number)
        assert talk.next()["event"] == "pong"
    assert talk.process.wait(60) == 3


def test_one_agent_at_a_time_holds_a_lock(start: Callable[..., Talk], tmp_path: Path) -> None:
    lock = str(tmp_path / "new folder" / "lock")
    first = start("--lock", lock)
    assert first.next()["event"] == "ready"
    second = start("--lock", lock)
    refused = second.next()
    assert (refused["code"], refused["fatal"]) == ("busy", True)
    assert f'"pid": {first.process.pid}' in refused["message"]
    assert second.process.wait(20) == 2
    first.process.kill()
    first.process.wait()
    assert start("--lock", lock).next()["event"] == "ready"


def test_what_cannot_be_opened_is_told(start: Callable[..., Talk], tmp_path: Path) -> None:
    talk = start(folder=str(tmp_path / "no such"))
    refused = talk.next()
    assert (refused["event"], refused["code"], refused["fatal"]) == ("error", "artifact", True)
    assert talk.process.wait(60) == 2


def test_a_sample_needs_no_artifact() -> None:
    command = [sys.executable, "-m", "runtimes.agent", "--sample"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    sample = json.loads(done.stdout)
    assert sample["event"] == "sample" and sample["memory"] is None
    assert sample["conditions"]["memory_total_bytes"] > 0


def nonsense(chance: random.Random) -> bytes:
    """A line that a broken host, a broken wire or an attacker might send; never one that runs for long."""
    good: dict[str, Any] = {
        "do": chance.choice(["generate", "cancel", "forget", "sample_", "ping", "generate", "", None, 3]),
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
    assert line["code"] in CODES - {"internal"} and line["fatal"] is False
    assert "\n" not in line["message"] and 0 < len(line["message"]) < 600


def test_no_line_crashes_it(talk: Talk) -> None:
    chance, count = random.Random(5), 4000
    for batch in range(0, count, 100):
        for _ in range(100):
            talk.raw(nonsense(chance))
        # A mark behind each batch: its answer comes, and everything before it was a line of the protocol.
        mark = 10**6 + batch
        talk.send("ping", mark)
        while (line := talk.next()) != {"event": "pong", "request": mark, "uptime_s": line.get("uptime_s")}:
            if line["event"] == "error":
                check_error(line)
    time.sleep(0.2)
    talk.send("ping", 1)
    while talk.next()["event"] != "pong":
        pass
    talk.send("generate", 2, **FIELDS)
    lines: list[dict[str, Any]] = []
    while not lines or lines[-1]["event"] != "done" or lines[-1]["request"] != 2:
        lines.append(talk.next())
    assert sum(line["event"] == "token" for line in lines[-5:]) == 4
    assert talk.end() == 0
