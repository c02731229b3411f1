"""The check for machines with a GPU: rehearsed on the CPU, refused in one line without a GPU, and how a line reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ci import gpu_check
from ci.gpu.plan import QUICK, Plan
from ci.gpu.result import Conformance, Row
from ci.gpu.work import greedy, pieces
from export.artifact import open_artifact
from runtimes.engines.onnx_engine import OnnxEngine, open_onnx


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "list_gpus", list)
    result = CliRunner().invoke(gpu_check.main, ["--provider", "cuda"])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("ci/gpu_check.py: no NVIDIA GPU") and result.stderr.count("\n") == 1


def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    result = CliRunner().invoke(gpu_check.main, ["--provider", "cpu", "--quick", "--out", str(page)])
    assert result.exit_code == 0, result.output
    lines = page.read_text().splitlines()
    (ours,) = (line.split("|") for line in lines if "| ours, cpu |" in line)
    (stock,) = (line.split("|") for line in lines if "| onnxruntime-genai |" in line)
    assert ours[3].startswith(" 0 (deviation") and ours[4] == stock[4] == " 3 of 3 prompts "
    assert ours[5].startswith(" 0 of") and " of 24" in ours[6] and " after 24" in stock[7]


def test_a_check_that_fails_is_one_line(tiny_onnx: Path) -> None:
    """A folder for the CPU has no float16 for CUDA's attention, and here is no GPU: the worker's last line is shown."""
    plan = Plan(adapter="9", **QUICK)
    (row,) = gpu_check.check(open_artifact(tiny_onnx), "tiny", "cuda", plan, ["Hi"], 2)
    assert row.wrong and row.error.startswith("failed with 1: ") and row.markdown().count("\n") == 0


def test_how_a_line_reads() -> None:
    near = Row(model="tiny", engine="ours", difference=0.03, spread=3.0, equal=19, prompts=20, gaps=(0.0156,))
    assert "| 19 of 20 prompts, else where the CPU's best two are 0.016 apart |" in near.markdown() and not near.wrong
    far = Row(model="tiny", engine="ours", difference=0.31, spread=3.0)
    assert far.wrong and Row(model="tiny", engine="genai", equal=19, prompts=20, apart=1).wrong
    assert not Row(model="tiny", engine="genai", equal=19, prompts=20).wrong
    assert "**length 1: 5.4 deviations**" in Conformance(
        variant="mini", context_tokens=64, failures=["length 1: 5.4 deviations"]
    ).markdown()  # fmt: skip


def test_greedy_tokens_are_the_engines(tiny_onnx: Path) -> None:
    engine = open_onnx(open_artifact(tiny_onnx), 1)
    assert isinstance(engine, OnnxEngine)
    ids = list(range(3, 23))
    whole = greedy(engine, ids, 3)
    engine.max_forward_tokens = 7
    assert [len(piece) for piece in pieces(ids, 7)] == [7, 7, 6]
    tokens, logits = greedy(engine, ids, 3)
    assert tokens == whole[0] and logits.shape == (3, engine.vocab_size)
