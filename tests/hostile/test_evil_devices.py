"""Devices that lie, flood, fall silent or talk to the terminal: one line, exit 2, and soon."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from devices.drivers.provision import look_at_python
from devices.errors import DeviceError
from devices.transports.answer_check import score_problem
from devices.transports.child import ChildLines, run_child
from devices.transports.files import PosixFiles
from devices.transports.host import Finished
from devices.transports.local import LocalHost
from devices.transports.remote_tokens import open_remote
from devices.transports.timeouts import Timeouts
from fakes.evil_agent import evil_agent
from fakes.lab_file import lab_file
from phi_edge.main import main
from runtimes.agent.scoring import Prediction, ScoreRequest
from runtimes.engines.fake import fake_artifact
from runtimes.errors import TransportError
from runtimes.loop.tokens import NewToken, TokenRequest


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_artifact(tmp_path_factory.mktemp("evil") / "artifact").folder


def call(folder: Path, artifact: Path, *words: str, **manner: Any) -> Result:
    """`phi-edge WORDS` on a device whose agent has this manner."""
    lab = folder / "lab.toml"
    lab.write_text(lab_file("evil", {"transport": "local", "agent": evil_agent(**manner)}))
    verb, *rest = words
    return CliRunner().invoke(main, [verb, str(artifact), *rest, "--device", "evil", "--lab", str(lab)])


def run(folder: Path, artifact: Path, **manner: Any) -> Result:
    return call(folder, artifact, "run", "Once", "--raw", "--max-new-tokens", "3", **manner)


def error_of(result: Result) -> str:
    """The message of a refused call."""
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ({"done": {"memory": [1]}}, "which is no line of agent protocol 1"),
        ({"done": {"memory": {"peak_bytes": "lots"}}}, "peak_bytes: expected int"),
        ({"done": {"memory": {"peak_bytes": -1}}}, "-1 is no count"),
        ({"done": {"usage": []}}, "[] is no object"),
        ({"done": {"total_s": "0.5"}}, "'0.5' is no number of seconds"),
        ({"done": {"total_s": [1]}}, "[1] is no number of seconds"),
        ({"done": {"finish": "won"}}, "finish is 'won'"),
        ({"done": {"stop_id": 7}}, "stopped at token 7, which is no stop token"),
        ({"done": {"error": 5}}, "5 is no text"),
        ({"token": {"id": 10**9}}, "token 1000000000 is not in the model's vocabulary of 262"),
        ({"token": {"id": -1}}, "-1 is no count"),
        ({"token": {"id": -5000}}, "-5000 is no count"),
        ({"token": {"id": 1.5}}, "1.5 is no count"),
        ({"token": {"at_s": -1}}, "-1 is no number of seconds"),
        ({"token": {"at_s": float("nan")}}, "which is no line of agent protocol 1"),
        ({"token": {"top": [[1, -0.5]]}}, "reports 1 likeliest tokens"),
        ({"does": "endless"}, "it generates more than the 3 tokens that it was asked for"),
        ({"does": "neverending"}, "a line of more than 4194304 bytes"),
        ({"does": "backwards"}, "its clock runs backwards"),
        ({"does": "other"}, "the agent answers request 2, and 1 was asked"),
        ({"ready": {"context_tokens": "4096"}}, "context_tokens: expected int, saw '4096'"),
        ({"ready": {"capabilities": None}}, "capabilities: expected"),
        ({"ready": {"artifact": 5}}, "artifact: expected str, saw 5"),
        ({"ready": {"vocab_size": 32064}}, "a vocabulary of 32064; the artifact has 512 and 262"),
        ({"ready": {"load_s": -1}}, "-1.0 is no number of seconds"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_lie_is_one_line(artifact: Path, tmp_path: Path, manner: dict[str, Any], said: str) -> None:
    message = error_of(run(tmp_path, artifact, **manner))
    assert said in message
    assert len(message) < 1000


@pytest.mark.parametrize("does", ["backwards", "endless", "other"])
def test_bench_keeps_nothing_of_it(artifact: Path, tmp_path: Path, does: str) -> None:
    out = tmp_path / "m.json"
    words = ["--prompt-tokens", "4", "--generate-tokens", "4", "--reps", "1", "--warmup", "0", "--out", str(out)]
    error_of(call(tmp_path, artifact, "bench", *words, does=does))
    assert not out.exists()


@pytest.mark.parametrize(
    ("logprob", "said"),
    [
        (-1e30, "its perplexity is beyond every float"),
        (-2000, "the probability e^-2000: its perplexity"),
        (0.5, "0.5 is no log-probability"),
        (None, "None is no log-probability"),
        ("-1", "'-1' is no log-probability"),
    ],
)
def test_a_score_that_cannot_be(artifact: Path, tmp_path: Path, logprob: Any, said: str) -> None:
    result = call(tmp_path, artifact, "score", "--tokens", "64", "--json", str(tmp_path / "s.json"), logprob=logprob)
    assert said in error_of(result)
    assert not (tmp_path / "s.json").exists()


def test_probabilities_that_are_more_than_one_together() -> None:
    request = ScoreRequest(ids=[1, 2], first=2, wanted=[[3, 4, 3]])
    half = math.log(0.5)
    assert score_problem([Prediction([half, half, half], 3)], request, 10) is None
    assert (
        score_problem([Prediction([half, -0.1, half], 3)], request, 10)
        == "its probabilities of 3 tokens are 1.40 together"
    )


EVIL = "\x1b[2J\x1b[31mPWN\x07\x1b]0;title\x07\u202e\nError: forged"


@pytest.mark.parametrize(
    "manner",
    [
        {"does": "error", "says": EVIL},
        {"done": {"finish": "error", "error": EVIL}},
        {"ready": {"protocol": EVIL}},
        {"ready": {"artifact": EVIL}},
    ],
)
def test_nothing_of_a_device_is_obeyed_by_the_terminal(artifact: Path, tmp_path: Path, manner: dict[str, Any]) -> None:
    result = run(tmp_path, artifact, **manner)
    error_of(result)
    assert not {char for char in result.output + result.stderr if not char.isprintable()} - {"\n"}


def test_a_message_of_megabytes_is_cut(artifact: Path, tmp_path: Path) -> None:
    assert 1000 < len(error_of(run(tmp_path, artifact, does="error", says="m", times=3_000_000))) < 5000


def test_a_log_without_an_end_is_read_and_forgotten(artifact: Path, tmp_path: Path) -> None:
    assert run(tmp_path, artifact, does="log").exit_code == 0


@pytest.fixture
def soon() -> Timeouts:
    return Timeouts(load_s=20, end_s=0.5, silence_s=0.7, ping_s=0.1)


@pytest.mark.parametrize(("deadline_s", "does"), [(None, "silent"), (0.1, "silent")])
def test_a_done_that_never_comes(artifact: Path, soon: Timeouts, deadline_s: float | None, does: str) -> None:
    source = open_remote(ChildLines([*evil_agent(does=does), str(artifact)]), timeouts=soon)
    request = TokenRequest(ids=[1, 2], max_new_tokens=3, deadline_s=deadline_s)
    with pytest.raises(TransportError, match="without a result"):
        list(source.stream(request))
    source.close()


def test_a_cancelled_answer_without_an_end_is_given_up(artifact: Path, soon: Timeouts) -> None:
    source = open_remote(ChildLines([*evil_agent(does="endless"), str(artifact)]), timeouts=soon)
    records = source.stream(TokenRequest(ids=[1, 2], max_new_tokens=400))
    assert all(isinstance(record, NewToken) for record in itertools.islice(records, 3))
    with pytest.raises(TransportError, match="it generates more than the 400 tokens"):
        records.close()
    source.close()


def test_a_reader_that_fails_is_reported(soon: Timeouts) -> None:
    class Broken(ChildLines):
        def lines(self) -> Iterator[bytes]:
            raise ZeroDivisionError("a bug")

    process = Broken([sys.executable, "-c", "import sys; sys.stdin.read()"])
    with pytest.raises(TransportError, match="reading the agent failed: ZeroDivisionError: a bug"):
        open_remote(process, timeouts=soon)
    list(ChildLines.lines(process))  # to close the pipe


def test_output_without_an_end_is_cut_off() -> None:
    with pytest.raises(TransportError, match="printed more than 67108864 bytes and was killed"):
        run_child(["sh", "-c", "while :; do head -c 4000000 /dev/zero; done"], deadline_s=60)


class NoisyHost(LocalHost):
    """A machine whose shell greets before every command."""

    def run(self, command: Any, *, deadline_s: float, stdin: bytes = b"") -> Finished:
        done = super().run(command, deadline_s=deadline_s, stdin=stdin)
        return Finished(
            command=done.command, exit_code=done.exit_code, stdout=GREETING + done.stdout, stderr=done.stderr
        )


GREETING = b"Welcome to pi5! \xff\xfe\n"


def test_a_shell_that_prints_something(tmp_path: Path) -> None:
    host = NoisyHost()
    files = PosixFiles(host)
    for ask in (
        lambda: files.make_folder(str(tmp_path)),
        lambda: files.exist(str(tmp_path), ["a"]),
        lambda: files.sha256(__file__, deadline_s=20),
        lambda: host.run(["echo", "5"], deadline_s=20).number("looking at a file"),
        lambda: host.run(["echo", "{}"], deadline_s=20).facts(Timeouts, "looking at it"),
    ):
        with pytest.raises(TransportError, match=r"(?s)answered b.Welcome to pi5.*make it silent for commands"):
            ask()
    with pytest.raises(DeviceError, match=r"answered b.Welcome to pi5.*make it silent"):
        look_at_python(host, sys.executable)


@pytest.mark.parametrize("answer", ["-5", "1e3", "\u0665", "9" * 30, ""])
def test_a_number_is_digits(answer: str) -> None:
    with pytest.raises(TransportError, match="not a number"):
        Finished(command=["stat"], exit_code=0, stdout=answer.encode(), stderr=b"").number("looking at it")


def test_a_program_that_prints_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ssh", "adb"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert f"{tmp_path}/ssh, which prints no version" in CliRunner().invoke(main, ["doctor"]).stdout
