"""An export is run in its engine before it is sealed: what the engine does not run is not, and one line says why."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import phi_edge
from export.artifact import MANIFEST, Artifact, Format, open_artifact
from export.errors import ProofError, SpaceError
from export.request import ExportRequest
from export.system import Room
from export.verify.proof import Proof
from phi_edge.main import main
from phi_edge.proof import ChildProver, start_child


@pytest.fixture(scope="module")
def small(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(num_hidden_layers=1)


def export(checkpoint: Path, out: Path, *options: str) -> Result:
    words = ["export", str(checkpoint), str(out), "--scheme", "int4-b32", *options]
    return CliRunner().invoke(main, words)


def broken(artifact: Path, folder: Path) -> Artifact:
    """An artifact that is not sealed, whose model is no model."""
    shutil.copytree(artifact, folder)
    manifest = open_artifact(folder).manifest
    (folder / MANIFEST).unlink()
    (model,) = (folder / name for name in manifest.files if name.endswith((".onnx", ".pte")))
    model.write_bytes(b"\0" * model.stat().st_size)
    return Artifact(folder, manifest)


def test_what_the_engine_does_not_load_is_not_sealed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.to_onnx.layout.onnx_ir.save", lambda graph, path: path.write_bytes(b"no graph"))
    result = export(small, tmp_path / "out", "--quiet")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "the engine does not run this export, so that it was not sealed: onnxruntime" in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


@pytest.mark.parametrize("artifact", ["tiny_onnx", "tiny_executorch"])
def test_a_model_that_is_none_is_told_whatever_the_engine_does(
    artifact: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """ExecuTorch may end the process that loads it."""
    with pytest.raises(ProofError, match="does not run this export") as caught:
        ChildProver().run(broken(request.getfixturevalue(artifact), tmp_path / "artifact"))
    assert "\n" not in str(caught.value)


def test_a_configuration_that_fails_at_its_first_token(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = random_checkpoint(num_hidden_layers=1, hidden_size=160, num_attention_heads=8, num_key_value_heads=4)
    result = export(checkpoint, tmp_path / "out", "--quiet")
    assert result.exit_code == 2
    assert "the engine does not run this export" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_manifest_is_written_after_the_proof(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def run(self: ChildProver, artifact: Artifact) -> Proof:
        seen.append(any(tmp_path.rglob(MANIFEST)))
        return Proof(["a remark"])

    monkeypatch.setattr(ChildProver, "run", run)
    result = export(small, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert seen == [False] and "a remark" in result.stderr
    open_artifact(tmp_path / "out")


def test_the_public_function_proves_too(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: ChildProver, artifact: Artifact) -> Proof:
        raise ProofError("no")

    monkeypatch.setattr(ChildProver, "run", run)
    with pytest.raises(ProofError):
        phi_edge.export_model(ExportRequest(checkpoint=str(small), out=tmp_path / "out", scheme="int4-b32"))


def test_an_engine_that_was_killed_keeps_the_work(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: ChildProver, artifact: Artifact) -> Proof:
        raise SpaceError("killed")

    monkeypatch.setattr(ChildProver, "run", run)
    result = export(small, tmp_path / "out", "--quiet")
    assert result.exit_code == 2 and "the same command goes on" in result.stderr
    monkeypatch.undo()
    assert export(small, tmp_path / "out", "--quiet").exit_code == 0


def test_another_accelerator_is_named(small: Path, tmp_path: Path) -> None:
    result = export(small, tmp_path / "out", "--target", "windows-directml")
    assert result.exit_code == 0, result.output
    assert "run here on ONNX Runtime's CPU, not on DirectML" in result.stderr


def test_a_remark_with_brackets_is_shown_whole(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the markup of the library that draws the bar, brackets are commands, or mistakes."""
    remark = "the template refuses [/INST]; pip install 'phi-edge[gguf]', or write [bold] and a line that is too long"
    monkeypatch.setattr(ChildProver, "run", lambda self, artifact: Proof([remark]))
    result = export(small, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert remark in result.stderr.splitlines()


@pytest.mark.parametrize("format", ["onnx", "executorch", "gguf"])
def test_what_waits_for_the_artifact_ends_with_an_export_that_was_killed(format: Format, tmp_path: Path) -> None:
    with start_child(tmp_path, format) as child:
        assert child.communicate()[0] == b"" and child.returncode == 0


def test_an_export_that_fails_leaves_no_process(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, format: Format) -> subprocess.Popen[bytes]:
        started.append(start_child(folder, format))
        return started[-1]

    def fill_weights(*_: object) -> None:
        raise SpaceError("the disk is full")

    monkeypatch.setattr("phi_edge.proof.start_child", start)
    monkeypatch.setattr("export.pipeline.fill_weights", fill_weights)
    assert export(small, tmp_path / "out", "--quiet").exit_code == 2
    (child,) = started
    assert child.returncode is not None


def test_a_machine_that_is_too_small_is_told(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi_edge.proof.memory_room", lambda: Room(1_000_000, "left by ulimit -v"))
    (remark,) = ChildProver().run(open_artifact(tiny_onnx)).remarks
    assert remark.startswith("not run before it was sealed: that needs") and "left by ulimit -v" in remark


def test_a_context_without_room_for_a_chat(small: Path, tmp_path: Path) -> None:
    result = export(small, tmp_path / "out", "--context", "5", "--quiet")
    assert result.exit_code == 0, result.output


def test_an_engine_that_is_not_installed_is_told_before_the_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi_edge.proof.LIBRARIES", {"onnx": "no_such_engine"})
    result = export(small, tmp_path / "out", "--quiet")
    assert result.exit_code == 2 and "pip install 'phi-edge[onnx]'" in result.stderr
    assert not (tmp_path / "out.part").exists()


def test_a_decoder_that_the_runtimes_do_not_know(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "checkpoint"))
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"decoder": None}))
    result = export(folder, tmp_path / "out", "--quiet")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "the decoder None; known: ByteLevel" in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_optimums_command_line_proves_too(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum.commands.optimum_cli import main as optimum

    def run(self: ChildProver, artifact: Artifact) -> Proof:
        raise ProofError("the proof's reason")

    monkeypatch.setattr(ChildProver, "run", run)
    monkeypatch.setattr("sys.argv", ["optimum-cli", "export", "phi-edge", str(small), str(tmp_path / "out"), "--quiet"])
    with pytest.raises(SystemExit) as ended:
        optimum()
    assert ended.value.code == 2


def test_the_smallest_context_that_is_allowed(small: Path, tmp_path: Path) -> None:
    manifest = open_artifact(tmp_path / "out").manifest if export(small, tmp_path / "out", "--context", "2") else None
    assert manifest is not None and replace(manifest).context_tokens == 2


def test_bench_asks_again_what_the_proof_answered(small: Path, tmp_path: Path) -> None:
    out, measured, budgets = tmp_path / "out", tmp_path / "m.json", tmp_path / "budgets.toml"
    assert export(small, out, "--quiet").exit_code == 0
    budgets.write_text("[[budget]]\nmin_reference_share = 1\n")

    def bench_and_gate() -> tuple[Result, Result]:
        words = ["bench", str(out), "--reps", "2", "--prompt-tokens", "8", "--generate-tokens", "4", "--out"]
        return (
            CliRunner().invoke(main, [*words, str(measured)]),
            CliRunner().invoke(main, ["gate", str(measured), "--budgets", str(budgets)]),
        )

    bench, gate = bench_and_gate()
    assert (bench.exit_code, gate.exit_code) == (0, 0), bench.output + gate.output
    # The same export on a machine that computes otherwise from the fifth token on.
    manifest = json.loads((out / MANIFEST).read_text())
    digest = open_artifact(out).manifest.digest()
    answer = manifest["reference"]["answer"]
    assert len(answer) == 16
    answer[4] = (answer[4] + 1) % 100
    (out / MANIFEST).write_text(json.dumps(manifest))
    assert open_artifact(out).manifest.digest() == digest
    bench, gate = bench_and_gate()
    assert bench.exit_code == 0 and "2 of 2 repetitions answer the artifact's reference otherwise" in bench.stderr
    assert gate.exit_code == 1 and "reference_share" in gate.stdout and "from token 5 of 16 on" in gate.stdout
