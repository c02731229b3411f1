"""A sample of the fidelity table: the window, the long-rope switch and tied embeddings, in one format each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ci.fidelity import BEGIN, END, HEADER, PAGE, Kind, context_for, examine_variant, kinds_for, write_rows
from ci.variants import VARIANTS, make_checkpoint
from export.checkpoint.open import open_checkpoint
from export.pipeline import export_model
from export.request import ExportRequest
from phi_edge.main import main

SAMPLE: list[tuple[str, Kind]] = [
    ("phi-3-mini-4k", Kind("onnx", "fp32")),
    ("phi-4-mini", Kind("onnx", "int4-b64")),
    ("phi-3.5-mini", Kind("executorch", "fp32")),
]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name]["model_type"] == "phi3"])
def test_every_variant_is_read(variant: str, tmp_path: Path) -> None:
    opened = open_checkpoint(str(make_checkpoint(variant, tmp_path / "checkpoint", vocab_size=768)))
    published = VARIANTS[variant]
    ratio = published["num_attention_heads"] // published["num_key_value_heads"]
    assert opened.config.num_attention_heads == ratio * opened.config.num_key_value_heads
    assert opened.config.head_dim == published["hidden_size"] // published["num_attention_heads"]


@pytest.mark.parametrize(("variant", "kind"), SAMPLE)
def test_sample(variant: str, kind: Kind, tmp_path: Path) -> None:
    (row,) = examine_variant(variant, tmp_path, [kind])
    assert row.report.failures == []
    original = VARIANTS[variant]["original_max_position_embeddings"]
    lengths = {case.length for case in row.report.cases}
    assert {1, original - 1, original} <= lengths and (context_for(variant) == original or original + 104 in lengths)
    if kind.scheme == "fp32":
        assert row.report.max_difference < 1e-4
        assert all(decode.gap is None for decode in row.report.decodes) and row.report.decodes


def test_directml_s_form_stays_within_the_window() -> None:
    assert context_for("phi-3-mini-4k") == 4096
    assert context_for("phi-3-mini-4k", "windows-directml") == 2047
    assert context_for("phi-3.5-mini") == context_for("phi-3.5-mini", "windows-directml") == 4096 + 256
    assert [kind.target for kind in kinds_for("phi-4-mini")].count("windows-directml") == 1
    assert {kind.target for kind in kinds_for("phi-3-small-8k")} == {"cpu"}


def test_a_variant_s_rows_take_the_place_of_its_old_ones() -> None:
    page = f"text\n{BEGIN}\n\n{HEADER}\n| phi-3-mini-4k | a |\n| phi-4-mini | b |\n| phi-4-mini | c |\n\n{END}\nmore\n"
    written = write_rows(page, "phi-4-mini", ["| phi-4-mini | d |"])
    assert written == page.replace("| phi-4-mini | b |\n| phi-4-mini | c |", "| phi-4-mini | d |")
    # A new variant comes in the table's order, not at its end.
    written = write_rows(written, "phi-3-medium-4k", ["| phi-3-medium-4k | e |"])
    assert "| a |\n| phi-3-medium-4k | e |\n| phi-4-mini | d |\n\n" in written
    page = PAGE.read_text("utf-8")
    assert (
        write_rows(page, "phi-4-mini", [row for row in page.splitlines() if row.startswith("| phi-4-mini |")]) == page
    )


def test_check_against(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("phi-3-mini-4k", tmp_path / "checkpoint", num_hidden_layers=1)
    other = make_checkpoint("phi-3-mini-4k", tmp_path / "other", num_hidden_layers=1, seed=1)
    out = tmp_path / "artifact"
    export_model(ExportRequest(checkpoint=str(checkpoint), out=out, scheme="int4-b64", context_tokens=64))
    arguments = ["check", str(out), "--against", str(checkpoint), "--json", str(tmp_path / "report.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "bounds kept" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] and report["reference"].endswith("dequantised")
    for path in (tmp_path, tmp_path / "nowhere" / "report.json"):  # reported before the minutes of work
        result = CliRunner().invoke(main, [*arguments[:-1], str(path)])
        assert result.exit_code == 2 and f"{path}: " in result.stderr
    result = CliRunner().invoke(main, ["check", str(out), "--against", str(other)])
    assert result.exit_code == 2 and "was not made from" in result.stderr


@pytest.mark.parametrize("scheme", ["fp32", "int4-b64"])
def test_a_missed_bound_is_exit_1(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.models.rope import RopeConfig

    checkpoint = make_checkpoint("phi-3-mini-4k", tmp_path / "checkpoint", num_hidden_layers=1)
    out = tmp_path / "artifact"
    tables = RopeConfig.tables
    with monkeypatch.context() as wrong:  # an export that scales its positions
        wrong.setattr(
            RopeConfig, "tables", lambda self, length, **kind: tuple(t[::2] for t in tables(self, 2 * length, **kind))
        )
        export_model(ExportRequest(checkpoint=str(checkpoint), out=out, scheme=scheme, context_tokens=64))
    result = CliRunner().invoke(main, ["check", str(out), "--against", str(checkpoint)])
    assert result.exit_code == 1, result.output
    assert "missed: length 64" in result.output and "is allowed" in result.output
