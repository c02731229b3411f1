"""Long rope's switch through every runtime: a sequence that crosses it is prefilled again, and gives the same tokens.

tests/test_export_longrope.py compares the engines in this process with transformers; here the other runtimes are
compared with those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from devices.transports.llama_main import open_llama_main
from devices.transports.local import LocalHost
from devices.transports.remote_tokens import open_remote
from export.artifact import Artifact
from fakes.android import AndroidSoftware, ExecutorchAgent
from runtimes.engines.genai_engine import open_genai
from runtimes.errors import UnsupportedError
from runtimes.loop.tokens import NewToken, Sampling, TokenRequest, TokensDone, TokenSource
from runtimes.registry import open_tokens
from runtimes.text.tokenizer import Tokenizer

SWITCH = 64
IDS = np.random.default_rng(0).integers(3, 500, 128).tolist()
GREEDY, DRAWN = Sampling(), Sampling(temperature=1.5, seed=7)
# name -> the format of its artifact, and whether several ids may follow a cached prefix
RUNTIMES = {"onnx agent": ("onnx", True), "executorch agent": ("executorch", True), "genai": ("onnx", False)}


NATIVE = [pytest.param(name, marks=pytest.mark.emulated) for name in ("native agent", "native executorch agent")]


@pytest.fixture(scope="module", params=[*RUNTIMES, *NATIVE])
def subject(
    request: pytest.FixtureRequest, longrope: Callable[[str], Artifact]
) -> Iterator[tuple[TokenSource, TokenSource, bool]]:
    """A runtime, the engine of its format in this process, and whether it reuses a prefix."""
    native = "executorch" if request.param == "native executorch agent" else "onnx"
    format, reuses = RUNTIMES.get(request.param, (native, True))
    artifact = longrope(format)
    source: TokenSource
    if request.param == "genai":
        source = open_tokens(artifact, threads=1, engine=open_genai)
    elif request.param == "native agent":
        android: AndroidSoftware = request.getfixturevalue("android")
        libraries = request.getfixturevalue("host_libraries")
        command = [str(android.folder / "agent"), str(artifact.folder), "--libraries", str(libraries)]
        source = open_remote(LocalHost().start([*command, "--threads", "1"]))
    elif request.param == "native executorch agent":
        agent: ExecutorchAgent = request.getfixturevalue("executorch_agent")
        libraries = request.getfixturevalue("tmp_path_factory").mktemp("kernels")
        source = open_remote(LocalHost().start(agent.command(artifact.folder, libraries)))
    else:
        command = [sys.executable, "-m", "runtimes.agent", str(artifact.folder), "--threads", "1"]
        source = open_remote(LocalHost().start(command))
    here = open_tokens(artifact, threads=1)
    yield source, here, reuses
    source.close()
    here.close()


def answer(
    source: TokenSource, ids: Sequence[int], sampling: Sampling = GREEDY, count: int = 24, session: str | None = None
) -> tuple[list[int], TokensDone]:
    request = TokenRequest(ids=ids, max_new_tokens=count, sampling=sampling, session=session)
    *tokens, done = source.stream(request)
    assert isinstance(done, TokensDone) and done.error is None
    return [token.id for token in tokens if isinstance(token, NewToken)], done


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("prompt", [SWITCH - 8, SWITCH, SWITCH + 1, SWITCH + 20])
def test_a_generation_that_crosses_the_switch(
    subject: tuple[TokenSource, TokenSource, bool], prompt: int, sampling: Sampling
) -> None:
    source, here, _ = subject
    tokens, done = answer(source, IDS[:prompt], sampling)
    assert tokens == answer(here, IDS[:prompt], sampling)[0]
    assert (len(tokens), done.finish, done.usage.prefilled) == (24, "length", prompt)


def test_a_session_that_crosses_the_switch(subject: tuple[TokenSource, TokenSource, bool]) -> None:
    """A prefix computed with the short factors is of no use to a longer sequence; one with the long factors is."""
    source, here, reuses = subject
    for length, reused in ((SWITCH - 4, 0), (SWITCH + 9, 0), (SWITCH + 30, SWITCH + 9), (SWITCH - 20, 0)):
        tokens, done = answer(source, IDS[:length], count=2, session="a")
        assert tokens == answer(here, IDS[:length], count=2)[0]
        assert done.usage.reused == (reused if reuses else 0)


def test_a_long_sequence_that_shares_a_short_prefix(subject: tuple[TokenSource, TokenSource, bool]) -> None:
    source, here, reuses = subject
    answer(source, IDS[: SWITCH + 9], count=2, session="b")
    other = [*IDS[:10], *IDS[50:120]]
    tokens, done = answer(source, other, session="b")
    assert tokens == answer(here, other)[0]
    assert done.usage.reused == (10 if reuses else 0)


def test_the_stock_runner_ends_at_the_switch(longrope: Callable[[str], Artifact], llama_main: Path) -> None:
    """It can neither say that a prompt is long nor prefill again."""
    artifact = longrope("executorch")
    source = open_llama_main(LocalHost(), [str(llama_main)], artifact, str(artifact.folder), 1, 60.0)
    here = open_tokens(artifact, threads=1)
    ids = Tokenizer(artifact.folder).encode_prompt("the lamp is on " * 30)[: SWITCH - 3]
    request = TokenRequest(ids=ids, max_new_tokens=24, stop_ids=artifact.manifest.tokens.stop)
    *tokens, done = source.stream(request)
    assert isinstance(done, TokensDone) and (done.finish, done.error) == ("length", None)
    assert [token.id for token in tokens if isinstance(token, NewToken)] == answer(here, ids, count=3)[0]
    with pytest.raises(UnsupportedError, match=f"has {SWITCH} tokens; llama_main ends at {SWITCH}, where long rope"):
        source.stream(TokenRequest(ids=IDS[:SWITCH], max_new_tokens=1))
