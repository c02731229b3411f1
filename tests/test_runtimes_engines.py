"""Engines: the errors for an artifact that they cannot load, and the steps to add one (docs/runtimes.md)."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import test_runtimes_contract as contract

from export.artifact import Artifact, describe_files, open_artifact
from runtimes import open_runtime
from runtimes.engines.engine import Engine
from runtimes.engines.fake import fake_artifact
from runtimes.errors import EngineError
from runtimes.registry import ENGINES

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits


def with_file(folder: Path, name: str, content: bytes, source: Path | None = None) -> Artifact:
    """An artifact (the fake's, or a copy of `source`) with one file more, or replaced, and a manifest that agrees."""
    if source is None:
        fake_artifact(folder)
    else:
        shutil.copytree(source, folder)
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format"] = "executorch" if name.endswith(".pte") else "onnx"
    manifest["files"][name] = dataclasses.asdict(describe_files(folder, [name])[name])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_artifact(folder)


def test_an_artifact_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has 0 \.onnx files, expected one; export it again"):
        open_runtime(fake_artifact(tmp_path / "a"))


@pytest.mark.parametrize(
    ("library", "file", "extra"), [("onnxruntime", "m.onnx", "onnx"), ("torch", "m.pte", "executorch")]
)
def test_a_library_that_is_not_installed(
    library: str, file: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    artifact = with_file(tmp_path / "a", file, b"")
    with pytest.raises(EngineError, match=rf"{library}.* not installed.*: pip install 'phi-edge\[{extra}\]'"):
        open_runtime(artifact)


def test_a_broken_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"onnxruntime 1\.\S+ cannot load .*m\.onnx"):
        open_runtime(with_file(tmp_path / "a", "m.onnx", b"not a graph"))


def test_a_graph_of_somebody_else(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(EngineError, match=r"inputs are not those of a phi-edge export \(attention_mask, input_ids, "):
        open_runtime(with_file(tmp_path / "a", "m.onnx", model.SerializeToString()))


def test_a_broken_program(tmp_path: Path, tiny_executorch: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = next(tiny_executorch.glob("*.pte"))
    size = program.stat().st_size
    torn = program.read_bytes()[: size // 4] + bytes(size - size // 4)
    artifact = with_file(tmp_path / "a", program.name, torn, tiny_executorch)
    # The reason is in ExecuTorch's log, which goes into the message and not to the terminal.
    with pytest.raises(EngineError, match=r"ExecuTorch cannot load .*; its last lines: \["):
        open_runtime(artifact)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fixture", ["tiny_onnx", "tiny_executorch"])
def test_opening_says_nothing(fixture: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> None:
    folder: Path = request.getfixturevalue(fixture)
    capfd.readouterr()
    open_runtime(folder).close()
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "")


def test_an_open_program_keeps_its_threads(tiny_executorch: Path) -> None:
    """All of a process share one pool: made anew under an open program, it ends the process."""
    with open_runtime(tiny_executorch, threads=2) as first:
        before = first.chat("Turn on the lamp in the kitchen.")
        with pytest.raises(EngineError, match="is open in this process with 2 threads, and all share one pool"):
            open_runtime(tiny_executorch, threads=1)
        with open_runtime(tiny_executorch, threads=2) as second:
            assert (
                first.chat("Turn on the lamp in the kitchen.")
                == before
                == second.chat("Turn on the lamp in the kitchen.")
            )
    open_runtime(tiny_executorch, threads=1).close()


def test_torch_gets_one_openmp_thread_and_the_environment_is_left_alone(tiny_executorch: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from runtimes import open_runtime\n"
        "before = dict(os.environ)\n"
        "open_runtime(pathlib.Path(sys.argv[1]), threads=2)\n"
        "import torch\n"
        "print(torch.get_num_threads(), dict(os.environ) == before, 'torchao' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tiny_executorch)]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert seen.stdout.split() == ["1", "True", "False"]


class ToyEngine:
    """All that an engine needs: the likeliest next id is computed from the ids so far."""

    def __init__(self, artifact: Artifact) -> None:
        self.context_tokens = artifact.manifest.context_tokens
        self.vocab_size = artifact.manifest.model.vocab_size
        self.switch_tokens = artifact.manifest.rope.switch_tokens
        self.max_forward_tokens = self.context_tokens
        self.continues = True
        self.accelerator = None
        self._ids: list[int] = []

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        self._ids[start:] = ids
        logits = np.zeros(self.vocab_size, np.float32)
        logits[(7 * sum(self._ids) + len(self._ids)) % self.vocab_size] = 1
        return logits

    def close(self) -> None:
        self._ids = []


def open_toy(artifact: Artifact, threads: int | None) -> Engine:
    return ToyEngine(artifact)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[contract.Subject]:
    """The toy engine as the row of a format: a newcomer's edit of the table."""
    monkeypatch.setitem(ENGINES, "onnx", open_toy)
    artifact = fake_artifact(tmp_path / "artifact")
    runtime = open_runtime(artifact)
    yield contract.Subject(runtime, artifact, open_toy)
    runtime.close()


@pytest.mark.parametrize(
    "promise",
    [
        contract.test_stream_is_tokens_and_then_done,
        contract.test_ignore_stop_ids_gives_the_exact_number,
        contract.test_closing_cancels_and_the_runtime_goes_on,
        contract.test_one_request_at_a_time,
        contract.test_a_deadline_ends_the_answer,
        contract.test_the_end_of_the_context_is_a_length,
        contract.test_a_prompt_longer_than_the_context_is_refused,
        contract.test_a_session_reuses_its_longest_common_prefix,
        contract.test_a_prompt_may_be_prefilled_in_pieces,
    ],
)
def test_an_engine_is_one_class_and_one_row(promise: Callable[[contract.Subject], None], toy: contract.Subject) -> None:
    promise(toy)
