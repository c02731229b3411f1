"""The native agent against the Python engine on the same library: equal tokens; and its errors.

The protocol itself: test_runtimes_protocol.py."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from devices.transports.local import LocalHost
from devices.transports.remote_tokens import RemoteTokens, open_remote
from export.artifact import Artifact, open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.android import AndroidSoftware
from runtimes.agent.scoring import ScoreRequest, open_rows, predict
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, Sampling, TokenRecord, TokenRequest, TokensDone, TokenSource
from runtimes.registry import open_tokens

pytestmark = pytest.mark.emulated
ROOT = Path(__file__).parents[1]


def refusal(command: list[str]) -> tuple[dict[str, Any], int]:
    """Its one line and its exit code, where it cannot start. Its input stays open: its end is the command to stop."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        (line,) = process.stdout.read().splitlines()
        return json.loads(line), process.wait(60)


@pytest.fixture(scope="module")
def artifact(tiny_onnx_short: Path) -> Artifact:
    return open_artifact(tiny_onnx_short)


@pytest.fixture(scope="module")
def command(android: AndroidSoftware, host_libraries: Path, artifact: Artifact) -> list[str]:
    return [str(android.folder / "agent"), str(artifact.folder), "--libraries", str(host_libraries), "--threads", "2"]


@pytest.fixture(scope="module")
def agent(command: list[str]) -> Iterator[RemoteTokens]:
    source = open_remote(LocalHost().start(command))
    yield source
    source.close()


@pytest.fixture(scope="module")
def here(artifact: Artifact) -> Iterator[TokenSource]:
    source = open_tokens(artifact, threads=2)
    yield source
    source.close()


def ids_of(records: Sequence[TokenRecord]) -> list[int]:
    return [record.id for record in records if isinstance(record, NewToken)]


def test_a_cache_that_keeps_a_window_is_resumed_where_it_can(
    android: AndroidSoftware, host_libraries: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """It keeps 128 tokens; genai does not rewind it any more once it is full."""
    checkpoint = random_checkpoint(sliding_window=16)
    request = ExportRequest(
        checkpoint=str(checkpoint), out=tmp_path / "out", format="onnx", scheme="fp32", context_tokens=700
    )
    artifact, prompt = export_model(request), list(range(5, 305))
    command = [str(android.folder / "agent"), str(artifact.folder), "--libraries", str(host_libraries)]
    sequences = (
        (prompt, 0),
        ([*prompt, 7], 300),
        ([*prompt[:290], 8], 0),
        (prompt[:200], 0),
        (prompt[:100], 0),
        ([*prompt[:90], 9], 90),
        ([*prompt[:90], *prompt], 90),
        ([*prompt[:90], *prompt, *prompt[:100]], 390),
    )
    with contextlib.closing(open_remote(LocalHost().start(command))) as agent:
        for ids, reused in sequences:
            *tokens, done = agent.stream(TokenRequest(ids=ids, max_new_tokens=1, session="s"))
            with contextlib.closing(open_tokens(artifact)) as here:
                *expected, _ = here.stream(TokenRequest(ids=ids, max_new_tokens=1))
            assert isinstance(done, TokensDone) and done.error is None and done.usage.reused == reused
            assert ids_of(tokens) == ids_of(expected) != []


def talk(command: list[str], lines: bytes, **options: Any) -> tuple[list[dict[str, Any]], int]:
    """All events that the agent writes for these lines, and its exit code."""
    done = subprocess.run(command, input=lines, capture_output=True, timeout=120, check=False, **options)
    assert done.stdout.endswith(b"\n") or not done.stdout
    assert b"runtime error" not in done.stderr and b"AddressSanitizer" not in done.stderr, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


def test_tokens_are_those_of_the_python_engine(agent: RemoteTokens, here: TokenSource, artifact: Artifact) -> None:
    generator = random.Random(0)
    for number in range(40):
        sampling = Sampling(
            temperature=generator.choice([0.0, 0.7, 1.5]),
            top_k=generator.choice([None, 1, 5, 60, 700]),
            top_p=generator.choice([None, 0.3, 0.9, 0.999]),
            min_p=generator.choice([None, 0.0, 0.02, 0.3, 1.0]),
            repetition_penalty=generator.choice([1.0, 1.0, 0.7, 1.3]),
            presence_penalty=generator.choice([0.0, 0.0, 1.1, -0.4]),
            frequency_penalty=generator.choice([0.0, 0.0, 0.3, -2.0]),
            seed=generator.getrandbits(64),
        )
        ids = [generator.randrange(3, 755) for _ in range(generator.randrange(1, 30))]
        request = TokenRequest(
            ids=ids,
            max_new_tokens=12,
            sampling=sampling,
            stop_ids=generator.choice([(), artifact.manifest.tokens.stop]),
            logprobs=generator.choice([None, 0, 1, 20]),
        )
        (*ours, done), (*theirs, done_there) = here.stream(request), agent.stream(request)
        assert isinstance(done, TokensDone) and isinstance(done_there, TokensDone)
        assert [each.id for each in theirs if isinstance(each, NewToken)] == [
            each.id for each in ours if isinstance(each, NewToken)
        ], (number, sampling)
        for one, other in zip(theirs, ours, strict=True):
            assert isinstance(one, NewToken) and isinstance(other, NewToken)
            assert one.logprob == pytest.approx(other.logprob, abs=2e-6)
            assert [id for id, _ in one.top] == [id for id, _ in other.top]
            assert [log for _, log in one.top] == pytest.approx([log for _, log in other.top], abs=2e-6)
        assert (done_there.finish, done_there.stop_id, done_there.usage) == (done.finish, done.stop_id, done.usage)


def test_a_session_gives_what_a_fresh_start_gives(agent: RemoteTokens, here: TokenSource) -> None:
    generator = random.Random(1)
    ids = [generator.randrange(3, 755) for _ in range(40)]
    for cut in (40, 39, 20, 1, 40):
        request = TokenRequest(ids=[*ids[:cut], 7, 8], max_new_tokens=6, session="s")
        (*ours, done), (*theirs, done_there) = here.stream(request), agent.stream(request)
        assert [each.id for each in theirs if isinstance(each, NewToken)] == [
            each.id for each in ours if isinstance(each, NewToken)
        ]
        assert isinstance(done, TokensDone) and isinstance(done_there, TokensDone) and done_there.usage == done.usage


def test_a_text_is_as_probable_as_in_the_python_engine(agent: RemoteTokens, here: TokenSource) -> None:
    generator = random.Random(3)
    ids = [generator.randrange(3, 755) for _ in range(60)]
    wanted = [[*generator.sample(range(755), 5), ids[min(n, 59)]] for n in range(20, 61)]
    request = ScoreRequest(ids, 20, wanted)
    assert isinstance(here, TokenLoop)
    for ours, theirs in zip(predict(open_rows(here, request), request), agent.predict(request), strict=True):
        assert theirs.top == ours.top
        assert theirs.log_probabilities == pytest.approx(ours.log_probabilities, abs=2e-6)


def test_its_first_lines(agent: RemoteTokens, artifact: Artifact) -> None:
    ready = agent.ready
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ready.agent == f"phi-edge {version} native"
    assert (ready.context_tokens, ready.vocab_size) == (256, artifact.manifest.model.vocab_size)
    assert ready.versions["onnxruntime"].count(".") == 2
    assert ready.load_s is not None and ready.open_s is not None and ready.load_mode == "mmap"


def test_no_line_crashes_it(android: AndroidSoftware, command: list[str]) -> None:
    """Mutations of good lines, random bytes and JSON, under the address and undefined behaviour sanitizers."""
    generator = random.Random(2)
    good = [
        {"do": "generate", "request": 1, "ids": [5, 6, 7], "max_new_tokens": 2, "stop_ids": [9], "session": "a"},
        {"do": "generate", "request": 2, "ids": [5], "max_new_tokens": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.5},
        {"do": "generate", "request": 4, "ids": [5], "max_new_tokens": 2, "temperature": 1, "min_p": 0.1},
        {"do": "generate", "request": 6, "ids": [5], "max_new_tokens": 2, "repetition_penalty": 2, "logprobs": 3},
        {"do": "score", "request": 7, "ids": [5, 6, 7], "first": 2, "wanted": [[1, 2], []]},
        {"do": "cancel", "request": 3},
        {"do": "ping", "request": 5},
    ]
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1.5,
        1e999,
        2**53,
        2**64,
        2**70,
        "",
        "x" * 300,
        "\0",
        "\ud83d",
        [],
        [[[[]]]],
        {},
        {"a": 1},
    ]
    lines = [
        b"",
        b"\0",
        b"{",
        b"[" * 5000,
        b"{" * 5000,
        b'"\\u12"',
        b'"\xff"',
        b"1" * 400,
        b"-",
        b"1.",
        b'{"a":1,"a":2}',
    ]
    for _ in range(1500):
        line = dict(generator.choice(good))
        for _ in range(generator.randrange(3)):
            line[generator.choice([*line, "ids", "hold", "seed", "deadline_s", "nobody"])] = generator.choice(odd)
        text = bytearray(json.dumps(line).encode())
        for _ in range(generator.choice([0, 0, 1, 4])):
            text[generator.randrange(len(text))] = generator.randrange(256)
        lines.append(bytes(text).replace(b"\n", b" "))
    lines.append(b'{"do": "ping", "request": 77}')
    sanitized = [str(android.folder / "agent-sanitized"), *command[1:]]
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    said, code = talk(sanitized, b"\n".join(lines) + b"\nhalf a line", env=environment)
    assert code == 0
    assert {"event": "pong", "request": 77} in [{k: each.get(k) for k in ("event", "request")} for each in said]
    codes = {each.get("code") for each in said if each["event"] == "error"}
    assert codes <= {"malformed", "request", "busy"} and not any(each.get("fatal") for each in said)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--libraries": "/nowhere"}, "engine", "libonnxruntime.so cannot be loaded"),
        ({"--threads": "0"}, "request", "--threads is not an integer from 1 to 1024; usage: agent ARTIFACT"),
        ({"--nobody": "1"}, "request", "--nobody is not an option"),
        ({"--lock": ""}, "engine", "the device's lock cannot be opened"),
        ({"artifact": "/nowhere"}, "artifact", "/nowhere/manifest.json cannot be read"),
    ],
)
def test_what_it_cannot_start_with(command: list[str], change: dict[str, str], code: str, message: str) -> None:
    words = [change.get("artifact", command[1]) if word == command[1] else word for word in command]
    for name, value in change.items():
        if name.startswith("--"):
            words += [name, value]
    said, exit_code = refusal(words)
    assert (said["event"], said["code"], said["fatal"], exit_code) == ("error", code, True, 2)
    assert message in said["message"]


def test_a_damaged_artifact_is_reported(command: list[str], artifact: Artifact, tmp_path: Path) -> None:
    for name in (*artifact.manifest.files, "manifest.json"):
        (tmp_path / name).write_bytes((artifact.folder / name).read_bytes())
    with (tmp_path / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    said, _ = refusal([command[0], str(tmp_path), *command[2:]])
    assert said["code"] == "artifact" and "another size" in said["message"]
    (tmp_path / "manifest.json").write_text("{")
    said, _ = refusal([command[0], str(tmp_path), *command[2:]])
    assert said["code"] == "artifact" and "is not JSON" in said["message"]
