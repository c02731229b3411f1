"""ci/bench/quality.py: rows are measured once and kept, and the table, the plot and the page come out of them.

No peer is made here: the tiny model's float row and one export of ours stand for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ci.quality.llama import gguf_name, tensor_type
from ci.quality.page import plot, put, table
from ci.quality.result import Answer, Result, read_result
from ci.quality.rows import named, rows
from export.scheme import SCHEMES
from export.target import TARGETS
from export.verify.score.figures import Figure

ROOT = Path(__file__).parents[1]
PAGE = "Before.\n\n<!-- quality: quality -->\n<!-- /quality: quality -->\n\nAfter.\n"
RESULT = Result(
    name="cpu",
    label="Phi Edge, cpu, default",
    group="ours",
    engine="the artifact's own engine",
    command="phi-edge export CHECKPOINT OUT --target cpu",
    made_by="0123",
    tokens=4096,
    blocks=19,
    bytes=91_000_000,
    perplexity=Figure(34.5, 33.0, 36.1),
    kl=Figure(0.15, 0.14, 0.16),
    top1_agreement=Figure(0.77, 0.75, 0.79),
    answers=[Answer(question="What is the opposite of hot?", said="Cold.", right=True)],
    make_s=3.0,
    read_s=40.0,
)
FLOAT_RESULT = replace(RESULT, name="float32", label="the checkpoint", group="float", bytes=269_000_000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was measured before, which all tests may find or leave there."""
    return tmp_path_factory.mktemp("quality") / "cache"


def quality(cache: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "ci/bench/quality.py", "--checkpoint", "export/tiny", "--cache", str(cache)]
    command += ["--out", str(out), "--tokens", "300", "--threads", "1", *options]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=500, check=False)


def test_a_row_of_ours_is_measured_once(cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text(PAGE)
    first = quality(cache, tmp_path, "--rows", "cpu")
    assert first.returncode == 0, first.stderr
    results = {each["name"]: each for each in json.loads((tmp_path / "quality.json").read_text())}
    assert list(results) == ["float32", "cpu"]
    assert results["float32"]["kl"]["value"] == 0 and results["float32"]["top1_agreement"]["value"] == 1
    assert 0 < results["cpu"]["kl"]["value"] < 1
    assert 0 < results["cpu"]["bytes"] < results["float32"]["bytes"]
    assert len(results["cpu"]["answers"]) == 4
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n")
    assert "phi-edge export CHECKPOINT OUT --target cpu" in text
    assert "<svg" in (tmp_path / "quality.svg").read_text()

    again = quality(cache, tmp_path, "--rows", "cpu")
    assert again.stderr.count("measured before") == 2
    assert page.read_text() == text


def test_a_row_that_fails_is_named_and_the_others_are_written(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "quality.md").write_text(PAGE)
    ended = quality(cache, tmp_path, "--rows", "cpu/no-such-scheme")
    assert ended.returncode == 1
    assert "cpu/no-such-scheme" in ended.stderr and ".log" in ended.stderr
    assert "1 of 2 rows failed" in ended.stderr
    assert "the checkpoint in float32" in (tmp_path / "quality.md").read_text()


def test_a_page_without_a_place_for_the_table_is_refused_at_once(tmp_path: Path) -> None:
    ended = quality(tmp_path / "cache", tmp_path, "--rows", "cpu")
    assert ended.returncode == 1 and "quality.md" in ended.stderr
    assert not (tmp_path / "cache").exists()


def test_the_rows_come_out_of_the_tables() -> None:
    found = rows()
    assert len(found) == len({row.label for row in found.values()})
    for row in found.values():
        assert all((ROOT / source).exists() for source in row.sources)
    formats = {(target.format, target.schemes[target.format]) for target in TARGETS.values()}
    ours = [TARGETS[name] for name in found if name in TARGETS]
    assert {(target.format, target.schemes[target.format]) for target in ours} == formats
    some = list(SCHEMES)[-1]
    assert named(f"cpu/{some}").command.endswith(f"--target cpu --scheme {some}")
    assert named("android/90MB").command.endswith("--target android --max-bytes 90MB")


def test_the_table_has_intervals_and_commands() -> None:
    text = table([RESULT, FLOAT_RESULT], "python ci/bench/quality.py")
    lines = text.splitlines()
    assert lines[2].startswith("| the checkpoint | 269.0 MB |  |  |")
    assert lines[3] == (
        "| Phi Edge, cpu, default | 91.0 MB | 0.150 (0.140 to 0.160) | 77.0% (75.0% to 79.0%) | 34.50 (33.00 to 36.10) "
        "| 1 of 1 |"
    )
    assert "`python ci/bench/quality.py`" in text and f"`{RESULT.command}`" in text


def test_the_plot_is_the_same_each_time(tmp_path: Path) -> None:
    peer = replace(RESULT, name="a peer", group="peers", kl=Figure(0.3, None, None))
    for name in ("one.svg", "two.svg"):
        plot([RESULT, FLOAT_RESULT, peer], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="quality: quality"):
        put("Nothing here.\n", "quality", "a table")


def test_a_result_of_another_version_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    RESULT.write(file)
    assert read_result(file) == replace(RESULT, answers=tuple(RESULT.answers))
    content = json.loads(file.read_text())
    del content["kl"]
    file.write_text(json.dumps(content))
    assert read_result(file) is None


@pytest.mark.parametrize(
    ("name", "columns", "kind", "expected"),
    [
        ("model.embed_tokens.weight", 3072, "Q4_0", "Q6_K"),
        ("model.embed_tokens.weight", 576, "Q4_K_M", "Q8_0"),
        ("model.layers.4.self_attn.qkv_proj.weight", 3072, "Q4_K_M", "Q5_K"),
        ("model.layers.4.mlp.gate_up_proj.weight", 576, "Q4_K_M", "Q5_0"),
        ("model.layers.0.mlp.down_proj.weight", 8192, "Q4_K_M", "Q6_K"),
        ("model.layers.4.mlp.down_proj.weight", 8192, "Q4_K_M", "Q4_K"),
        ("model.layers.6.mlp.down_proj.weight", 8192, "Q4_K_M", "Q6_K"),
        ("model.layers.6.mlp.down_proj.weight", 8192, "Q4_0", "Q4_0"),
    ],
)
def test_llama_cpp_types(name: str, columns: int, kind: str, expected: str) -> None:
    assert tensor_type(gguf_name(name), columns, 32, "Q4_0" if kind == "Q4_0" else "Q4_K_M") == expected
