"""Scores in `phi-edge gate` and `phi-edge report`, beside measurements and alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fakes.measurement import fake_measurement
from fakes.score import write_score
from phi_edge.main import main

LIMITS = "[[budget]]\nmax_kl = 0.21\nmin_top1_agreement = 0.7\nmax_perplexity = 35\n"


def gate(folder: Path, budgets: str, *files: Path) -> Result:
    (folder / "budgets.toml").write_text(budgets)
    return CliRunner().invoke(main, ["gate", *map(str, files), "--budgets", str(folder / "budgets.toml")])


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    (tmp_path / "m.json").write_text(fake_measurement().to_json())
    return tmp_path / "m.json"


def test_a_score_is_judged_with_its_artifact(tmp_path: Path, measured: Path) -> None:
    score = write_score(tmp_path / "s.json", fake_measurement())
    kept = gate(tmp_path, LIMITS + "max_ttft_s = 60\n", measured, score)
    assert (kept.exit_code, kept.output.count("  pass ")) == (0, 4), kept.output
    missed = gate(tmp_path, "[[budget]]\nmax_kl = 0.19\n", measured, score)
    assert missed.exit_code == 1 and "missed   kl" in missed.output
    unscored = gate(tmp_path, "[[budget]]\nmax_kl = 0.19\n", measured)
    assert unscored.exit_code == 1 and "not measured" in unscored.output
    unasked = gate(tmp_path, "[[budget]]\nmin_exact_match = 0.5\n", measured, score)
    assert unasked.exit_code == 1 and "exact_match" in unasked.output


def test_a_score_alone_is_judged(tmp_path: Path) -> None:
    score = write_score(tmp_path / "s.json", fake_measurement())
    assert gate(tmp_path, LIMITS, score).exit_code == 0
    elsewhere = gate(tmp_path, LIMITS + "match = {prompt_tokens = 8}\n", score)
    assert elsewhere.exit_code == 2 and "matches none" in elsewhere.output


def test_two_scores_of_one_artifact_are_refused(tmp_path: Path) -> None:
    files = [write_score(tmp_path / f"{n}.json", fake_measurement()) for n in range(2)]
    result = gate(tmp_path, LIMITS, *files)
    assert result.exit_code == 2 and "a second score of the artifact" in result.output


def test_a_broken_score_is_refused(tmp_path: Path) -> None:
    score = write_score(tmp_path / "s.json", fake_measurement())
    content = json.loads(score.read_text())
    content["kl"]["value"] = "much"
    score.write_text(json.dumps(content))
    result = gate(tmp_path, LIMITS, score)
    assert result.exit_code == 2 and "kl: value: expected float, saw 'much'" in result.output


@pytest.mark.parametrize(
    ("name", "figure", "seen"),
    [
        ("kl", (-1.0, -1.1, -0.9), "are -1.1, -1, -0.9; possible: 0 or more"),
        ("top1_agreement", (2.0, None, None), "are 2; possible: 0 to 1"),
        ("perplexity", (0.5, None, None), "are 0.5; possible: 1 or more"),
        ("kl", (0.2, 0.3, 0.1), "are 0.3, 0.2, 0.1; possible: 0 or more, in rising order"),
    ],
)
def test_an_impossible_score_is_refused(
    tmp_path: Path, name: str, figure: tuple[float, float | None, float | None], seen: str
) -> None:
    score = write_score(tmp_path / "s.json", fake_measurement())
    content = json.loads(score.read_text())
    content[name] = dict(zip(("value", "low", "high"), figure, strict=True))
    score.write_text(json.dumps(content))
    result = gate(tmp_path, LIMITS, score)
    assert result.exit_code == 2 and f"s.json: {name}: its low, value and high {seen}" in result.output, result.output


def test_a_share_above_one_is_refused(tmp_path: Path) -> None:
    score = write_score(tmp_path / "s.json", fake_measurement())
    result = gate(tmp_path, "[[budget]]\nmin_top1_agreement = 75\n", score)
    assert result.exit_code == 2
    assert "min_top1_agreement: expected a share from 0 to 1, such as 0.75, saw 75" in result.output


def test_report_puts_quality_beside_speed(tmp_path: Path, measured: Path) -> None:
    own = write_score(tmp_path / "own.json", fake_measurement())
    other = write_score(tmp_path / "other.json", fake_measurement(name="smaller"), kl=0.4, digest="f" * 64)
    files = [str(measured), str(own), str(other)]
    result = CliRunner().invoke(main, ["report", *files, "--markdown", "--html", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    rows = {line.split("|")[1].strip(): line for line in result.output.splitlines() if line.startswith("| ")}
    assert "0.200 nats (0.190 to 0.210) | 0.400 nats (0.380 to 0.420), 2.00x" in rows["KL"]
    assert "76.0 % (75.0 to 77.0)" in rows["Top-1 agreement"]
    assert "| not measured |" in rows["Decode"]
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'id="plot-quality"' in page and "Loss against size" in page
    alone = CliRunner().invoke(main, ["report", str(own), "--json", "-", "--html", str(tmp_path / "s.html")])
    assert alone.exit_code == 0, alone.output
    found = json.loads(alone.output)["measurements"][0]
    assert (found["workload"], found["metrics"]["kl"]["value"]) == (None, 0.2)
    assert 'id="plot-quality"' not in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_scores_of_different_texts_are_not_compared(tmp_path: Path, measured: Path) -> None:
    own = write_score(tmp_path / "own.json", fake_measurement())
    other = write_score(tmp_path / "other.json", fake_measurement(name="smaller"), kl=0.4, digest="f" * 64)
    content = json.loads(other.read_text(encoding="utf-8"))
    content["text"]["sha256"] = "1" * 64
    other.write_text(json.dumps(content), encoding="utf-8")
    files = [str(measured), str(own), str(other)]
    result = CliRunner().invoke(main, ["report", *files, "--markdown", "--html", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    rows = {line.split("|")[1].strip(): line for line in result.output.splitlines() if line.startswith("| ")}
    assert "0.400 nats (0.380 to 0.420) |" in rows["KL"]
    assert "Perplexity: not compared with the first, whose text, reference or questions are others" in result.output
    assert 'id="plot-quality"' not in (tmp_path / "r.html").read_text(encoding="utf-8")
