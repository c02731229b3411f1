"""The native agent over ExecuTorch's C++ runtime: the tokens, sessions and scores of the Python engine, and a phone's
bench over it. Its protocol is the other native agent's (test_runtimes_protocol.py): only the engine differs."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.drivers.adb import AdbDevice, AdbDriver
from devices.errors import DeviceError
from devices.measure.bench import Plan, measure
from devices.measure.measurement import DeviceFacts
from devices.measure.validity import problems
from devices.transports.adb.devices import Client
from devices.transports.local import LocalHost
from devices.transports.remote_tokens import RemoteTokens, open_remote
from export.artifact import Artifact, open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.adbd import FakeAdbd
from fakes.android import ExecutorchAgent
from fakes.talk import Talk
from runtimes.agent.scoring import ScoreRequest, open_rows, predict
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, Sampling, TokenRequest, TokensDone, TokenSource
from runtimes.registry import open_tokens

pytestmark = pytest.mark.emulated
WINDOW, CONTEXT = 16, 300


@pytest.fixture(scope="module")
def artifact(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """With a sliding window, so that its cache is a ring."""
    checkpoint = random_checkpoint(sliding_window=WINDOW)
    out = tmp_path_factory.mktemp("native") / "out"
    return export_model(
        ExportRequest(checkpoint=str(checkpoint), out=out, format="executorch", scheme="fp32", context_tokens=CONTEXT)
    )


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def command(executorch_agent: ExecutorchAgent, artifact: Artifact, libraries: Path) -> list[str]:
    return executorch_agent.command(artifact.folder, libraries)


@pytest.fixture(scope="module")
def agent(command: list[str]) -> Iterator[RemoteTokens]:
    source = open_remote(LocalHost().start(command))
    yield source
    source.close()


@pytest.fixture(scope="module")
def here(artifact: Artifact) -> Iterator[TokenSource]:
    source = open_tokens(artifact, threads=1)
    yield source
    source.close()


def answer(source: TokenSource, request: TokenRequest) -> tuple[list[int], TokensDone]:
    *tokens, done = source.stream(request)
    assert isinstance(done, TokensDone) and done.error is None
    return [token.id for token in tokens if isinstance(token, NewToken)], done


def test_it_says_what_it_runs(agent: RemoteTokens) -> None:
    assert agent.ready.format == "executorch" and agent.ready.agent.endswith("native")
    assert agent.ready.load_mode == "mmap"


def test_tokens_are_those_of_the_python_engine(agent: RemoteTokens, here: TokenSource) -> None:
    generator = random.Random(0)
    for number in range(12):
        ids = [generator.randrange(3, 500) for _ in range(generator.choice([1, 5, 40, 200]))]
        sampling = Sampling(temperature=generator.choice([0.0, 1.2]), top_p=0.9, seed=number)
        request = TokenRequest(ids=ids, max_new_tokens=30, sampling=sampling)
        assert answer(agent, request)[0] == answer(here, request)[0]


def test_a_session_goes_back_as_far_as_its_ring_allows(agent: RemoteTokens, here: TokenSource) -> None:
    """Further back it is prefilled again."""
    generator = random.Random(1)
    ids = [generator.randrange(3, 500) for _ in range(200)]
    for cut in (200, 199, 180, 60, 20, 200):
        request = TokenRequest(ids=[*ids[:cut], 7, 8], max_new_tokens=6, session="s")
        (ours, done), (theirs, done_there) = answer(here, request), answer(agent, request)
        assert (theirs, done_there.usage) == (ours, done.usage), cut


def test_a_text_is_as_probable_as_in_the_python_engine(agent: RemoteTokens, here: TokenSource) -> None:
    ids = [random.Random(2).randrange(3, 500) for _ in range(60)]
    request = ScoreRequest(ids, 20, [[3, ids[min(n, 59)]] for n in range(20, 61)])
    assert isinstance(here, TokenLoop)
    for ours, theirs in zip(predict(open_rows(here, request), request), agent.predict(request), strict=True):
        assert theirs.top == ours.top
        assert theirs.log_probabilities == pytest.approx(ours.log_probabilities, abs=1e-4)


Edit = Callable[[Path, dict[str, Any], str], object]


@pytest.fixture
def refusal(command: list[str], artifact: Artifact, tmp_path: Path) -> Callable[..., str]:
    """refusal(edit): what the agent says of a copy after edit(folder, manifest, the program's name)."""

    def start(edit: Edit) -> str:
        folder = tmp_path / "damaged"
        shutil.copytree(artifact.folder, folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (name,) = [name for name in manifest["files"] if name.endswith(".pte")]
        edit(folder, manifest, name)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        words = [str(folder) if word == str(artifact.folder) else word for word in command]
        talk = Talk(words)
        line = talk.next()
        assert (line["event"], line["fatal"], talk.process.wait(60)) == ("error", True, 2)
        talk.kill()
        return str(line["message"])

    return start


def test_a_long_context_takes_no_memory_before_it_is_filled(
    executorch_agent: ExecutorchAgent, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    tokens = 1 << 17
    checkpoint = random_checkpoint(sliding_window=None, max_position_embeddings=tokens)
    request = ExportRequest(
        checkpoint=str(checkpoint), out=tmp_path / "out", format="executorch", scheme="fp32", context_tokens=tokens
    )
    artifact, kernels = export_model(request), tmp_path / "kernels"
    kernels.mkdir()
    command = executorch_agent.command(artifact.folder, kernels)
    with contextlib.closing(open_remote(LocalHost().start(command))) as agent:
        used = [answer(agent, TokenRequest(ids=[5] * count, max_new_tokens=2))[1] for count in (5, 5000)]
    little, more = (done.memory.anonymous_bytes if done.memory else None for done in used)
    assert little is not None and more is not None
    whole = tokens * artifact.manifest.memory.kv_bytes_per_token
    assert little < whole and little + 4000 * whole / tokens < more


@pytest.mark.parametrize("kept", [0, 30, 5000])
def test_a_program_that_is_cut_off_is_refused(refusal: Callable[..., str], kept: int) -> None:
    def cut(folder: Path, manifest: dict[str, Any], name: str) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])
        manifest["files"][name]["bytes"] = kept  # the agent compares the sizes first

    assert "export it again" in refusal(cut)


def test_a_program_that_the_manifest_does_not_name_is_not_run(refusal: Callable[..., str]) -> None:
    assert "its manifest names no .pte" in refusal(lambda folder, manifest, name: manifest["files"].pop(name))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1 << 44, f"most of which is the KV cache for {CONTEXT} tokens; export it again with a smaller --context"),
        ((1 << 64) - 1, "ExecuTorch: forward (error 0x"),
    ],
    ids=["too much", "negative"],
)
def test_memory_that_a_program_cannot_have_is_reported(refusal: Callable[..., str], size: int, said: str) -> None:
    """As for the KV cache of a long context, which is a part of it."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    def grow(folder: Path, manifest: dict[str, Any], name: str) -> None:
        data = (folder / name).read_bytes()
        forward = deserialize_pte_binary(data).program.execution_plan[0]
        planned = forward.non_const_buffer_sizes[1].to_bytes(8, "little")
        assert data.count(planned) == 1
        (folder / name).write_bytes(data.replace(planned, size.to_bytes(8, "little")))

    assert said in refusal(grow)


def test_bench_on_a_phone(
    executorch_agent: ExecutorchAgent, phone: FakeAdbd, adb: Client, tiny_executorch: Path, tiny_onnx: Path
) -> None:
    """Our own definitions for a .pte, too; the program is this machine's."""
    device = AdbDevice(
        transport="adb",
        serial=f"127.0.0.1:{phone.port}",
        server=adb.server,
        folder=str(phone.phone.folder / "data"),
        runner="executorch-agent",
        program=str(executorch_agent.program),
        libraries=executorch_agent.kernels,
        prefix=executorch_agent.prefix,
    )
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        plan = Plan(prompt_tokens=16, generate_tokens=8, repetitions=2, warmups=1, threads=2)
        facts = DeviceFacts(name="phone", transport="adb")
        measured = measure(open_artifact(tiny_executorch), facts, driver, plan, lambda done, what: None)
        assert problems(measured) == []
        run = measured.repetitions[0]
        assert run.run.memory.peak_bytes and run.load_mode == "mmap" and run.load_s is not None
        with pytest.raises(DeviceError, match="executorch-agent runs the format executorch"):
            driver.stage(open_artifact(tiny_onnx), lambda what: None)
