"""The boundaries at which lines and bodies are read: a device's agent, a host before an agent, a client of the server.

Each gives what is wrong with the outcome; None: nothing. An exception that is not ours is raised.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from hostile.devices import sound_lines
from starlette.testclient import TestClient

from devices.transports.remote_tokens import open_remote
from export.artifact import Artifact
from phi_edge.serve.app import Settings, build_app
from runtimes.agent.scoring import ScoreRequest, open_rows, predict
from runtimes.agent.wire import LineError, decode_command, encode_generate, encode_score
from runtimes.engines.fake import fake_artifact, fake_opener
from runtimes.errors import RuntimesError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import Sampling, TokenRequest
from runtimes.registry import open_runtime, open_tokens

PROMPT = [1, 2, 3, 4, 5]  # what sound_lines answers
SAMPLING = Sampling(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1, seed=7)
MODEL = "m"
BODIES = (
    b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stop": ["x"], "seed": 1}',
    b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": true, "logprobs": true}',
    b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_object"}}',
    b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function", "function": '
    b'{"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "required"}',
    b'{"model": "m", "prompt": "Hello", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "stream": true}',
    b'{"model": "m", "input": "Hello", "instructions": "Be brief.", "max_output_tokens": 3}',
)


class Said:
    """A LineProcess that has said all its lines, and has ended."""

    def __init__(self, data: bytes) -> None:
        self._lines = data.split(b"\n")[:-1]

    def write_line(self, line: bytes) -> None:
        """Nobody reads it."""

    def lines(self) -> Iterator[bytes]:
        """See LineProcess.lines."""
        return iter(self._lines)

    def close_stdin(self) -> None:
        """It has ended."""

    def wait(self, deadline_s: float) -> int | None:
        """It has ended."""
        return 0

    def last_lines(self) -> Sequence[str]:
        """It wrote no log."""
        return ()

    def close(self) -> None:
        """It has ended."""


def said_seeds() -> Sequence[bytes]:
    """What a sound agent says."""
    return [sound_lines()]


def try_said(data: bytes, folder: Path) -> str | None:
    """All that an agent says, from its first line to its end, read by the host for two requests."""
    faults: list[str] = []
    threading.excepthook = lambda died: faults.append(f"a thread died of {died.exc_type.__name__}: {died.exc_value}")
    try:
        source = open_remote(Said(data), manifest=_artifact().manifest)
        list(source.stream(TokenRequest(ids=PROMPT, max_new_tokens=3, session="s", logprobs=2)))
        source.predict(ScoreRequest(ids=PROMPT, first=4, wanted=[[5], [6, 7]]))
        source.close()
    except RuntimesError:
        pass
    return faults[0] if faults else None


def command_seeds() -> Sequence[bytes]:
    """Lines to an agent that it serves."""
    request = TokenRequest(
        ids=PROMPT, max_new_tokens=3, sampling=SAMPLING, stop_ids=[261], session="s", logprobs=2, deadline_s=1.0
    )
    score = encode_score(3, ScoreRequest(ids=PROMPT, first=4, wanted=[[5], [6, 7]]))
    return [encode_generate(1, request, hold=True), score, b'{"do": "cancel", "request": 3}']


def try_command(data: bytes, folder: Path) -> str | None:
    """A line to the Python agent, up to the last token of its answer."""
    try:
        request = decode_command(data).request
        if isinstance(request, ScoreRequest):
            predict(open_rows(_loop(), request), request)
        elif request is not None:
            list(_loop().stream(request))
    except (LineError, RuntimesError):
        pass
    return None


def try_body(data: bytes, folder: Path) -> str | None:
    """A client's body, at each address that takes one."""
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        answer = _client().post(path, content=data, headers={"content-type": "application/json"})
        if answer.status_code >= 500:
            return f"{path}: status {answer.status_code}: {answer.text[:300]}"
    return None


@functools.cache
def _artifact() -> Artifact:
    return fake_artifact(Path(tempfile.mkdtemp(prefix="phi-edge-fuzz-")) / "a")


@functools.cache
def _loop() -> TokenLoop:
    return open_tokens(_artifact(), engine=fake_opener("Well."))


@functools.cache
def _client() -> TestClient:
    runtime = open_runtime(_artifact(), engine=fake_opener("Well."))
    client = TestClient(build_app(runtime, Settings(MODEL, hosts=None)))
    client.__enter__()  # its thread serves until the process ends
    return client
