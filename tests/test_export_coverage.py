"""The manifest lists where each node runs, and full coverage can be required."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from export.artifact import open_artifact
from export.formats import LAYOUTS
from export.job import resolve
from export.request import ExportRequest
from phi_edge.main import main


def export(out: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", "tiny", str(out), "--quiet", "--context", "64", *options])
    return result.exit_code, result.output


def test_the_cpu_runs_everything(tiny_onnx: Path) -> None:
    (place,) = open_artifact(tiny_onnx).manifest.coverage.items()
    assert place[0] == "CPUExecutionProvider"
    # Each of the 4 layers has attention to a cache of the window, and to one that keeps all.
    assert (place[1]["GroupQueryAttention"], place[1]["MatMulNBits"]) == (8, 17)


def test_executorch_says_what_is_portable(tiny_executorch: Path) -> None:
    coverage = open_artifact(tiny_executorch).manifest.coverage
    assert coverage["XnnpackBackend"] == {"delegate": 5}
    assert coverage["portable"]["llama::custom_sdpa"] == 4
    assert coverage["portable"]["llama::update_cache"] == 4 * 2


def test_executorch_says_what_is_portable_in_rings() -> None:
    """Each layer has three ways through its ring, of which a call takes one, and is written before and after."""
    job = resolve(ExportRequest(checkpoint="tiny", out=Path("out"), target="android", context_tokens=2048))
    portable = LAYOUTS["executorch"](job).coverage.counts["portable"]
    assert portable["llama::custom_sdpa"] == 4 * 3
    assert portable["llama::update_cache_with_indices"] == 4 * 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--target", "windows-directml"], "/lengths/Gather (Gather), /lengths/total/Cast (Cast); nothing was written"),
        (["--target", "android"], "llama::custom_sdpa (4 times)"),
    ],
)
def test_full_delegation_is_required(tmp_path: Path, options: list[str], named: str) -> None:
    code, output = export(tmp_path / "out", *options, "--require-full-delegation")
    assert code == 1
    assert len(output.strip().splitlines()) == 1 and named in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--target", "windows-directml", "--lengths-as-inputs"], ["--target", "cpu"]])
def test_full_delegation_is_given(tmp_path: Path, options: list[str]) -> None:
    assert export(tmp_path / "out", *options, "--require-full-delegation") == (0, "")
    coverage = open_artifact(tmp_path / "out").manifest.coverage
    assert len(coverage) == 1
